"""Events become answers with every field that the document promises, whole and streamed."""

from __future__ import annotations

import json
from typing import Any

import pytest

from oprel.dialects.openai.answers import ChatStream, CompletionStream, Label, chat_answer, completion_answer, label
from oprel.schema import (
    Event,
    Finish,
    Plan,
    Text,
    TokenLogprob,
    ToolCallDelta,
    TopLogprob,
    Usage,
    events,
)
from oprel.testing import specs

LABEL = Label("chatcmpl-1", 1_700_000_000, "tiny", "fp_1")
OLD = Label("cmpl-1", 1_700_000_000, "tiny", "fp_1")
USAGE = Usage(prompt=7, completion=3, cached=2, reasoning=0)
STOP = Finish(("stop",), USAGE)
UNCOUNTED = Finish(("stop",), Usage(prompt=7, completion=3, cached=2))
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


def logprob(token: str, *others: str) -> TokenLogprob:
    tops = tuple(TopLogprob(other, -1.0, tuple(other.encode())) for other in others)
    return TokenLogprob(token, -0.5, tuple(token.encode()), tops)


def chat(*happened: Event, choices: int = 1, has_logprobs: bool = False) -> Any:
    answer = json.loads(chat_answer(happened, LABEL, choices=choices, has_logprobs=has_logprobs))
    specs.validate("openai", CHAT, "POST", 200, answer)
    return answer


def streamed_chat(*batches: tuple[Event, ...], choices: int = 1, include_usage: bool = False) -> list[Any]:
    stream = ChatStream(LABEL, choices=choices, include_usage=include_usage)
    return _events(CHAT, stream.start() + b"".join(stream.encode(batch) for batch in batches))


def _events(path: str, body: bytes) -> list[Any]:
    lines = body.decode().split("\n\n")
    assert lines.pop() == ""
    found = [json.loads(line.removeprefix("data: ")) for line in lines if line != "data: [DONE]"]
    for event in found:
        specs.validate_event("openai", path, "POST", event)
    return [*found, *(["[DONE]"] if lines[-1] == "data: [DONE]" else [])]


def test_a_whole_answer() -> None:
    assert chat(Text("Hel"), Text("lo"), events.Progress("prompt"), events.Warning("a", "b"), STOP) == {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": "tiny",
        "system_fingerprint": "fp_1",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hello", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {
            "prompt_tokens": 7,
            "completion_tokens": 3,
            "total_tokens": 10,
            "prompt_tokens_details": {"cached_tokens": 2},
            "completion_tokens_details": {"reasoning_tokens": 0},
        },
    }


def test_an_answer_without_text() -> None:
    assert chat(STOP)["choices"][0]["message"]["content"] == ""


def test_thinking_has_both_of_its_names_and_no_invented_count() -> None:
    answer = chat(events.Thinking("h"), events.Thinking("m"), Text("yes"), UNCOUNTED)
    message = answer["choices"][0]["message"]
    assert (message["reasoning_content"], message["reasoning"], message["content"]) == ("hm", "hm", "yes")
    assert answer["usage"]["completion_tokens_details"] == {}


CALLS: tuple[Event, ...] = (
    ToolCallDelta(0, arguments='{"a"', id="c1", name="f"),
    ToolCallDelta(0, arguments=": 1}"),
    ToolCallDelta(1, name="g", arguments="{}"),
)


def test_tool_calls() -> None:
    choice = chat(*CALLS, STOP)["choices"][0]
    first, second = choice["message"]["tool_calls"]
    assert first == {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    assert second["id"].startswith("call_")
    assert (choice["message"]["content"], choice["finish_reason"]) == (None, "tool_calls")


def test_text_beside_tool_calls_stays() -> None:
    assert chat(Text("wait"), *CALLS, STOP)["choices"][0]["message"]["content"] == "wait"


def test_a_call_that_was_cut_says_so() -> None:
    assert chat(*CALLS, Finish(("length",), USAGE))["choices"][0]["finish_reason"] == "length"


def test_logprobs() -> None:
    happened = (Text("é", logprobs=(logprob("é", "é", "e"),)), Text("", logprobs=(logprob("!"),)), STOP)
    found = chat(*happened, has_logprobs=True)["choices"][0]["logprobs"]
    assert found["refusal"] is None
    assert [entry["token"] for entry in found["content"]] == ["é", "!"]
    assert found["content"][0]["bytes"] == [0xC3, 0xA9]
    assert [top["token"] for top in found["content"][0]["top_logprobs"]] == ["é", "e"]
    assert chat(STOP, has_logprobs=True)["choices"][0]["logprobs"] == {"content": [], "refusal": None}


def test_choices_are_told_apart() -> None:
    finish = Finish(("stop", "length"), USAGE)
    answer = chat(Text("b", index=1), Text("a"), Text("B", index=1), finish, choices=2)
    assert [(c["index"], c["message"]["content"], c["finish_reason"]) for c in answer["choices"]] == [
        (0, "a", "stop"),
        (1, "bB", "length"),
    ]


def test_events_without_an_end_are_no_answer() -> None:
    with pytest.raises(ValueError, match="no Finish"):
        chat(Text("a"))


def test_a_stream() -> None:
    role, first, second, finish, done = streamed_chat((Text('He"l'), Text("lo\n")), (STOP,))
    shared = {k: v for k, v in role.items() if k != "choices"}
    assert shared == {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1_700_000_000,
        "model": "tiny",
        "system_fingerprint": "fp_1",
    }
    for event in (first, second, finish):
        assert {k: v for k, v in event.items() if k != "choices"} == shared
    assert role["choices"][0]["delta"] == {"role": "assistant", "content": "", "refusal": None}
    assert [event["choices"][0]["delta"]["content"] for event in (first, second)] == ['He"l', "lo\n"]
    assert first["choices"][0]["finish_reason"] is None
    assert finish["choices"] == [{"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}]
    assert done == "[DONE]"


def test_usage_comes_last_and_only_when_asked_for() -> None:
    *chunks, last, done = streamed_chat((Text("a"), STOP), include_usage=True)
    assert done == "[DONE]"
    assert all(chunk["usage"] is None and chunk["choices"] for chunk in chunks)
    assert last["choices"] == []
    assert last["usage"]["total_tokens"] == 10


def test_empty_texts_and_quiet_events_are_no_events() -> None:
    stream = ChatStream(LABEL, choices=1, include_usage=False)
    assert stream.encode((Text(""), events.Progress("prompt"), events.Warning("a", "b"))) == b""


def test_streamed_thinking() -> None:
    found = streamed_chat((events.Thinking("hm"), Text("a")), (UNCOUNTED,), include_usage=True)
    assert found[1]["choices"][0]["delta"] == {"reasoning_content": "hm", "reasoning": "hm"}
    assert found[-2]["usage"]["completion_tokens_details"] == {}


def test_streamed_tool_calls() -> None:
    events_ = streamed_chat(CALLS, (STOP,))
    pieces = [event["choices"][0]["delta"]["tool_calls"][0] for event in events_[1:4]]
    assert pieces[0] == {
        "index": 0,
        "id": "c1",
        "type": "function",
        "function": {"name": "f", "arguments": '{"a"'},
    }
    assert pieces[1] == {"index": 0, "function": {"arguments": ": 1}"}}
    assert (pieces[2]["index"], pieces[2]["function"]["name"]) == (1, "g")
    assert pieces[2]["id"].startswith("call_")
    assert events_[4]["choices"][0]["finish_reason"] == "tool_calls"


def test_streamed_logprobs() -> None:
    event = streamed_chat((Text("a", logprobs=(logprob("a", "a"),)), STOP))[1]
    told = event["choices"][0]["logprobs"]["content"]
    assert (told[0]["token"], event["choices"][0]["delta"]["content"]) == ("a", "a")
    assert streamed_chat((Text("", logprobs=(logprob("a"),)), STOP))[1]["choices"][0]["delta"]["content"] == ""


def test_streamed_choices_each_begin_and_end() -> None:
    found = streamed_chat((Text("b", index=1), Text("a")), (Finish(("stop", "length"), USAGE),), choices=2)
    choices = [event["choices"][0] for event in found[:-1]]
    assert [choice["index"] for choice in choices] == [0, 1, 1, 0, 0, 1]
    assert [choice["finish_reason"] for choice in choices][-2:] == ["stop", "length"]


def test_what_arrived_together_is_one_piece() -> None:
    stream = ChatStream(LABEL, choices=1, include_usage=False)
    piece = stream.encode((Text("a"), Text("b"), Text("c")))
    assert isinstance(piece, bytes)
    assert piece.count(b"data: ") == 3


NASTY = ['"', "\\", "\n", "\0", " ", "é", "😀", "</script>", "data: [DONE]", "\r\n\r\n", "\x7f"]


@pytest.mark.parametrize("text", NASTY, ids=repr)
def test_any_text_survives_and_stays_one_line(text: str) -> None:
    stream = ChatStream(Label("chatcmpl-1", 1, text, "fp_1"), choices=1, include_usage=False)
    body = stream.encode((Text(text),))
    assert body.count(b"\n") == 2
    event = json.loads(body.removeprefix(b"data: "))
    assert (event["model"], event["choices"][0]["delta"]["content"]) == (text, text)


# The older endpoint.


def complete(*happened: Event, prefixes: tuple[str, ...] = ("",), logprobs: int | None = None) -> Any:
    body = completion_answer(happened, OLD, choices=len(prefixes), prefixes=prefixes, logprobs=logprobs)
    answer = json.loads(body)
    specs.validate("openai", COMPLETIONS, "POST", 200, answer)
    return answer


def streamed_completion(
    *batches: tuple[Event, ...],
    prefixes: tuple[str, ...] = ("",),
    logprobs: int | None = None,
    include_usage: bool = False,
) -> list[Any]:
    stream = CompletionStream(
        OLD, choices=len(prefixes), include_usage=include_usage, prefixes=prefixes, logprobs=logprobs
    )
    return _events(COMPLETIONS, stream.start() + b"".join(stream.encode(batch) for batch in batches))


def test_a_whole_completion() -> None:
    answer = complete(Text("a"), Text("b"), STOP)
    assert (answer["object"], answer["id"]) == ("text_completion", "cmpl-1")
    assert answer["choices"] == [{"index": 0, "text": "ab", "logprobs": None, "finish_reason": "stop"}]
    assert answer["usage"]["prompt_tokens"] == 7


def test_the_prompt_comes_first_when_it_is_echoed() -> None:
    finish = Finish(("stop", "stop"), USAGE)
    answer = complete(Text("a"), Text("b", index=1), finish, prefixes=("one ", "two "))
    assert [choice["text"] for choice in answer["choices"]] == ["one a", "two b"]


def test_legacy_logprobs() -> None:
    happened = (Text("Hé", logprobs=(logprob("H", "H", "J"), logprob("é", "é"))), Text("!", logprobs=(logprob("!"),)))
    assert complete(*happened, STOP, logprobs=2)["choices"][0]["logprobs"] == {
        "tokens": ["H", "é", "!"],
        "token_logprobs": [-0.5, -0.5, -0.5],
        "top_logprobs": [{"H": -1.0, "J": -1.0}, {"é": -1.0}, {}],
        "text_offset": [0, 1, 2],
    }
    assert complete(*happened, STOP, logprobs=0)["choices"][0]["logprobs"]["top_logprobs"] is None


def test_a_streamed_completion() -> None:
    first, second, finish, last, done = streamed_completion((Text("a"),), (Text("b"), STOP), include_usage=True)
    assert [event["choices"][0]["text"] for event in (first, second, finish)] == ["a", "b", ""]
    assert finish["choices"][0]["finish_reason"] == "stop"
    assert (first["usage"], last["choices"], last["usage"]["total_tokens"], done) == (None, [], 10, "[DONE]")


def test_a_streamed_completion_echoes_each_prompt_once() -> None:
    found = streamed_completion((Text("x", index=1), Finish(("stop", "stop"), USAGE)), prefixes=("one", "two"))
    texts = [(event["choices"][0]["index"], event["choices"][0]["text"]) for event in found[:-1]]
    assert texts == [(0, "one"), (1, "two"), (1, "x"), (0, ""), (1, "")]


def test_streamed_legacy_offsets_go_on() -> None:
    found = streamed_completion(
        (Text("ab", logprobs=(logprob("a"), logprob("b"))),), (Text("c", logprobs=(logprob("c"),)), STOP), logprobs=1
    )
    offsets = [event["choices"][0]["logprobs"]["text_offset"] for event in found[:2]]
    assert offsets == [[0, 1], [2]]


# What an answer is called.

PLAN = Plan(
    driver="llama_cpp",
    engine="llama-server",
    model="tiny",
    model_digest="abc",
    files=(),
    options=None,  # type: ignore[arg-type]  # not looked at
    gpu_layers=0,
    layers=None,
    bytes_by_device=(),
    context_tokens=4096,
    slots=4,
    threads=2,
    argv=(),
)


def test_each_answer_has_its_own_id_and_the_name_that_was_asked_for() -> None:
    one, other = label("chatcmpl", "Tiny", PLAN), label("chatcmpl", "Tiny", PLAN)
    assert one.id.startswith("chatcmpl-")
    assert one.id != other.id
    assert (one.model, one.fingerprint) == ("Tiny", other.fingerprint)
    assert one.fingerprint.startswith("fp_")
