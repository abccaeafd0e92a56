"""Each field of a request becomes what it means in ours, or is refused with its range."""

from __future__ import annotations

import json
import math
from typing import Any

import msgspec
import pytest

from oprel.dialects.openai.requests import (
    Chat,
    chat_request,
    completion_requests,
    embed_request,
    include_usage,
    keep_alive_s,
)
from oprel.dialects.openai.wire import ChatBody, CompletionBody, EmbeddingBody
from oprel.errors import InvalidRequestError, UnsupportedError
from oprel.schema import ChatRequest, JsonObject, JsonSchema, NamedTool, Sampling, Thinking, Tool

MESSAGES = [{"role": "user", "content": "hi"}]
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


def chat(**fields: Any) -> ChatRequest:
    return asked(**fields).request


def asked(**fields: Any) -> Chat:
    return chat_request(msgspec.convert({"model": "m", "messages": MESSAGES, **fields}, ChatBody))


def complete(prompt: Any = "hi", **fields: Any) -> Any:
    return completion_requests(msgspec.convert({"model": "m", "prompt": prompt, **fields}, CompletionBody))


def embed(value: Any, **fields: Any) -> Any:
    return embed_request(msgspec.convert({"model": "m", "input": value, **fields}, EmbeddingBody))


def tool(name: str = "f", **function: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **function}}


def allowing(mode: str, *names: str) -> dict[str, Any]:
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": [tool(name) for name in names]}}


SAMPLING = {
    "max_tokens": (5, {"max_tokens": 5}),
    "max_completion_tokens": (5, {"max_tokens": 5}),
    "temperature": (0, {"temperature": 0.0}),
    "top_p": (0.5, {"top_p": 0.5}),
    "top_k": (7, {"top_k": 7}),
    "min_p": (0.1, {"min_p": 0.1}),
    "repeat_penalty": (1.2, {"repeat_penalty": 1.2}),
    "presence_penalty": (-2, {"presence_penalty": -2.0}),
    "frequency_penalty": (2, {"frequency_penalty": 2.0}),
    "seed": (-1, {"seed": -1}),
    "stop": (["a", ""], {"stop": ("a",)}),
    "logit_bias": ({"15": -100, "7": 1.5}, {"logit_bias": ((15, -100.0), (7, 1.5))}),
}


@pytest.mark.parametrize(("field", "value", "sampling"), [(f, v, s) for f, (v, s) in SAMPLING.items()])
def test_sampling(field: str, value: Any, sampling: dict[str, Any]) -> None:
    assert chat(**{field: value}).sampling == Sampling(**sampling)


def test_what_is_not_given_stays_open() -> None:
    assert chat().sampling == Sampling()


def test_no_limit_of_likeliest_tokens() -> None:
    assert chat(top_k=-1).sampling.top_k == 0


RANGES = {
    "max_tokens": (-1, 2**31),
    "max_completion_tokens": (-1, 2**31),
    "temperature": (-0.1, 2.1),
    "top_p": (-0.1, 1.1),
    "top_k": (-2, 2**31),
    "min_p": (-0.1, 1.1),
    "repeat_penalty": (-0.1, 10.1),
    "presence_penalty": (-2.1, 2.1),
    "frequency_penalty": (-2.1, 2.1),
    "n": (0, 129, 10**9),
    "top_logprobs": (-1, 21, 10**12),
}


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, values in RANGES.items() for value in values])
def test_out_of_range_names_field_value_and_range(field: str, value: float) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        chat(**{field: value, "logprobs": True})
    assert caught.value.param == field
    assert caught.value.message.startswith(f"'{field}' is {value}; it must be between ")


REFUSED = {
    "both limits": ({"max_tokens": 1, "max_completion_tokens": 1}, "max_tokens"),
    "many stops": ({"stop": ["x"] * 1_000_000}, "stop"),
    "many biases": ({"logit_bias": {str(n): 1 for n in range(1025)}}, "logit_bias"),
    "a bias of no token": ({"logit_bias": {"the": 1}}, "logit_bias"),
    "a bias of a negative token": ({"logit_bias": {"-1": 1}}, "logit_bias"),
    "a bias of a huge token": ({"logit_bias": {"9" * 50: 1}}, "logit_bias"),
    "a bias out of range": ({"logit_bias": {"5": 101}}, "logit_bias.5"),
    "top_logprobs alone": ({"top_logprobs": 1}, "top_logprobs"),
    "unknown effort": ({"reasoning_effort": "huge"}, "reasoning_effort"),
    "unknown format": ({"response_format": {"type": "xml"}}, "response_format.type"),
    "no schema object": ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    "a hostile schema": (
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "x", "schema": {"type": "string", "pattern": "^((a?){20}){20}$"}},
            }
        },
        "response_format.json_schema.schema.pattern",
    ),
    "many tools": ({"tools": [tool()] * 129}, "tools"),
    "a custom tool": ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0].type"),
    "a tool of nothing": ({"tools": [{"type": "function"}]}, "tools[0].function"),
    "a tool without a name": ({"tools": [tool(" ")]}, "tools[0].function.name"),
    "a tool with a long name": ({"tools": [tool("x" * 257)]}, "tools[0].function.name"),
    "a tool with a control character": ({"tools": [tool("a\nb")]}, "tools[0].function.name"),
    "a tool's hostile schema": (
        {"tools": [tool(), tool("g", parameters={"anyOf": [{}] * 65})]},
        "tools[1].function.parameters.anyOf",
    ),
    "required without tools": ({"tool_choice": "required"}, "tool_choice"),
    "an unknown choice": ({"tools": [tool()], "tool_choice": "maybe"}, "tool_choice"),
    "a choice of an unknown tool": (
        {"tools": [tool()], "tool_choice": {"type": "function", "function": {"name": "g"}}},
        "tool_choice.function.name",
    ),
    "a choice of an unknown kind": ({"tools": [tool()], "tool_choice": {"type": "custom"}}, "tool_choice.type"),
    "a choice of nothing": ({"tools": [tool()], "tool_choice": {"type": "function"}}, "tool_choice.type"),
    "allowed tools that are none": (
        {
            "tools": [tool()],
            "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [tool("g")]}},
        },
        "tool_choice.allowed_tools.tools",
    ),
    "allowed tools, odd mode": (
        {
            "tools": [tool()],
            "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "x", "tools": [tool()]}},
        },
        "tool_choice.allowed_tools.mode",
    ),
    "functions": ({"functions": [{"name": "f"}]}, "functions"),
    "function_call": ({"function_call": "auto"}, "function_call"),
    "spoken answers": ({"modalities": ["text", "audio"]}, "modalities"),
    "a voice": ({"audio": {"voice": "x", "format": "wav"}}, "audio"),
    "the web": ({"web_search_options": {}}, "web_search_options"),
    "moderation": ({"moderation": {"model": "x"}}, "moderation"),
    "verbosity": ({"verbosity": "high"}, "verbosity"),
}


@pytest.mark.parametrize(("fields", "param"), REFUSED.values(), ids=REFUSED.keys())
def test_refused_by_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        chat(**fields)
    assert caught.value.param == param
    assert param in caught.value.message


@pytest.mark.parametrize(
    "fields",
    [
        {"modalities": ["text"]},
        {"verbosity": "medium"},
        {"functions": []},
        {"function_call": "none"},
        {"store": True, "metadata": {"a": "b"}, "user": "ann", "service_tier": "flex", "safety_identifier": "x"},
        {"prediction": {"type": "content", "content": "x"}, "prompt_cache_key": "k", "prompt_cache_retention": "24h"},
        {"response_format": {"type": "text"}},
        {"tool_choice": "auto"},
        {"tool_choice": "none"},
        {"stream_options": {"include_usage": True}},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_what_asks_for_nothing_changes_nothing(fields: dict[str, Any]) -> None:
    assert chat(**fields) == chat()


def test_formats() -> None:
    assert chat(response_format={"type": "json_object"}).format == JsonObject()
    assert chat(response_format={"type": "json_schema", "json_schema": {"name": "x"}}).format == JsonObject()
    spec = {"name": "person", "schema": SCHEMA, "strict": True}
    found = chat(response_format={"type": "json_schema", "json_schema": spec}).format
    assert isinstance(found, JsonSchema)
    assert (json.loads(found.schema), found.name, found.strict) == (SCHEMA, "person", True)


def test_tools_and_their_choice() -> None:
    tools = [tool("f", description="d", parameters=SCHEMA, strict=True), tool("g")]
    found = chat(tools=tools, parallel_tool_calls=False)
    assert found.tools == (Tool("f", "d", json.dumps(SCHEMA, separators=(",", ":")), strict=True), Tool("g"))
    assert (found.tool_choice, found.parallel_tool_calls) == (None, False)
    for choice in ("none", "auto", "required"):
        assert chat(tools=tools, tool_choice=choice).tool_choice == choice
    named = chat(tools=tools, tool_choice={"type": "function", "function": {"name": "g"}})
    assert named.tool_choice == NamedTool("g")


@pytest.mark.parametrize("mode", ["auto", "required"])
def test_allowed_tools_are_the_tools(mode: str) -> None:
    found = chat(tools=[tool("f"), tool("g")], tool_choice=allowing(mode, "g"))
    assert ([each.name for each in found.tools], found.tool_choice) == (["g"], mode)


@pytest.mark.parametrize(
    ("effort", "thinking"),
    [("none", Thinking(False)), ("low", Thinking(True, "low")), ("xhigh", Thinking(True, "max"))],
)
def test_effort(effort: str, thinking: Thinking) -> None:
    assert chat(reasoning_effort=effort).thinking == thinking


@pytest.mark.parametrize(
    ("fields", "logprobs"),
    [({}, None), ({"logprobs": False}, None), ({"logprobs": True}, 0), ({"logprobs": True, "top_logprobs": 3}, 3)],
)
def test_logprobs(fields: dict[str, Any], logprobs: int | None) -> None:
    assert chat(**fields).logprobs == logprobs


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        (0, 0.0),
        (1.5, 1.5),
        (-1, math.inf),
        ("-1m", math.inf),
        ("10m", 600.0),
        ("1h30m", 5400.0),
        ("1.5h", 5400.0),
        ("300ms", 0.3),
        ("0", 0.0),
        ("-0s", 0.0),
    ],
)
def test_keep_alive(value: float | str | None, seconds: float | None) -> None:
    assert keep_alive_s(value) == pytest.approx(seconds)


@pytest.mark.parametrize("value", ["", "5", "-1", "m", "5 m", "1.2.3s", "for ever"])
def test_keep_alive_that_is_no_duration(value: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        keep_alive_s(value)
    assert caught.value.param == "keep_alive"


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("a", ["a"]),
        ("", [""]),
        (None, [""]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [(1, 2)]),
        ([[1], [2, 3]], [(1,), (2, 3)]),
        (["a", [1]], ["a", (1,)]),
    ],
    ids=str,
)
def test_prompts(prompt: Any, prompts: list[Any]) -> None:
    assert [request.prompt for request in complete(prompt).requests] == prompts


@pytest.mark.parametrize(
    ("prompt", "param"),
    [
        ([], "prompt"),
        ([[]], "prompt[0]"),
        ([1, "a"], "prompt"),
        (["a", 1], "prompt[1]"),
        ([-1], "prompt"),
        ([2**31], "prompt"),
    ],
    ids=str,
)
def test_prompts_that_are_none(prompt: Any, param: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        complete(prompt)
    assert caught.value.param == param


def test_a_completions_own_fields() -> None:
    found = complete(["a", "b"], n=2, best_of=2, echo=True, suffix="end", stop="\n", max_tokens=3)
    assert (len(found.requests), found.n, found.echo) == (2, 2, True)
    assert found.requests[1].suffix == "end"
    assert found.requests[1].sampling == Sampling(max_tokens=3, stop=("\n",))
    assert complete(logprobs=2).requests[0].logprobs == 2
    assert complete(suffix="").requests[0].suffix is None


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"best_of": 2}, "best_of"),
        ({"best_of": 21}, "best_of"),
        ({"echo": True, "logprobs": 1}, "echo"),
        ({"logprobs": 21}, "logprobs"),
        ({"prompt": ["x"] * 129, "n": 2}, "prompt"),
    ],
    ids=str,
)
def test_completions_refused(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        complete(**fields)
    assert caught.value.param == param


def test_usage_is_told_when_asked_for() -> None:
    body = {"model": "m", "messages": MESSAGES}
    assert not include_usage(msgspec.convert(body, ChatBody))
    assert include_usage(msgspec.convert({**body, "stream_options": {"include_usage": True}}, ChatBody))


def test_inputs() -> None:
    assert embed("a").inputs == ("a",)
    assert embed(["a", ""]).inputs == ("a", "")
    assert embed([1, 2]).inputs == ((1, 2),)
    assert embed([[1], [2]], encoding_format="base64", dimensions=5).inputs == ((1,), (2,))


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"value": []}, "input"),
        ({"value": ["x"] * 2049}, "input"),
        ({"value": "x", "encoding_format": "int8"}, "encoding_format"),
        ({"value": "x", "dimensions": 0}, "dimensions"),
    ],
    ids=["none", "many", "format", "dimensions"],
)
def test_inputs_refused(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        embed(**fields)
    assert caught.value.param == param


def test_what_the_server_cannot_do_is_unsupported_and_not_invalid() -> None:
    with pytest.raises(UnsupportedError) as caught:
        chat(web_search_options={})
    assert caught.value.capability == "web_search_options"


LOOSE = {"type": "object", "properties": {"a": {"type": "string", "maxLength": 5000, "pattern": "(?=x)x"}}}


def test_what_a_tool_asks_beyond_bounds_is_dropped_and_told() -> None:
    """Clients bring tools that others made; the rest of their schema still helps."""
    found = asked(tools=[tool("f", parameters=LOOSE)])
    assert json.loads(found.request.tools[0].parameters or "") == {
        "type": "object",
        "properties": {"a": {"type": "string"}},
    }
    path = "tools[0].function.parameters.properties.a"
    assert [warning.text for warning in found.warnings] == [
        f"answers aren't held to '{path}.maxLength'",
        f"answers aren't held to '{path}.pattern'",
    ]


def test_a_strict_tool_is_taken_at_its_word() -> None:
    with pytest.raises(InvalidRequestError, match="maxLength"):
        chat(tools=[tool("f", parameters=LOOSE, strict=True)])
