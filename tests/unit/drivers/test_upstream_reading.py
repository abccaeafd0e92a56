"""An engine's stream becomes the same events however its bytes are cut."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.http_upstream import DONE, chat_chunk, sse

from oprel.drivers.upstream.failures import Failures
from oprel.drivers.upstream.reading import AnswerReader, ChatReader, NativeReader
from oprel.drivers.upstream.sse import MAX_EVENT_BYTES
from oprel.errors import ContextLengthError, EngineFailedError, InvalidRequestError, OprelError
from oprel.schema import Event, Finish, Progress, Text, Timings, TokenLogprob, ToolCallDelta, TopLogprob, Usage, events

_FAILURES = Failures("llama_cpp", "m:1")
_USAGE = {
    "completion_tokens": 3,
    "prompt_tokens": 32,
    "total_tokens": 35,
    "prompt_tokens_details": {"cached_tokens": 7},
}
_TIMINGS = {"cache_n": 7, "prompt_n": 25, "prompt_ms": 150.0, "predicted_n": 3, "predicted_ms": 20.0}
_ROLE = chat_chunk(delta={"role": "assistant", "content": None})
_END = chat_chunk(finish="stop")
_COUNTS = {**chat_chunk(), "choices": [], "usage": _USAGE, "timings": _TIMINGS}


def chat() -> ChatReader:
    return ChatReader(_FAILURES)


def native() -> NativeReader:
    return NativeReader(_FAILURES)


def read(reader: AnswerReader[Any], data: bytes, cuts: list[int] | None = None) -> list[Event | OprelError]:
    """All events, and last the failure if there was one."""
    edges = [0, *sorted({cut for cut in cuts or [] if 0 < cut < len(data)}), len(data)]
    out: list[Event] = []
    try:
        for start, end in pairwise(edges):
            reader.feed(data[start:end], out)
        reader.end(out)
    except OprelError as failure:
        return [*out, failure]
    return list(out)


def text(found: list[Event | OprelError]) -> str:
    return "".join(event.text for event in found if isinstance(event, Text))


_TOOL_CALL = [
    _ROLE,
    chat_chunk(delta={"reasoning_content": "Hm, "}),
    chat_chunk(delta={"reasoning_content": "wétter"}),
    chat_chunk(
        delta={
            "tool_calls": [
                {"index": 0, "id": "abc", "type": "function", "function": {"name": "weather", "arguments": "{"}}
            ]
        }
    ),
    chat_chunk(delta={"tool_calls": [{"index": 0, "function": {"arguments": '"city":"Zürich"}'}}]}),
    chat_chunk(finish="tool_calls"),
    _COUNTS,
]
_PLAIN = [
    _ROLE,
    *(chat_chunk(piece) for piece in ("Hel", "lo", " 😀", "\n", "\u2028", "data: ", "\\n\\n")),
    _END,
    _COUNTS,
]
_NATIVE = [
    {"content": "", "stop": False, "tokens_evaluated": 7, "prompt_progress": {"total": 7, "cache": 2, "processed": 4}},
    {"index": 0, "content": " 5", "tokens": [1], "stop": False, "tokens_predicted": 1, "tokens_evaluated": 7},
    {"index": 0, "content": "é", "tokens": [2, 3], "stop": False, "tokens_predicted": 3, "tokens_evaluated": 7},
    {
        "content": "",
        "stop": True,
        "stop_type": "word",
        "stopping_word": "7",
        "tokens_predicted": 6,
        "tokens_evaluated": 7,
        "timings": _TIMINGS,
    },
]
_COMMENTS = b":\n\n"
_HALVES = (
    b'data: {"choices":[{"delta":{"content":"a\\ud83d"}}]}\n\n'
    b'data: {"choices":[{"delta":{"content":"\\ude00b"}}]}\n\n'
    b'data: {"choices":[{"delta":{"content":"\xe2\x82"}}]}\n\n'
    b'data: {"choices":[{"delta":{"content":"\xac"}}]}\n\n'
    b'data: {"choices":[{"delta":{"content":"c"}}]}\n\n'
    b'data: {"choices":[{"delta":{"content":"\\ud83d"}}]}\n\n' + sse(_END, _COUNTS) + DONE
)


@pytest.mark.parametrize(
    ("make", "stream"),
    [
        (chat, sse(*_PLAIN) + DONE),
        (chat, sse(*_TOOL_CALL) + DONE),
        (chat, _COMMENTS.join(sse(chunk) for chunk in _PLAIN) + DONE),
        (chat, sse(*_PLAIN, newline=b"\r\n") + b"data: [DONE]\r\n\r\n"),
        (chat, sse(*_PLAIN, newline=b"\r") + b"data: [DONE]\r\r"),
        (chat, b"event: x\nid: 1\n" + sse(*_PLAIN) + b"data:[DONE]\n\n"),
        (chat, _HALVES),
        (chat, sse(_ROLE, chat_chunk("a")) + b"data: {oops\n\n"),
        (chat, sse(_ROLE, chat_chunk("a"), {"error": {"code": 500, "message": "boom", "type": "server_error"}})),
        (chat, sse(_ROLE, chat_chunk("a"))),
        (native, sse(*_NATIVE)),
        (native, sse(*_NATIVE[:2], {"error": {"code": 500, "message": "Context size has been exceeded."}})),
    ],
    ids=[
        "plain", "tool-call", "comments", "crlf", "cr", "other-fields", "half-characters", "garbage", "error",
        "no-finish", "native", "native-error",
    ],
)  # fmt: skip
@given(data=st.data())
def test_split_anywhere(make: Callable[[], AnswerReader[Any]], stream: bytes, data: st.DataObject) -> None:
    whole = read(make(), stream)
    cuts = data.draw(st.lists(st.integers(1, len(stream)), max_size=40))
    pieces = read(make(), stream, cuts)
    assert [*map(repr, pieces)] == [*map(repr, whole)]
    assert [*map(repr, read(make(), stream, list(range(len(stream)))))] == [*map(repr, whole)]


def test_plain_chat() -> None:
    assert read(chat(), sse(*_PLAIN) + DONE) == [
        *(Text(piece) for piece in ("Hel", "lo", " 😀", "\n", "\u2028", "data: ", "\\n\\n")),
        Finish(("stop",), Usage(32, 3, 7), Timings(0.15, 0.02)),
    ]


def test_thinking_and_tool_calls() -> None:
    assert read(chat(), sse(*_TOOL_CALL) + DONE) == [
        events.Thinking("Hm, "),
        events.Thinking("wétter"),
        ToolCallDelta(0, "{", id="abc", name="weather"),
        ToolCallDelta(0, '"city":"Zürich"}'),
        Finish(("tool_calls",), Usage(32, 3, 7), Timings(0.15, 0.02)),
    ]


def test_native_completion() -> None:
    assert read(native(), sse(*_NATIVE)) == [
        Progress("prompt", 4, 7),
        Text(" 5"),
        Text("é"),
        Finish(("stop",), Usage(7, 6, 7), Timings(0.15, 0.02), stop_sequence="7"),
    ]


def test_progress_of_the_prompt() -> None:
    reader = chat()
    progress = {"prompt_progress": {"total": 100, "cache": 10, "processed": 60, "time_ms": 1}}
    out: list[Event] = []
    reader.feed(sse({**_ROLE, **progress}), out)
    assert out == [Progress("prompt", 60, 100)]
    assert (reader.prompt_left, reader.prompt_tokens, reader.cached_tokens, reader.has_begun) == (40, 100, 10, False)


def test_half_characters_are_joined() -> None:
    found = read(chat(), _HALVES)
    assert text(found) == "a😀b€c\ufffd"
    assert [event.text for event in found if isinstance(event, Text)] == ["a", "😀b", "€", "c", "\ufffd"]


@given(st.text(min_size=1), st.data())
def test_characters_cut_into_bytes(whole: str, data: st.DataObject) -> None:
    """Tokens are bytes: whatever their borders, the text comes out whole."""
    raw = json.dumps(whole, ensure_ascii=False).encode()[1:-1]
    escapes = b"\\" in raw  # a cut inside an escape isn't JSON
    cuts = [] if escapes else data.draw(st.lists(st.integers(1, len(raw)), max_size=5))
    edges = [0, *sorted(set(cuts)), len(raw)]
    stream = b"".join(b'data: {"choices":[{"delta":{"content":"' + raw[a:b] + b'"}}]}\n\n' for a, b in pairwise(edges))
    assert text(read(chat(), stream + sse(_END, _COUNTS) + DONE)) == whole


def test_half_characters_in_a_tool_call() -> None:
    halves = (
        b'data: {"choices":[{"delta":{"tool_calls":[{"id":"i","function":{"name":"f","arguments":"\xc3"}}]}}]}\n\n'
        b'data: {"choices":[{"delta":{"tool_calls":[{"index":0,"function":{"arguments":"\xa9"}}]}}]}\n\n'
    )
    found = read(chat(), halves + sse(chat_chunk(finish="tool_calls"), _COUNTS) + DONE)
    assert found[:2] == [ToolCallDelta(0, "", id="i", name="f"), ToolCallDelta(0, "é")]


def test_named_function_ends_as_a_tool_call() -> None:
    """Some engines say "stop" after a call that was required."""
    call = chat_chunk(delta={"tool_calls": [{"index": 0, "id": "i", "function": {"name": "f", "arguments": "{}"}}]})
    finish = read(chat(), sse(call, _END, _COUNTS) + DONE)[-1]
    assert isinstance(finish, Finish)
    assert finish.reasons == ("tool_calls",)


def test_logprobs() -> None:
    row = {"id": 57, "token": "I", "bytes": [73], "logprob": -2.25}
    other = {"id": 1, "token": "Hello", "bytes": None, "logprob": None}
    content = [{**row, "top_logprobs": [row, other]}]
    stream = sse(
        {"choices": [{"index": 0, "delta": {"content": "I"}, "logprobs": {"content": content}}]}, _END, _COUNTS
    )
    top = (TopLogprob("I", -2.25, (73,)), TopLogprob("Hello", -9999.0, tuple(b"Hello")))
    assert read(chat(), stream)[0] == Text("I", 0, (TokenLogprob("I", -2.25, (73,), top),))
    assert read(ChatReader(_FAILURES, keep_top=False), stream)[0] == Text("I", 0, (TokenLogprob("I", -2.25, (73,)),))


def test_native_logprobs() -> None:
    row = {"id": 218, "token": "�", "bytes": [128], "logprob": -0.1}
    chunk = {"content": "", "stop": False, "completion_probabilities": [{**row, "top_logprobs": [row]}]}
    top = (TopLogprob("�", -0.1, (128,)),)
    assert read(native(), sse(chunk, _NATIVE[-1]))[0] == Text("", 0, (TokenLogprob("�", -0.1, (128,), top),))


def test_completions_in_openai_shape() -> None:
    chunks = [
        {"choices": [{"text": "a", "index": 0, "logprobs": None, "finish_reason": None}]},
        {"choices": [{"text": "", "index": 0, "logprobs": None, "finish_reason": "length"}], "usage": _USAGE},
    ]
    assert read(chat(), sse(*chunks) + DONE) == [Text("a"), Finish(("length",), Usage(32, 3, 7))]


def test_text_and_finish_in_one_chunk() -> None:
    found = read(chat(), sse(chat_chunk("a"), chat_chunk("b", finish="length"), _COUNTS) + DONE)
    assert found[:2] == [Text("a"), Text("b")]
    assert len(found) == 3


def test_counts_from_timings_or_the_stream() -> None:
    """An engine that tells no usage: its timings, else what was seen."""
    finish = read(chat(), sse(chat_chunk("a"), {**_END, "timings": _TIMINGS}) + DONE)[-1]
    assert isinstance(finish, Finish)
    assert finish.usage == Usage(32, 3, 7)
    finish = read(chat(), sse(chat_chunk("a"), chat_chunk("b"), _END) + DONE)[-1]
    assert isinstance(finish, Finish)
    assert finish.usage == Usage(0, 2, 0)


def test_one_finish_and_nothing_after_it() -> None:
    found = read(chat(), sse(_END, _COUNTS, _END, _COUNTS, chat_chunk("late")) + DONE + sse({"error": {}}))
    assert [type(event) for event in found] == [Finish]


def test_clean_end_without_done_is_an_end() -> None:
    assert isinstance(read(chat(), sse(chat_chunk("a"), _END))[-1], Finish)
    assert isinstance(read(chat(), (sse(chat_chunk("a"), _END) + DONE).rstrip(b"\n"))[-1], Finish)


@pytest.mark.parametrize("stream", [b"", DONE, sse(_ROLE, chat_chunk("a")), sse(chat_chunk("a")) + DONE])
def test_end_without_finish_is_a_failure(stream: bytes) -> None:
    failure = read(chat(), stream)[-1]
    assert isinstance(failure, EngineFailedError)
    assert "without a finish" in str(failure)


@pytest.mark.parametrize(
    "garbage",
    [
        b"data: {oops\n\n",
        b"data: 5\n\n",
        b'data: {"some":"thing"}\n\n',
        b'data: {"choices":5}\n\n',
        b"data: <html>\n\n",
        b"data: " + b"[" * 100_000 + b"\n\n",
        b'data: {"choices":[{"delta":{"content":"a\nb"}}]}\n\n',
    ],
    ids=["cut", "number", "unknown", "type", "html", "deep", "line-feed"],
)
@pytest.mark.parametrize("make", [chat, native])
def test_garbage_is_quoted_shortly(make: Callable[[], AnswerReader[Any]], garbage: bytes) -> None:
    failure = read(make(), garbage)[-1]
    assert isinstance(failure, EngineFailedError)
    assert "nonsense" in str(failure)
    assert len(str(failure)) < 400


def test_what_came_before_garbage_counts() -> None:
    found = read(chat(), sse(chat_chunk("a"), chat_chunk("b")) + b"data: {oops\n\n")
    assert found[:2] == [Text("a"), Text("b")]
    assert isinstance(found[2], EngineFailedError)


def test_endless_event_is_garbage() -> None:
    failure = read(chat(), b"data: " + b"x" * (MAX_EVENT_BYTES + 10), [10])[-1]
    assert isinstance(failure, EngineFailedError)
    assert "longer than" in str(failure)


def test_error_in_the_middle() -> None:
    error = {"error": {"code": 500, "message": "Context size has been exceeded.", "type": "server_error"}}
    found = read(chat(), sse(chat_chunk("a"), error))
    assert found[0] == Text("a")
    assert isinstance(found[1], ContextLengthError)
    found = read(chat(), sse({"error": "Failed to parse messages: x"}))
    assert isinstance(found[0], InvalidRequestError)


def test_cut_short_by_this_side() -> None:
    reader = chat()
    progress = {"prompt_progress": {"total": 9, "cache": 4, "processed": 9}}
    out: list[Event] = []
    reader.feed(sse({**_ROLE, **progress}, chat_chunk("a"), chat_chunk("b")), out)
    assert reader.cut_short() == Finish(("length",), Usage(9, 2, 4))
    exact = native()
    exact.feed(sse(*_NATIVE[:3]), out)
    assert exact.cut_short() == Finish(("length",), Usage(7, 3, 2))


@pytest.mark.parametrize(("told", "counted"), [(2, 2), (0, None), (None, None)])
def test_thinking_is_counted_where_a_server_tells(told: int | None, counted: int | None) -> None:
    usage = {**_USAGE, "completion_tokens_details": {"reasoning_tokens": told}}
    chunks = [
        {"choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": "stop"}]},
        {"choices": [], "usage": usage},
    ]
    (_, finish) = read(chat(), sse(*chunks) + DONE)
    assert isinstance(finish, Finish) and finish.usage.reasoning == counted


def test_which_stop_string_ended_a_chat_is_told() -> None:
    """llama-server tells it beside the reason, where it was asked to."""
    end = {**_END, "__verbose": {"stopping_word": "stop!"}}
    finish = read(chat(), sse(_ROLE, chat_chunk(delta={"content": "a"}), end, _COUNTS) + DONE)[-1]
    assert isinstance(finish, Finish)
    assert finish.stop_sequence == "stop!"
