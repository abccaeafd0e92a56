"""A vLLM that is ready."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from contextlib import aclosing

import msgspec

from oprel.drivers.children.processes import tree_resident_bytes
from oprel.drivers.contract import Health
from oprel.drivers.local.engine import HEALTH_LIMIT_S, LocalEngine, slots_in_use
from oprel.drivers.upstream import Quirks
from oprel.errors import EngineFailedError
from oprel.schema import (
    ChatRequest,
    CompletionRequest,
    Embeddings,
    EmbedRequest,
    Event,
    Sampling,
)

__all__ = ["VLLM", "VllmEngine"]

_RUNNING = re.compile(rb"^vllm:num_requests_(?:running|waiting)\{[^}]*\} (\S+)$", re.MULTILINE)

VLLM = Quirks(
    completion_path="/v1/completions",
    completion_shape="openai",
    infill_path=None,
    render_path="/tokenize",
    props_path=None,
    unlimited_tokens=None,
    renamed=(("repeat_penalty", "repetition_penalty"),),
    normalize_field="use_activation",
    normalize_values=(True, False),
    progress_field=None,
    prompt_cache_field=None,
    has_logprobs_with_tools=True,
    has_bias_map=True,
    thinking_field="reasoning",
    more_top_logprobs=1,
)


class VllmEngine(LocalEngine):
    """When it is told to end with clients still connected, it leaves them waiting for answers that never come."""

    async def chat(self, request: ChatRequest) -> AsyncGenerator[tuple[Event, ...], None]:
        request = msgspec.structs.replace(request, sampling=self._within(request.sampling))
        async with aclosing(super().chat(request)) as answer:
            async for batch in answer:
                yield batch

    async def complete(self, request: CompletionRequest) -> AsyncGenerator[tuple[Event, ...], None]:
        request = msgspec.structs.replace(request, sampling=self._within(request.sampling))
        async with aclosing(super().complete(request)) as answer:
            async for batch in answer:
                yield batch

    async def embed(self, request: EmbedRequest) -> Embeddings:
        """vLLM takes texts, or tokens, and refuses both in one request."""
        texts = tuple(at for at, given in enumerate(request.inputs) if isinstance(given, str))
        if len(texts) in (0, len(request.inputs)):
            return await super().embed(request)
        tokens = tuple(at for at in range(len(request.inputs)) if at not in set(texts))
        vectors: dict[int, tuple[float, ...]] = {}
        count = 0
        for places in (texts, tokens):
            part = msgspec.structs.replace(request, inputs=tuple(request.inputs[at] for at in places))
            answer = await super().embed(part)
            vectors |= zip(places, answer.vectors, strict=True)
            count += answer.prompt_tokens
        return Embeddings(tuple(vectors[at] for at in range(len(request.inputs))), count)

    async def tokenize(self, text: str, *, add_special: bool = False) -> tuple[int, ...]:
        path = self._refusals.tokenize(self.quirks.tokenize_path)
        body = msgspec.json.encode({"prompt": text, "add_special_tokens": add_special})
        return self._decoded(await self._post(path, body), _Tokens).tokens

    async def detokenize(self, tokens: tuple[int, ...]) -> str:
        path = self._refusals.tokenize(self.quirks.detokenize_path)
        body = msgspec.json.encode({"tokens": tokens})
        return self._decoded(await self._post(path, body), _Prompt).prompt

    async def render(self, request: ChatRequest) -> str:
        """vLLM tells the tokens of a prompt, not its text: the text is made of them."""
        path = self._refusals.tokenize(self.quirks.render_path)
        self._refusals.chat(msgspec.structs.replace(request, sampling=Sampling()))  # nothing is drawn
        tokens = self._decoded(await self._post(path, self._writer.render(request)), _Tokens).tokens
        return await self.detokenize(tokens)

    async def look(self) -> Health:
        """/health only reads a flag, so that the requests that run are counted too."""
        answer = await self.client.request("GET", "/health", timeout_s=HEALTH_LIMIT_S)
        if answer.status != 200:
            return Health("dead", f"vLLM says that its engine is dead (status {answer.status}).")
        metrics = await self.client.request("GET", "/metrics", timeout_s=HEALTH_LIMIT_S)
        return slots_in_use(_taken(metrics.body), self.plan.slots)

    def memory_bytes(self) -> int | None:
        """Of the server, its engine and its workers."""
        return tree_resident_bytes(self._child.pid) if self._child.is_running else None

    def _within(self, sampling: Sampling) -> Sampling:
        """vLLM refuses more tokens than the context holds, where others give what is left of it."""
        if sampling.max_tokens is None or sampling.max_tokens < self.plan.context_tokens:
            return sampling
        return msgspec.structs.replace(sampling, max_tokens=None)


def _taken(metrics: bytes) -> int:
    """Requests that run or wait; names of metrics change, and none found is none taken."""
    try:
        return int(sum(float(count) for count in _RUNNING.findall(metrics)))
    except ValueError as error:
        raise EngineFailedError(f"vllm's metrics can't be read: {error}", driver="vllm") from error


class _Tokens(msgspec.Struct):
    tokens: tuple[int, ...]


class _Prompt(msgspec.Struct):
    prompt: str
