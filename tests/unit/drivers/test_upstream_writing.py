"""Requests become the engine's JSON: all that was given, nothing else."""

from __future__ import annotations

import base64
import json
from typing import Any

import msgspec
import pytest

from oprel.drivers.upstream import LLAMA_SERVER, Quirks
from oprel.drivers.upstream.writing import RequestWriter
from oprel.errors import InvalidRequestError
from oprel.schema import (
    AudioPart,
    ChatRequest,
    CompletionRequest,
    Grammar,
    ImagePart,
    JsonObject,
    JsonSchema,
    Message,
    NamedTool,
    OutputFormat,
    Sampling,
    TextPart,
    Thinking,
    Tool,
    ToolCall,
)

_USER = Message("user", (TextPart("hi"),))
_WEATHER = Tool("weather", "of a city", '{"type":"object","properties":{"city":{"type":"string"}}}')
_ALWAYS = {
    "stream": True,
    "stream_options": {"include_usage": True},
    "cache_prompt": True,
    "return_progress": True,
    "max_tokens": -1,
}


def writer(quirks: Quirks = LLAMA_SERVER, *, can_think: bool = True) -> RequestWriter:
    return RequestWriter(quirks, context_tokens=4096, can_think=can_think)


def chat(quirks: Quirks = LLAMA_SERVER, *, can_think: bool = True, **fields: Any) -> dict[str, Any]:
    request = ChatRequest(**{"messages": (_USER,), **fields})
    return json.loads(writer(quirks, can_think=can_think).chat(request))  # type: ignore[no-any-return]


def complete(quirks: Quirks = LLAMA_SERVER, **fields: Any) -> dict[str, Any]:
    request = CompletionRequest(**{"prompt": "hi", **fields})
    return json.loads(writer(quirks).complete(request))  # type: ignore[no-any-return]


def message(message: Message) -> Any:
    return chat(messages=(message,))["messages"][0]


def test_nothing_given_nothing_sent() -> None:
    assert chat() == {**_ALWAYS, "messages": [{"role": "user", "content": "hi"}]}


def test_every_sampling_value_goes_out() -> None:
    sampling = Sampling(
        max_tokens=7,
        temperature=0.0,
        top_p=0.9,
        top_k=0,
        min_p=0.0,
        typical_p=1.0,
        repeat_penalty=1.1,
        repeat_last_n=64,
        presence_penalty=0.1,
        frequency_penalty=-0.1,
        seed=42,
        stop=("a", "b"),
        logit_bias=((5, -100.0),),
        time_limit_s=3.0,
    )
    sent = chat(sampling=sampling)
    given = msgspec.structs.asdict(sampling)
    ours = {"time_limit_s"}  # kept by this side
    expected = {name: value for name, value in given.items() if name not in ours}
    expected |= {"stop": ["a", "b"], "logit_bias": [[5, -100.0]]}
    assert sent == {**_ALWAYS, "messages": sent["messages"], **expected}


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ({"seed": -1}, {"seed": 2**32 - 2}),
        ({"seed": 2**63 - 1}, {"seed": (2**63 - 1) % (2**32 - 1)}),
        ({"repeat_last_n": -1}, {"repeat_last_n": 4096}),
        ({"max_tokens": 0}, {"max_tokens": 1}),
        ({"stop": ("", "a")}, {"stop": ["a"]}),
    ],
    ids=["negative-seed", "wide-seed", "whole-context", "no-tokens", "empty-stop"],
)
def test_values_that_llama_server_would_refuse_or_misread(given: dict[str, Any], sent: dict[str, Any]) -> None:
    body = chat(sampling=Sampling(**given))
    assert {name: body[name] for name in sent} == sent


@pytest.mark.parametrize(
    ("wanted", "in_chat", "in_completion"),
    [
        (JsonObject(), {"response_format": {"type": "json_object"}}, {"json_schema": {"type": "object"}}),
        (
            JsonSchema('{"type":"integer"}'),
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "answer", "schema": {"type": "integer"}},
                }
            },
            {"json_schema": {"type": "integer"}},
        ),
        (Grammar('root ::= "a"'), {"grammar": 'root ::= "a"'}, {"grammar": 'root ::= "a"'}),
    ],
    ids=["object", "schema", "grammar"],
)
def test_formats(wanted: OutputFormat, in_chat: dict[str, Any], in_completion: dict[str, Any]) -> None:
    body = chat(format=wanted)
    assert {name: body[name] for name in body if name not in {*_ALWAYS, "messages"}} == in_chat
    body = complete(format=wanted)
    assert {name: body[name] for name in in_completion} == in_completion


@pytest.mark.parametrize("schema", ["{", '{},"n":5', "{}{}", "\ud800", "[" * 100_000])
def test_schema_cannot_leave_its_field(schema: str) -> None:
    with pytest.raises(InvalidRequestError, match="JSON Schema"):
        chat(format=JsonSchema(schema))


def test_tools() -> None:
    body = chat(tools=(_WEATHER, Tool("now", strict=True)), tool_choice="auto", parallel_tool_calls=False)
    assert body["tool_choice"] == "auto"
    assert body["parallel_tool_calls"] is False
    assert body["tools"] == [
        {
            "type": "function",
            "function": {
                "name": "weather",
                "description": "of a city",
                "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
            },
        },
        {
            "type": "function",
            "function": {"name": "now", "parameters": {"type": "object", "properties": {}}, "strict": True},
        },
    ]


def test_named_tool_is_the_only_one_and_required() -> None:
    """llama-server silently takes an object for "auto"."""
    body = chat(tools=(_WEATHER, Tool("now")), tool_choice=NamedTool("now"))
    assert body["tool_choice"] == "required"
    assert [tool["function"]["name"] for tool in body["tools"]] == ["now"]


@pytest.mark.parametrize(
    ("thinking", "sent"),
    [
        (None, {}),
        (Thinking(enabled=False), {"chat_template_kwargs": {"enable_thinking": False}}),
        (Thinking(enabled=True), {"chat_template_kwargs": {"enable_thinking": True}}),
        (
            Thinking(enabled=True, effort="max"),
            {"chat_template_kwargs": {"enable_thinking": True}, "reasoning_effort": "high"},
        ),
    ],
    ids=["unset", "off", "on", "effort"],
)
def test_thinking(thinking: Thinking | None, sent: dict[str, Any]) -> None:
    names = {"chat_template_kwargs", "reasoning_effort"}
    body = chat(thinking=thinking)
    assert {name: body[name] for name in names & body.keys()} == sent
    assert not names & chat(can_think=False, thinking=Thinking(enabled=False)).keys()


def test_messages() -> None:
    assert message(Message("developer", (TextPart("a"), TextPart("b")))) == {"role": "system", "content": "ab"}
    png = base64.b64encode(b"\x89PNG").decode()
    assert message(Message("user", (TextPart("see"), ImagePart(b"\x89PNG")))) == {
        "role": "user",
        "content": [
            {"type": "text", "text": "see"},
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{png}"}},
        ],
    }
    assert message(Message("user", (AudioPart(b"x", "audio/mpeg"),)))["content"] == [
        {"type": "input_audio", "input_audio": {"data": "eA==", "format": "mp3"}}
    ]


def test_tool_calls_in_the_history() -> None:
    call = Message("assistant", thinking="hm", tool_calls=(ToolCall("f", "{}", "call_x"), ToolCall("g", "")))
    assert message(call) == {
        "role": "assistant",
        "content": "",
        "reasoning_content": "hm",
        "tool_calls": [
            {"type": "function", "id": "call_x", "function": {"name": "f", "arguments": "{}"}},
            {"type": "function", "id": "call_1", "function": {"name": "g", "arguments": "{}"}},
        ],
    }
    answer = Message("tool", (TextPart("3"),), tool_call_id="call_1", tool_name="f")
    assert message(answer) == {"role": "tool", "content": "3", "tool_call_id": "call_1", "name": "f"}


def test_half_a_character_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="half of a character"):
        chat(messages=(Message("user", (TextPart("\ud800"),)),))


@pytest.mark.parametrize(("asked", "sent"), [(0, 1), (5, 5)])
def test_logprobs(asked: int, sent: int) -> None:
    """`top_logprobs` 0 would give none at all."""
    body = chat(logprobs=asked)
    assert (body["logprobs"], body["top_logprobs"]) == (True, sent)
    assert complete(logprobs=asked)["n_probs"] == sent


def test_native_completion_says_what_its_last_event_holds() -> None:
    body = complete(sampling=Sampling(max_tokens=3))
    assert body["prompt"] == "hi"
    assert "prompt" not in body["response_fields"]
    assert {"content", "stop", "stop_type", "tokens_predicted", "tokens_evaluated"} <= {*body["response_fields"]}
    assert "stream_options" not in body


def test_other_engines_words() -> None:
    quirks = Quirks(
        completion_shape="openai",
        model="served",
        unlimited_tokens=None,
        renamed=(("repeat_penalty", "repetition_penalty"),),
        progress_field=None,
        prompt_cache_field=None,
        thinking_switch=None,
    )
    sampling = Sampling(repeat_penalty=1.2)
    assert complete(quirks, sampling=sampling, prompt=(1, 2), logprobs=2) == {
        "model": "served",
        "stream": True,
        "stream_options": {"include_usage": True},
        "prompt": [1, 2],
        "repetition_penalty": 1.2,
        "logprobs": 2,
    }
    assert "chat_template_kwargs" not in chat(quirks, thinking=Thinking(enabled=True))


@pytest.mark.parametrize(
    ("prompt", "images", "sent"),
    [
        ("What?", 1, "<M>What?"),
        ("What?", 2, "<M><M>What?"),
        ("a [img-0] b [img-1].", 2, "a <M> b <M>."),
        ("a [img-0] b", 2, "<M>a <M> b"),
        ("[img-0][img-0]", 1, "<M>[img-0]"),
        ("[img-1] [img-0]", 2, "<M>[img-1] <M>"),
        ("[img-0]", 0, "[img-0]"),
    ],
)
def test_images_of_a_raw_prompt_take_their_places(prompt: str, images: int, sent: str) -> None:
    """As many marks as there are images, whatever the prompt says."""
    request = CompletionRequest(prompt, images=(ImagePart(b"x"),) * images)
    writer = RequestWriter(LLAMA_SERVER, context_tokens=99, can_think=False)
    body = json.loads(writer.complete(request, media_marker="<M>"))
    told = body["prompt"]["prompt_string"] if images else body["prompt"]
    assert told == sent
    assert told.count("<M>") == images
