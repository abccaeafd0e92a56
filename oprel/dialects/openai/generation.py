"""`/v1/chat/completions` and `/v1/completions`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

from oprel.dialects.body import off_loop, read
from oprel.dialects.delivery import muted, streamed, unknown_fields, waiting, whole, with_reasoning_counted
from oprel.dialects.exchange import Answer
from oprel.dialects.loading import Loading
from oprel.dialects.openai.answers import ChatStream, CompletionStream, chat_answer, completion_answer, label
from oprel.dialects.openai.requests import (
    Prompts,
    chat_request,
    completion_requests,
    include_usage,
    keep_alive_s,
)
from oprel.dialects.openai.settling import settled
from oprel.dialects.openai.wire import ChatBody, CompletionBody
from oprel.drivers import EventStream
from oprel.errors import UnsupportedError
from oprel.scheduler.fanout import Choices
from oprel.schema import ChatRequest, CompletionRequest

if TYPE_CHECKING:
    from oprel.dialects.services import Services
    from oprel.scheduler import Lease

__all__ = ["chat_completions", "completions", "generating"]

Generating = ChatRequest | CompletionRequest


async def chat_completions(services: Services, raw: bytes, client: str) -> Answer:
    found = await read(raw, ChatBody)
    body = found.body
    asked = await off_loop(raw, partial(chat_request, body))
    n = body.n or 1
    warnings = (*unknown_fields(found.unknown), *asked.warnings)
    if body.stream:
        yield waiting(services.settings.ping_interval)
    keep_alive = keep_alive_s(body.keep_alive)
    async with generating(
        services, (asked.request,), n, loading=asked.loading, keep_alive=keep_alive, client=client
    ) as (lease, stream):
        named = label("chatcmpl", body.model, lease.plan)
        if body.stream:
            encoder = ChatStream(named, choices=n, include_usage=include_usage(body))
            answer = streamed(stream, encoder, lease, warnings)
        else:
            encode = partial(chat_answer, label=named, choices=n, has_logprobs=bool(body.logprobs))
            answer = whole(stream, encode, lease, warnings)
        async with aclosing(answer):
            async for item in answer:
                yield item


async def completions(services: Services, raw: bytes, client: str) -> Answer:
    found = await read(raw, CompletionBody)
    body = found.body
    asked = await off_loop(raw, partial(completion_requests, body))
    choices = len(asked.requests) * asked.n
    warnings = (*unknown_fields(found.unknown), *asked.warnings)
    if body.stream:
        yield waiting(services.settings.ping_interval)
    keep_alive = keep_alive_s(body.keep_alive)
    async with generating(
        services, asked.requests, asked.n, loading=asked.loading, keep_alive=keep_alive, client=client
    ) as (lease, stream):
        named = label("cmpl", body.model, lease.plan)
        prefixes = await _echoes(asked, lease)
        if body.stream:
            encoder = CompletionStream(
                named,
                choices=choices,
                include_usage=include_usage(body),
                prefixes=prefixes,
                logprobs=body.logprobs,
            )
            answer = streamed(stream, encoder, lease, warnings)
        else:
            encode = partial(completion_answer, label=named, choices=choices, prefixes=prefixes, logprobs=body.logprobs)
            answer = whole(stream, encode, lease, warnings)
        async with aclosing(answer):
            async for item in answer:
                yield item


@asynccontextmanager
async def generating(
    services: Services,
    requests: tuple[Generating, ...],
    n: int = 1,
    *,
    loading: Loading,
    keep_alive: float | None,
    client: str,
    on_settled: Callable[[Generating], None] | None = None,
) -> AsyncGenerator[tuple[Lease, EventStream], None]:
    """A lease, and the events of all choices: `n` for each request. `on_settled` learns what each engine is sent."""

    def source() -> AbstractAsyncContextManager[Lease]:
        return services.scheduler.lease(
            loading.name, need=need, load=loading.load, keep_alive=keep_alive, client=client
        )

    def prepare(request: Generating, lease: Lease) -> Generating:
        request = settled(
            request,
            name=loading.name,
            model=lease.model,
            driver=lease.plan.driver,
            capabilities=lease.engine.capabilities,
            time_limit_s=services.settings.request_time_limit,
        )
        if on_settled is not None:
            on_settled(request)
        return request

    need = "chat" if isinstance(requests[0], ChatRequest) else "complete"
    async with Choices(source, requests, n, prepare=prepare) as choices:
        stream = choices.events()
        if requests[0].sampling.max_tokens == 0:
            stream = muted(stream)
        async with aclosing(with_reasoning_counted(stream, choices.lease.engine)) as counted:
            yield choices.lease, counted


async def _echoes(asked: Prompts, lease: Lease) -> tuple[str, ...]:
    """What goes before each choice: its prompt, where `echo` asks for it."""
    texts = [await _text(request, lease) if asked.echo else "" for request in asked.requests]
    return tuple(text for text in texts for _ in range(asked.n))


async def _text(request: CompletionRequest, lease: Lease) -> str:
    if isinstance(request.prompt, str):
        return request.prompt
    if not lease.engine.capabilities.tokenize:
        raise UnsupportedError(
            f"'echo' of token ids is not supported by the driver {lease.plan.driver!r}: send the prompt as text",
            capability="tokenize",
            param="echo",
        )
    return await lease.engine.detokenize(request.prompt)
