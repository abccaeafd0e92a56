"""From an engine's events to an answer, streamed or whole: what `/api/generate` and `/api/chat` share."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Literal

from oprel.dialects.exchange import Answer, Head
from oprel.dialects.headers import Headers, Told, oprel_headers
from oprel.dialects.ollama.errors import JSON, OllamaErrors
from oprel.dialects.ollama.lines import Collected, DebugInfo, Final, Lines, Metrics, Shape
from oprel.dialects.services import Services
from oprel.drivers import Engine, EventStream
from oprel.errors import EngineFailedError
from oprel.schema import Event, Finish, FinishReason, LoadOptions, Sampling, events

__all__ = ["Begun", "Job", "Turn", "begun", "performed", "whole"]

_NDJSON = ((b"content-type", b"application/x-ndjson"),)
_DONE_REASONS: dict[FinishReason, str] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "stop",
    "content_filter": "stop",
}

_PLANNED = LoadOptions()
_UNSET = Sampling()

ContextOf = Callable[[str], Awaitable[Sequence[int]]]


@dataclass(frozen=True, slots=True)
class Begun:
    """A stream whose first batch is here: from now on nothing but the engine itself can fail."""

    first: tuple[Event, ...]
    rest: EventStream
    warnings: tuple[events.Warning, ...]


@dataclass(slots=True)
class Turn:
    """One request on its way. `model` is what the client wrote; times are of the monotonic clock; `context_of` makes
    the `context` of the answer from the text that was generated; `images` counts those of the request; `asked` is what
    its options said of sampling, before any default; `is_thinking_asked`: the request itself said whether to think."""

    shape: Shape
    model: str
    stream: bool
    started_ns: int = field(default_factory=time.monotonic_ns)
    assigned_ns: int = 0
    first_ns: int = 0
    hide_thinking: bool = False
    is_thinking_asked: bool = False
    warnings: list[events.Warning] = field(default_factory=list)
    context_of: ContextOf | None = None
    images: int = 0
    asked: Sampling = _UNSET


@dataclass(frozen=True, slots=True)
class Job:
    """What a request comes to. `name` is for the scheduler; `open` begins the engine's stream (None: only load the
    model); `render` is given when the prompt is to be shown instead."""

    turn: Turn
    name: str
    need: Literal["unload", "load", "chat", "complete"]
    load: LoadOptions = _PLANNED
    keep_alive: float | None = None
    client: str = ""
    open: Callable[[Engine], Awaitable[Begun]] | None = None
    render: Callable[[Engine], Awaitable[str]] | None = None


async def begun(stream: EventStream) -> Begun:
    """Waits for the first batch that says more than progress; the stream is closed when there is none."""
    told: list[events.Warning] = []
    try:
        async for batch in stream:
            told += (event for event in batch if isinstance(event, events.Warning))
            if any(not isinstance(event, events.Warning | events.Progress) for event in batch):
                return Begun(batch, stream, tuple(told))
        raise EngineFailedError("the engine ended without an answer: try again")
    except BaseException:
        await stream.aclose()
        raise


def whole(body: bytes, headers: Headers = ()) -> tuple[Head, bytes]:
    """A single JSON object."""
    return Head(200, ((b"content-type", JSON), (b"content-length", b"%d" % len(body)), *headers)), body


async def performed(services: Services, errors: OllamaErrors, prepare: Callable[[], Awaitable[Job]]) -> Answer:
    job = await prepare()
    turn = job.turn
    if job.need == "unload":
        await services.scheduler.unload(job.name)
        for part in whole(Final(model=turn.model, done_reason="unload").encode(turn.shape)):
            yield part
        return
    async with services.scheduler.lease(
        job.name, need=job.need, load=job.load, keep_alive=job.keep_alive, client=job.client
    ) as lease:
        turn.assigned_ns = time.monotonic_ns()
        if job.open is None:
            final = Final(model=turn.model, done_reason="load")
            for part in whole(final.encode(turn.shape), oprel_headers(lease, turn.warnings)):
                yield part
            return
        if job.render is not None:
            final = Final(model=turn.model, done=False, debug=DebugInfo(await job.render(lease.engine), turn.images))
            for part in whole(final.encode(turn.shape), oprel_headers(lease, turn.warnings)):
                yield part
            return
        errors.is_streaming = turn.stream
        opened = await job.open(lease.engine)
        turn.first_ns = time.monotonic_ns()
        turn.warnings += opened.warnings
        answer = _streamed(turn, opened, lease) if turn.stream else _collected(turn, opened, lease)
        async with aclosing(opened.rest), aclosing(answer):
            async for item in answer:
                yield item


def _headers(turn: Turn, lease: Told) -> Headers:
    return oprel_headers(lease, turn.warnings, first_s=(turn.first_ns - turn.assigned_ns) / 1e9)


async def _streamed(turn: Turn, opened: Begun, lease: Told) -> Answer:
    """What is lost after the headers have gone out is told by the last line alone."""
    lines = Lines(turn.shape, turn.model, hide_thinking=turn.hide_thinking, keep_text=turn.context_of is not None)
    yield Head(200, (*_NDJSON, *_headers(turn, lease)))
    written = lines.encode(opened.first)
    if lines.finish is None:
        if written:
            yield written
        async for batch in opened.rest:
            written = lines.encode(batch)
            if lines.finish is not None:
                break
            if written:
                yield written
    finish = _ended(lines.finish)
    written += lines.tool_calls()
    context: Sequence[int] = ()
    if turn.context_of is not None:
        if written:
            yield written
            written = b""
        context = await turn.context_of("".join(lines.text))
    final = Final(
        model=turn.model,
        done_reason=_DONE_REASONS[finish.reasons[0]],
        context=context,
        metrics=_metrics(turn, finish),
        warnings=(*lease.warnings, *turn.warnings, *lines.warnings),
    )
    yield written + final.encode(turn.shape) + b"\n"


async def _collected(turn: Turn, opened: Begun, lease: Told) -> Answer:
    collected = Collected(hide_thinking=turn.hide_thinking)
    collected.add(opened.first)
    if collected.finish is None:
        async for batch in opened.rest:
            collected.add(batch)
            if collected.finish is not None:
                break
    finish = _ended(collected.finish)
    turn.warnings += collected.warnings
    calls, broken = collected.calls.finished()
    text = "".join(collected.text) + broken
    final = Final(
        model=turn.model,
        text=text,
        thinking="".join(collected.thinking),
        done_reason=_DONE_REASONS[finish.reasons[0]],
        context=() if turn.context_of is None else await turn.context_of(text),
        metrics=_metrics(turn, finish),
        tool_calls=calls,
        logprobs=collected.logprobs,
        warnings=(*lease.warnings, *turn.warnings),
    )
    head, body = whole(final.encode(turn.shape), _headers(turn, lease))
    yield head
    yield body


def _ended(finish: Finish | None) -> Finish:
    if finish is None:
        raise EngineFailedError("the engine ended before its answer did: try again")
    return finish


def _metrics(turn: Turn, finish: Finish) -> Metrics:
    """The engine's own timings where it tells them, else what was seen from here."""
    now = time.monotonic_ns()
    prompt_s, completion_s = finish.timings.prompt_s, finish.timings.completion_s
    prompt_ns = turn.first_ns - turn.assigned_ns if prompt_s is None else round(prompt_s * 1e9)
    completion_ns = now - turn.first_ns if completion_s is None else round(completion_s * 1e9)
    return Metrics(
        total_duration=now - turn.started_ns,
        load_duration=max(1, turn.assigned_ns - turn.started_ns),
        prompt_eval_count=finish.usage.prompt,
        prompt_eval_duration=max(1, prompt_ns) if finish.usage.prompt else 0,
        eval_count=finish.usage.completion,
        eval_duration=max(1, completion_ns) if finish.usage.completion else 0,
    )
