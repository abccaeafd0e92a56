"""Streams and whole answers tell the same, however an engine cuts its thinking, text and arguments."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oprel.dialects.anthropic.answers import Label, MessageStream, message_answer
from oprel.errors import EngineFailedError
from oprel.schema import Event, Finish, Progress, Text, ToolCallDelta, Usage
from oprel.schema.events import Thinking
from oprel.testing import specs

LABEL = Label("msg_1", "tiny", "scripted", max_tokens=100, context_tokens=4096, shows_thinking=True)
END = Finish(("stop",), Usage(7, 3, 2))


def decoded(data: bytes) -> list[Any]:
    pieces = [piece.split("\n") for piece in data.decode().split("\n\n") if piece]
    found = [json.loads(line.removeprefix("data: ")) for _, line in pieces]
    assert [name for name, _ in pieces] == [f"event: {event['type']}" for event in found]
    for event in found:
        specs.validate_event("anthropic", "/v1/messages", "POST", event)
    return found


def streamed(batches: list[tuple[Event, ...]]) -> list[Any]:
    encoder = MessageStream(LABEL)
    return decoded(encoder.start() + b"".join(encoder.encode(batch) for batch in batches))


def whole(events: list[Event]) -> Any:
    answer = json.loads(message_answer(events, LABEL))
    specs.validate("anthropic", "/v1/messages", "POST", 200, answer)
    return answer


def accumulated(found: list[Any]) -> Any:
    """What a client makes of a stream; checks that blocks open and close one after another."""
    message: dict[str, Any] = {}
    arguments = ""
    is_open = False
    for event in found:
        match event["type"]:
            case "message_start":
                assert not message
                message = event["message"]
            case "content_block_start":
                assert not is_open and event["index"] == len(message["content"])
                is_open, arguments = True, ""
                message["content"].append(event["content_block"])
            case "content_block_delta":
                assert is_open and event["index"] == len(message["content"]) - 1
                block, delta = message["content"][-1], event["delta"]
                match delta["type"]:
                    case "text_delta":
                        block["text"] += delta["text"]
                    case "thinking_delta":
                        block["thinking"] += delta["thinking"]
                    case "signature_delta":
                        block["signature"] = delta["signature"]
                    case "input_json_delta":
                        arguments += delta["partial_json"]
            case "content_block_stop":
                assert is_open and event["index"] == len(message["content"]) - 1
                is_open = False
                if message["content"][-1]["type"] == "tool_use":
                    message["content"][-1]["input"] = json.loads(arguments or "{}")
            case "message_delta":
                message |= {**event["delta"], "usage": event["usage"]}
    assert not is_open and found[-1]["type"] == "message_stop"
    return message


def cut(text: str, at: list[int]) -> list[str]:
    edges = [0, *sorted({edge % (len(text) + 1) for edge in at}), len(text)]
    return [text[start:end] for start, end in pairwise(edges)]


_TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
_ARGUMENTS = st.dictionaries(_TEXT, st.integers() | _TEXT | st.lists(st.booleans(), max_size=2), max_size=3)
_CUTS = st.lists(st.integers(0, 40), max_size=5)
_PARTS = st.lists(
    st.tuples(st.sampled_from(["text", "thinking", "call"]), _TEXT, _ARGUMENTS, _CUTS), min_size=0, max_size=5
)


def events_of(parts: list[tuple[str, str, dict[str, Any], list[int]]]) -> list[Event]:
    found: list[Event] = []
    for number, (kind, text, arguments, cuts) in enumerate(parts):
        if kind == "text":
            found += [Text(piece) for piece in cut(text, cuts)]
        elif kind == "thinking":
            found += [Thinking(piece) for piece in cut(text, cuts)]
        else:
            pieces = cut(json.dumps(arguments, ensure_ascii=False), cuts)
            found.append(ToolCallDelta(number, pieces[0], id=f"call_{number}", name="f"))
            found += [ToolCallDelta(number, piece) for piece in pieces[1:]]
    return found


@given(_PARTS, st.lists(st.integers(0, 30), max_size=8))
def test_a_stream_comes_to_the_whole_answer_however_it_is_cut(parts: Any, batches: list[int]) -> None:
    events = [Progress("prompt", 7, 7), *events_of(parts), END]
    edges = [0, *sorted({edge % (len(events) + 1) for edge in batches}), len(events)]
    cut_up = [tuple(events[start:end]) for start, end in pairwise(edges) if end > start]
    assert accumulated(streamed(cut_up)) == whole(events)


def test_a_prompt_whose_length_is_known_is_told_at_the_start() -> None:
    start = streamed([(Progress("prompt", 3, 9), Text("a")), (END,)])[0]
    assert start["message"]["usage"]["input_tokens"] == 9


def test_a_call_without_arguments_takes_nothing() -> None:
    (block,) = whole([ToolCallDelta(0, "", id="c", name="f"), END])["content"]
    assert block == {"type": "tool_use", "id": "c", "name": "f", "input": {}}


def test_a_call_without_an_id_gets_one() -> None:
    (block,) = whole([ToolCallDelta(0, "{}", name="f"), END])["content"]
    assert block["id"].startswith("toolu_")


def test_a_call_that_the_limit_cut_off_is_left_out() -> None:
    """Nobody should act on half of it."""
    answer = whole([Text("so"), ToolCallDelta(0, '{"a": ', id="c", name="f"), Finish(("length",), Usage(1, 100))])
    assert [block["type"] for block in answer["content"]] == ["text"]
    assert answer["stop_reason"] == "max_tokens"


def test_arguments_that_are_no_object_are_a_failure() -> None:
    with pytest.raises(EngineFailedError, match="'f'"):
        message_answer([ToolCallDelta(0, "[1]", id="c", name="f"), END], LABEL)


def test_a_call_that_comes_back_after_another_is_a_failure() -> None:
    calls = [ToolCallDelta(number, "{}", id=str(number), name="f") for number in (0, 1)]
    with pytest.raises(EngineFailedError, match="another"):
        MessageStream(LABEL).encode((*calls, ToolCallDelta(0, "{}")))
