"""An engine that chats by a Go template: the conversation is put into text here, and the answer read back.

The engine underneath completes the text and knows nothing of it; engines for other templates share it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from typing import Any

import msgspec

from oprel.drivers.contract import Engine, EventStream, Health
from oprel.drivers.enforced import check_request
from oprel.drivers.forcing import calls_of, held_to_call
from oprel.drivers.templated.choices import check_choice
from oprel.drivers.templated.reading import AnswerReader
from oprel.drivers.upstream.turns import MAX_TRUNCATIONS, TRUNCATED, shortened
from oprel.errors import ContextLengthError, TemplateError
from oprel.schema import (
    Capabilities,
    ChatRequest,
    CompletionRequest,
    Embeddings,
    EmbedRequest,
    Event,
    Finish,
    ImagePart,
    OutputFormat,
    Plan,
    Sampling,
    Text,
    Usage,
    must_call,
)
from oprel.templates.chat import ChatTemplate, used_tools

__all__ = ["TemplatedEngine"]

Batch = tuple[Event, ...]

_MANY_MESSAGES = 64
_LONG_TEXT = 128 * 1024


class TemplatedEngine(Engine):
    """`inner` for one template, or for one that can't be applied: then whatever needs it raises `template`. One that
    a client sent (`is_foreign`) may be made to take as long as it can, and is never run on the loop."""

    def __init__(
        self, inner: Engine, template: ChatTemplate | TemplateError, plan: Plan, *, is_foreign: bool = False
    ) -> None:
        self.inner = inner
        self.plan = plan
        self.capabilities = _capabilities(inner.capabilities, template)
        self._template = template
        self._is_foreign = is_foreign

    def __repr__(self) -> str:
        return f"<TemplatedEngine on {self.inner!r}>"

    @property
    def template(self) -> ChatTemplate:
        """Raises TemplateError."""
        if isinstance(self._template, TemplateError):
            raise TemplateError(self._template.message, line=self._template.line)
        return self._template

    # -- the contract

    async def chat(self, request: ChatRequest) -> AsyncGenerator[Batch, None]:
        check_request(request, self.capabilities, driver=self.plan.driver, model=self.plan.model)
        check_choice(request, driver=self.plan.driver, model=self.plan.model)
        notice: Batch = ()
        for attempt in range(MAX_TRUNCATIONS):
            has_begun = False
            try:
                async with aclosing(self._answer(request)) as answer:
                    async for batch in answer:
                        has_begun = True
                        yield notice + batch if notice else batch
                        notice = ()
                return
            except ContextLengthError as error:
                shorter = None if has_begun or not request.truncate else shortened(request, error)
                if shorter is None or attempt == MAX_TRUNCATIONS - 1:
                    raise
                request, notice = shorter, (TRUNCATED,)

    async def complete(self, request: CompletionRequest) -> AsyncGenerator[Batch, None]:
        """With a suffix, where the template has a place for it, that is how the text in between is asked for."""
        if request.suffix is not None and isinstance(request.prompt, str) and self._has_suffix:
            prompt = await self._off_loop(self.template.infill, request.prompt, request.suffix)
            request = msgspec.structs.replace(request, prompt=prompt, suffix=None)
        async with aclosing(self.inner.complete(request)) as stream:
            async for batch in stream:
                yield batch

    async def render(self, request: ChatRequest) -> str:
        is_large = len(request.messages) > _MANY_MESSAGES or sum(_sizes(request)) > _LONG_TEXT
        return await self._off_loop(self.template.conversation, request, is_large=is_large)

    async def embed(self, request: EmbedRequest) -> Embeddings:
        return await self.inner.embed(request)

    async def tokenize(self, text: str, *, add_special: bool = False) -> tuple[int, ...]:
        return await self.inner.tokenize(text, add_special=add_special)

    async def detokenize(self, tokens: tuple[int, ...]) -> str:
        return await self.inner.detokenize(tokens)

    async def health(self) -> Health:
        return await self.inner.health()

    async def wait_dead(self) -> str:
        return await self.inner.wait_dead()

    async def stop(self) -> None:
        await self.inner.stop()

    def log_tail(self) -> tuple[str, ...]:
        return self.inner.log_tail()

    def memory_bytes(self) -> int | None:
        return self.inner.memory_bytes()

    # -- one answer

    async def _off_loop(self, render: Callable[..., str], *data: Any, is_large: bool = False) -> str:
        """In a thread, where it may take more than a moment."""
        return await asyncio.to_thread(render, *data) if is_large or self._is_foreign else render(*data)

    @property
    def _has_suffix(self) -> bool:
        return isinstance(self._template, ChatTemplate) and self._template.has_suffix

    async def _answer(self, request: ChatRequest) -> AsyncGenerator[Batch, None]:
        prompt = await self.render(request)
        answer: EventStream
        if must_call(request.tool_choice):
            held = held_to_call(request, used_tools(request))
            answer = calls_of(self.inner.complete(_completion(held, prompt, held.format)), driver=self.plan.driver)
        elif request.format is not None and self._thinks(request, prompt):
            answer = self._thought_first(request, prompt)
        else:
            answer = self._read(request, prompt, format=request.format)
        async with aclosing(answer):
            async for batch in answer:
                yield batch

    def _thinks(self, request: ChatRequest, prompt: str) -> bool:
        marks = self.template.marks.thinking
        is_asked = request.thinking is None or request.thinking.enabled
        return marks is not None and (is_asked or prompt.rstrip().endswith(marks[0]))

    async def _read(
        self, request: ChatRequest, prompt: str, *, format: OutputFormat | None
    ) -> AsyncGenerator[Batch, None]:
        reader = self._reader(request, prompt)
        async with aclosing(self.inner.complete(_completion(request, prompt, format))) as stream:
            async for batch in stream:
                if found := reader.read(batch):
                    yield found

    async def _thought_first(self, request: ChatRequest, prompt: str) -> AsyncGenerator[Batch, None]:
        """What is thought follows no format: when the answer begins, it is asked for anew, from there on and held to
        the format."""
        reader = self._reader(request, prompt)
        raw, pieces = "", 0
        async with aclosing(self.inner.complete(_completion(request, prompt, None))) as stream:
            async for batch in stream:
                raw += "".join(event.text for event in batch if isinstance(event, Text))
                pieces += sum(isinstance(event, Text) for event in batch)
                found = tuple(event for event in reader.read(batch) if not isinstance(event, Text))
                if found and isinstance(found[-1], Finish):
                    if found[-1].reasons != ("stop",):
                        yield found
                        return
                    found = found[:-1]
                if found:
                    yield found
                if reader.has_answer:
                    break
        thought = raw[: reader.consumed]
        used = await self._count(thought, pieces)
        rest = msgspec.structs.replace(request, sampling=_less(request.sampling, used))
        async with aclosing(self._read(rest, prompt + thought, format=request.format)) as stream:
            async for batch in stream:
                yield (*batch[:-1], _with(used, batch[-1])) if isinstance(batch[-1], Finish) else batch

    async def _count(self, text: str, pieces: int) -> int:
        """The tokens of what was thought; engines send a piece for each, where they don't count."""
        return len(await self.inner.tokenize(text)) if self.capabilities.tokenize and text else pieces

    def _reader(self, request: ChatRequest, prompt: str) -> AnswerReader:
        names = frozenset(tool.name for tool in used_tools(request))
        return AnswerReader(self.template.marks, tools=names, prompt=prompt)


def _sizes(request: ChatRequest) -> Iterator[int]:
    yield from (len(message.text) for message in request.messages)
    yield from (len(tool.parameters or "") for tool in request.tools)


def _capabilities(inner: Capabilities, template: ChatTemplate | TemplateError) -> Capabilities:
    """Sound has no way into a raw prompt."""
    if isinstance(template, TemplateError):
        return msgspec.structs.replace(inner, chat=inner.complete, tools=False, thinking=False, audio=False)
    return msgspec.structs.replace(
        inner,
        chat=inner.complete,
        tools=inner.complete and template.has_tools,
        thinking=inner.complete and template.has_thinking,
        infill=inner.infill or (inner.complete and template.has_suffix),
        audio=False,
    )


def _completion(request: ChatRequest, prompt: str, format: OutputFormat | None) -> CompletionRequest:
    images = tuple(part for message in request.messages for part in message.content if isinstance(part, ImagePart))
    return CompletionRequest(prompt, request.sampling, images=images, format=format, logprobs=request.logprobs)


def _less(sampling: Sampling, used: int) -> Sampling:
    if sampling.max_tokens is None:
        return sampling
    return msgspec.structs.replace(sampling, max_tokens=max(0, sampling.max_tokens - used))


def _with(used: int, finish: Finish) -> Finish:
    """`used` tokens of the second prompt were made by the model."""
    usage = finish.usage
    prompt = max(0, usage.prompt - used)
    counted = Usage(prompt, usage.completion + used, min(usage.cached, prompt))
    return msgspec.structs.replace(finish, usage=counted)
