"""From an engine's events to the bytes of an answer, whole or streamed.

Nothing is sent before the engine has begun to answer: what fails until then has its own status code.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import aclosing
from typing import Protocol

import msgspec

from oprel.dialects.exchange import Answer, Head
from oprel.dialects.headers import Headers, Told, json_headers, oprel_headers
from oprel.drivers import EventStream
from oprel.errors import EngineFailedError
from oprel.schema import Event, Finish, Progress, Text, ToolCallDelta, events

__all__ = ["Encoder", "muted", "streamed", "unknown_fields", "whole"]

_SSE: Headers = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
)
_QUIET = (Progress, events.Warning)


class Encoder(Protocol):
    """`encode` of the tuple with the Finish ends the stream."""

    def start(self) -> bytes: ...

    def encode(self, events: tuple[Event, ...], /) -> bytes: ...


async def streamed(
    stream: AsyncIterator[tuple[Event, ...]], encoder: Encoder, told: Told, warnings: Iterable[events.Warning]
) -> Answer:
    held = await _beginning(stream)
    yield Head(200, _SSE + oprel_headers(told, (*warnings, *_warnings(held))))
    yield encoder.start() + encoder.encode(held)
    last = held
    async for batch in stream:
        last = batch
        if chunk := encoder.encode(batch):
            yield chunk
    _check_finished(last, told)


async def whole(
    stream: AsyncIterator[tuple[Event, ...]],
    encode: Callable[[Iterable[Event]], bytes],
    told: Told,
    warnings: Iterable[events.Warning],
) -> Answer:
    collected: list[Event] = []
    async for batch in stream:
        collected += batch
    _check_finished(tuple(collected), told)
    body = encode(collected)
    yield Head(200, json_headers(body) + oprel_headers(told, (*warnings, *_warnings(collected))))
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


def unknown_fields(paths: Iterable[str]) -> tuple[events.Warning, ...]:
    return tuple(events.Warning("unknown_field", f"'{path}' is not known and was ignored") for path in paths)


async def _beginning(stream: AsyncIterator[tuple[Event, ...]]) -> tuple[Event, ...]:
    """All events up to the first that is part of the answer, and what came with it."""
    held: tuple[Event, ...] = ()
    async for batch in stream:
        held += batch
        if not all(isinstance(event, _QUIET) for event in batch):
            break
    return held


def _warnings(held: Iterable[Event]) -> tuple[events.Warning, ...]:
    return tuple(event for event in held if isinstance(event, events.Warning))


def _muted(event: Event) -> Event:
    if not isinstance(event, Finish):
        return event
    usage = msgspec.structs.replace(event.usage, completion=0)
    return msgspec.structs.replace(event, reasons=("length",) * len(event.reasons), usage=usage)


def _check_finished(last: tuple[Event, ...], told: Told) -> None:
    if not last or not isinstance(last[-1], Finish):
        raise EngineFailedError("the engine's answer broke off before its end: ask again", driver=told.plan.driver)
