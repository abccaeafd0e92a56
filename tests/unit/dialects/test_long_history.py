"""A conversation of 1,000 messages costs a bounded amount of work for each message before an engine sees it.

Counted in calls of functions, which are the same on every machine, and not in milliseconds, which aren't.
"""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
from support.long_history import PATHS, body, translated

from oprel.drivers.upstream.quirks import Quirks
from oprel.drivers.upstream.writing import RequestWriter
from oprel.schema import ChatRequest

# What a message takes today, and half as much again.
MOST_CALLS = {"/v1/chat/completions": 38, "/v1/responses": 54, "/v1/messages": 44, "/api/chat": 57}


def calls(work: Callable[[], object]) -> int:
    """How many functions are called, Python's own in C included."""
    count = 0

    def note(frame: FrameType, event: str, arg: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    gc.disable()
    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)
        gc.enable()
    return count


@pytest.mark.parametrize("path", PATHS)
def test_each_message_is_read_and_translated_in_few_calls(path: str) -> None:
    counted = {}
    for count in (1, 100, 1000):
        raw = json.dumps(body(path, count)).encode()
        translated[path](raw)  # what is made once and kept
        counted[count] = calls(lambda raw=raw: translated[path](raw))  # type: ignore[misc]
    each = (counted[1000] - counted[1]) / 999
    assert each <= MOST_CALLS[path], counted
    assert counted[1000] - counted[100] <= 1.1 * 9.1 * (counted[100] - counted[1]), "more for each, the longer it is"


def test_each_message_is_written_in_few_calls() -> None:
    writer = RequestWriter(Quirks(), context_tokens=100_000, can_think=False)
    counted = {}
    for count in (1, 1000):
        request: ChatRequest = translated["/api/chat"](json.dumps(body("/api/chat", count)).encode())
        counted[count] = calls(lambda request=request: writer.chat(request))  # type: ignore[misc]
    assert (counted[1000] - counted[1]) / 999 <= 15, counted


@pytest.mark.parametrize("path", PATHS)
def test_no_message_is_lost(path: str) -> None:
    request = translated[path](json.dumps(body(path, 1000)).encode())
    assert [message.text[:4] for message in request.messages[-2:]] == ["998:", "999:"]
    assert len(request.messages) == 1000
