"""What several rules of the contract check, and how they ask."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from typing import Any

import msgspec
import pytest

from oprel.drivers import (
    Engine,
    EventStream,
)
from oprel.schema import (
    Event,
    Finish,
    Text,
    ToolCallDelta,
    events,
)
from oprel.testing.subject import Answer, chat_request, completion_request

__all__ = ["SOON_S", "answering", "check_answer", "longest_standstill"]

SOON_S = 2.0
"""The contract says within a second; twice that, for a machine that has other things to do."""
_EVENTS = (Text, events.Thinking, ToolCallDelta, events.Warning, events.Progress, Finish)


def check_answer(answer: Answer) -> None:
    assert answer.batches
    assert all(isinstance(batch, tuple) and batch for batch in answer.batches), "tuples that aren't empty"
    assert all(isinstance(event, _EVENTS) for event in answer.events)
    finishes = [event for event in answer.events if isinstance(event, Finish)]
    assert len(finishes) == 1, "exactly one Finish"
    assert answer.events[-1] is finishes[0], "the Finish is the last event"
    assert len(finishes[0].reasons) == 1, "one choice, one reason"
    for event in answer.events:
        assert getattr(event, "index", 0) == 0, "an engine answers one choice, and its index is 0"
        if isinstance(event, Text | events.Thinking):
            event.text.encode()  # fails on half a code point
            assert not event.text.endswith("\N{REPLACEMENT CHARACTER}"), "a code point that was cut in two"
    _check_tool_calls(answer.events)


def _check_tool_calls(answered: list[Event]) -> None:
    """The first delta of a call names it, and its pieces are one JSON object."""
    calls: dict[int, list[ToolCallDelta]] = {}
    for event in answered:
        if isinstance(event, ToolCallDelta):
            calls.setdefault(event.call, []).append(event)
    for deltas in calls.values():
        assert deltas[0].id
        assert deltas[0].name
        assert isinstance(msgspec.json.decode("".join(delta.arguments for delta in deltas)), dict)


def answering(engine: Engine, kind: str, text: str = "Once upon a time", *, max_tokens: int = 12) -> EventStream:
    if not getattr(engine.capabilities, kind):
        pytest.skip(f"the engine can't: {kind}")
    if kind == "chat":
        return engine.chat(chat_request(text, max_tokens=max_tokens))
    return engine.complete(completion_request(text, max_tokens=max_tokens))


async def longest_standstill(work: Coroutine[Any, Any, Any]) -> float:
    """For how long, in seconds, nothing else could run on the loop while `work` did."""
    longest = 0.0

    async def beat() -> None:
        nonlocal longest
        while True:
            began = time.perf_counter()
            await asyncio.sleep(0.01)
            longest = max(longest, time.perf_counter() - began)

    beating = asyncio.create_task(beat())
    await asyncio.sleep(0)
    try:
        await work
        await asyncio.sleep(0.02)  # one beat more, so that a standstill at the end counts
    finally:
        beating.cancel()
    return longest
