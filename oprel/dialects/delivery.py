"""From an engine's events to the bytes of an answer, whole or streamed.

Nothing is sent before the engine has begun to answer: what fails until then has its own status code.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import aclosing
from time import monotonic
from typing import Protocol

import msgspec

from oprel.dialects.exchange import Answer, Head, Waiting
from oprel.dialects.headers import Headers, Told, json_headers, oprel_headers, warning_header
from oprel.drivers import Engine, EventStream
from oprel.errors import EngineFailedError
from oprel.schema import Event, Finish, Progress, Text, ToolCallDelta, Usage, events

__all__ = [
    "SSE",
    "Encoder",
    "beginning",
    "check_finished",
    "late",
    "muted",
    "streamed",
    "unknown_fields",
    "waiting",
    "warnings_of",
    "whole",
    "with_reasoning_counted",
]

SSE: Headers = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
)
_QUIET = (Progress, events.Warning)


class Encoder(Protocol):
    """`encode` of the tuple with the Finish ends the stream."""

    def start(self) -> bytes: ...

    def encode(self, events: tuple[Event, ...], /) -> bytes: ...


def waiting(every_s: float) -> Waiting:
    """What an answer that will be streamed says first, so that a client isn't left without a sign of life."""
    return Waiting(Head(200, SSE), every_s)


async def streamed(
    stream: AsyncIterator[tuple[Event, ...]], encoder: Encoder, told: Told, warnings: Iterable[events.Warning]
) -> Answer:
    since = monotonic()
    held = await beginning(stream)
    first_s = monotonic() - since
    yield Head(200, SSE + oprel_headers(told, (*warnings, *warnings_of(held)), first_s=first_s))
    yield encoder.start() + encoder.encode(held)
    last = held
    async for batch in stream:
        last = batch
        if chunk := encoder.encode(batch):
            yield late(batch) + chunk if type(batch[-1]) is Finish else chunk
    check_finished(last, told)


def late(batch: tuple[Event, ...]) -> bytes:
    """What was lost after the headers had gone out, as comments, which no client shows. It comes with the end: the
    limit of time that cut an answer."""
    lines = [b": %s: %s\n" % warning_header(warning) for warning in warnings_of(batch)]
    return b"".join(lines) + b"\n" if lines else b""


async def whole(
    stream: AsyncIterator[tuple[Event, ...]],
    encode: Callable[[Iterable[Event]], bytes],
    told: Told,
    warnings: Iterable[events.Warning],
) -> Answer:
    since = monotonic()
    collected = list(await beginning(stream))
    first_s = monotonic() - since
    async for batch in stream:
        collected += batch
    check_finished(tuple(collected), told)
    body = encode(collected)
    yield Head(200, json_headers(body) + oprel_headers(told, (*warnings, *warnings_of(collected)), first_s=first_s))
    yield body


async def muted(stream: EventStream) -> EventStream:
    """The same answer without its text, for `max_tokens: 0`: the prompt was read and is counted."""
    async with aclosing(stream):
        async for batch in stream:
            kept = tuple(
                _muted(event) for event in batch if not isinstance(event, Text | events.Thinking | ToolCallDelta)
            )
            if kept:
                yield kept


async def with_reasoning_counted(stream: EventStream, engine: Engine) -> EventStream:
    """The same answer, the tokens of its thinking counted by the engine's tokenizer where the engine didn't count them
    apart; not known where it has none."""
    thoughts: dict[int, list[str]] = {}
    async with aclosing(stream):
        async for batch in stream:
            for event in batch:
                if type(event) is events.Thinking:
                    thoughts.setdefault(event.index, []).append(event.text)
            finish = batch[-1] if batch else None
            if isinstance(finish, Finish) and finish.usage.reasoning is None:
                usage = await _reasoning_counted(finish.usage, thoughts, engine)
                batch = (*batch[:-1], msgspec.structs.replace(finish, usage=usage))
            yield batch


async def _reasoning_counted(usage: Usage, thoughts: dict[int, list[str]], engine: Engine) -> Usage:
    if thoughts and not engine.capabilities.tokenize:
        return usage
    counts = [len(await engine.tokenize("".join(texts))) for texts in thoughts.values()]
    return msgspec.structs.replace(usage, reasoning=min(sum(counts), usage.completion))


def unknown_fields(paths: Iterable[str]) -> tuple[events.Warning, ...]:
    return tuple(events.Warning("unknown_field", f"'{path}' is not known and was ignored") for path in paths)


async def beginning(stream: AsyncIterator[tuple[Event, ...]]) -> tuple[Event, ...]:
    """All events up to the first that is part of the answer, and what came with it."""
    held: tuple[Event, ...] = ()
    async for batch in stream:
        held += batch
        if not all(isinstance(event, _QUIET) for event in batch):
            break
    return held


def warnings_of(held: Iterable[Event]) -> tuple[events.Warning, ...]:
    return tuple(event for event in held if isinstance(event, events.Warning))


def _muted(event: Event) -> Event:
    if not isinstance(event, Finish):
        return event
    usage = msgspec.structs.replace(event.usage, completion=0)
    return msgspec.structs.replace(event, reasons=("length",) * len(event.reasons), usage=usage)


def check_finished(last: tuple[Event, ...], told: Told) -> None:
    if not last or not isinstance(last[-1], Finish):
        raise EngineFailedError("the engine's answer broke off before its end: ask again", driver=told.plan.driver)
