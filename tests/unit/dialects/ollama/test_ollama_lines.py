"""Lines of a stream: what is in them, byte for byte."""

from __future__ import annotations

import json

import pytest

from oprel.dialects.ollama import lines
from oprel.dialects.ollama.lines import CHAT, GENERATE, Collected, Lines
from oprel.schema import Finish, Text, TokenLogprob, ToolCallDelta, TopLogprob, Usage, events

FINISH = Finish(("stop",), Usage(1, 2))


@pytest.fixture(autouse=True)
def fixed_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "created_at", lambda: "T")


def test_the_lines_of_generate() -> None:
    stream = Lines(GENERATE, "m<1>")
    assert stream.encode((Text("a <b> & c\u2028"), events.Thinking("hm"))) == (
        b'{"model":"m\\u003c1\\u003e","created_at":"T","response":"a \\u003cb\\u003e \\u0026 c\\u2028","done":false}\n'
        b'{"model":"m\\u003c1\\u003e","created_at":"T","response":"","thinking":"hm","done":false}\n'
    )


def test_the_lines_of_chat() -> None:
    stream = Lines(CHAT, "m")
    assert (
        stream.encode((Text("é"), events.Thinking("hm")))
        == (
            '{"model":"m","created_at":"T","message":{"role":"assistant","content":"é"},"done":false}\n'
            '{"model":"m","created_at":"T","message":{"role":"assistant","content":"","thinking":"hm"},"done":false}\n'
        ).encode()
    )


def test_what_says_nothing_has_no_line() -> None:
    stream = Lines(CHAT, "m", hide_thinking=True)
    assert (
        stream.encode((Text(""), events.Thinking("hidden"), events.Progress("prompt"), events.Warning("a", "b"))) == b""
    )
    assert stream.finish is None
    assert stream.encode((FINISH, Text("after the end"))) == b""
    assert stream.finish is FINISH


def test_logprobs_ride_on_the_line_of_their_text_even_when_that_is_empty() -> None:
    token = TokenLogprob("é", -0.5, (195, 169), (TopLogprob("é", -0.5, (195, 169)), TopLogprob("x", 1e-9, (120,))))
    (line,) = Lines(CHAT, "m").encode((Text("", logprobs=(token,)),)).splitlines()
    assert json.loads(line)["logprobs"] == [
        {
            "token": "é",
            "logprob": -0.5,
            "bytes": [195, 169],
            "top_logprobs": [
                {"token": "é", "logprob": -0.5, "bytes": [195, 169]},
                {"token": "x", "logprob": 0.0, "bytes": [120]},
            ],
        }
    ]


def test_tool_calls_are_put_together_from_interleaved_pieces() -> None:
    stream = Lines(CHAT, "m")
    stream.encode((ToolCallDelta(0, '{"b":', id="call_1", name="f"), ToolCallDelta(1, "", id="abc", name="g")))
    stream.encode((ToolCallDelta(0, '1,"a":2}'), FINISH))
    told = json.loads(stream.tool_calls())
    first, second = told["message"]["tool_calls"]
    assert told["message"]["content"] == ""
    assert told["done"] is False
    assert first == {"id": "call_1", "function": {"index": 0, "name": "f", "arguments": {"b": 1, "a": 2}}}
    assert list(first["function"]["arguments"]) == ["b", "a"]
    assert second["function"] == {"index": 1, "name": "g", "arguments": {}}
    assert second["id"].startswith("call_")
    assert len(second["id"]) == 13


def test_a_call_that_was_cut_off_stays_visible_as_text() -> None:
    collected = Collected()
    collected.add((ToolCallDelta(0, '{"a":', id="call_1", name="f"), FINISH))
    assert collected.calls.finished() == ((), '{"a":')
