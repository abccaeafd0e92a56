"""What Anthropic's clients send, as what an engine is asked."""

from __future__ import annotations

import base64
import json
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from oprel.dialects.anthropic.errors import ERRORS
from oprel.dialects.anthropic.requests import Asked, counted_request, message_request
from oprel.dialects.anthropic.wire import CountBody, MessagesBody
from oprel.dialects.body import _read
from oprel.errors import InvalidRequestError, OprelError, UnsupportedError
from oprel.schema import ImagePart, JsonSchema, Message, NamedTool, TextPart, Tool, ToolCall
from oprel.testing import specs

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
IMAGE = {
    "type": "image",
    "source": {"type": "base64", "media_type": "image/png", "data": base64.b64encode(PNG).decode()},
}
USE = {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Rome"}}
RESULT = {"type": "tool_result", "tool_use_id": "t1", "content": "sunny"}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOL = {"name": "weather", "description": "Tells it", "input_schema": SCHEMA}


def asked(**fields: Any) -> Asked:
    body = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}], **fields}
    return message_request(_read(json.dumps(body).encode(), MessagesBody).body)


def messages(*turns: tuple[str, Any], **fields: Any) -> tuple[Message, ...]:
    return asked(messages=[{"role": role, "content": content} for role, content in turns], **fields).request.messages


def said(role: Any, *texts: str, **more: Any) -> Message:
    return Message(role, tuple(TextPart(text) for text in texts), **more)


CALLED = said("assistant", tool_calls=(ToolCall("weather", '{"city":"Rome"}', id="t1"),))
ANSWERED = said("tool", "sunny", tool_call_id="t1", tool_name="weather")
TURNS: dict[str, tuple[list[tuple[str, Any]], tuple[Message, ...]]] = {
    "text": ([("user", "hi")], (said("user", "hi"),)),
    "blocks": (
        [("user", [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}, IMAGE])],
        (Message("user", (TextPart("a"), ImagePart(PNG))),),
    ),
    "turns of one role are one": (
        [("user", "a"), ("user", "b"), ("assistant", "c"), ("assistant", "d"), ("user", "e")],
        (said("user", "a", "\n\n", "b"), said("assistant", "c", "\n\n", "d"), said("user", "e")),
    ),
    "a tool's round": (
        [("user", "w?"), ("assistant", [USE]), ("user", [RESULT])],
        (said("user", "w?"), CALLED, ANSWERED),
    ),
    "results come before the rest of their turn": (
        [("user", "w?"), ("assistant", [USE]), ("user", [{"type": "text", "text": "well?"}, RESULT])],
        (said("user", "w?"), CALLED, ANSWERED, said("user", "well?")),
    ),
    "a result that is an error": (
        [("user", "w?"), ("assistant", [USE]), ("user", [{**RESULT, "is_error": True}])],
        (said("user", "w?"), CALLED, said("tool", "Error: sunny", tool_call_id="t1", tool_name="weather")),
    ),
    "a result with an image": (
        [
            ("user", "w?"),
            ("assistant", [USE]),
            ("user", [{**RESULT, "content": [{"type": "text", "text": "sunny"}, IMAGE]}]),
        ],
        (said("user", "w?"), CALLED, ANSWERED, Message("user", (ImagePart(PNG),))),
    ),
    "a result without content": (
        [("user", "w?"), ("assistant", [USE]), ("user", [{"type": "tool_result", "tool_use_id": "t1"}])],
        (said("user", "w?"), CALLED, said("tool", "", tool_call_id="t1", tool_name="weather")),
    ),
    "thinking comes back": (
        [
            ("user", "a"),
            (
                "assistant",
                [
                    {"type": "thinking", "thinking": "hm", "signature": "x"},
                    {"type": "redacted_thinking", "data": "x"},
                    {"type": "text", "text": "b"},
                ],
            ),
            ("user", "c"),
        ],
        (said("user", "a"), said("assistant", "b", thinking="hm"), said("user", "c")),
    ),
    "a document of plain text": (
        [("user", [{"type": "document", "title": "T", "source": {"type": "text", "data": "body"}}])],
        (said("user", "T\n\nbody\n"),),
    ),
    "a document of blocks": (
        [
            (
                "user",
                [
                    {
                        "type": "document",
                        "source": {"type": "content", "content": [{"type": "text", "text": "body"}]},
                    }
                ],
            )
        ],
        (said("user", "body"),),
    ),
    "a search result": (
        [
            (
                "user",
                [
                    {
                        "type": "search_result",
                        "source": "s",
                        "title": "T",
                        "content": [{"type": "text", "text": "x"}],
                    }
                ],
            )
        ],
        (said("user", "T\ns\n\nx\n"),),
    ),
    "a system message in between": (
        [("user", "a"), ("system", "now rhyme")],
        (said("user", "a"), said("system", "now rhyme")),
    ),
}


@pytest.mark.parametrize(("turns", "made"), TURNS.values(), ids=TURNS.keys())
def test_conversations(turns: list[tuple[str, Any]], made: tuple[Message, ...]) -> None:
    assert messages(*turns) == made


@pytest.mark.parametrize("system", ["a\n\nb", [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]])
def test_system(system: Any) -> None:
    assert messages(("user", "x"), system=system)[0] == said("system", "a\n\nb")


def test_tools() -> None:
    request = asked(tools=[TOOL]).request
    (tool,) = request.tools
    assert tool == Tool("weather", "Tells it", tool.parameters)
    assert json.loads(tool.parameters or "") == SCHEMA
    assert (request.tool_choice, request.parallel_tool_calls) == (None, None)


@pytest.mark.parametrize(
    ("choice", "made"),
    [("auto", "auto"), ("any", "required"), ("none", "none"), ("tool", NamedTool("weather"))],
)
def test_tool_choice(choice: str, made: Any) -> None:
    body = {"type": choice, "name": "weather", "disable_parallel_tool_use": True}
    request = asked(tools=[TOOL], tool_choice=body).request
    assert (request.tool_choice, request.parallel_tool_calls) == (made, False)


@pytest.mark.parametrize(
    "fields",
    [
        {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}},
        {"output_format": {"type": "json_schema", "schema": SCHEMA}},
    ],
)
def test_structured_output(fields: dict[str, Any]) -> None:
    form = asked(**fields).request.format
    assert isinstance(form, JsonSchema)
    assert json.loads(form.schema) == SCHEMA


def test_what_a_schema_asks_in_vain_is_said() -> None:
    tool = {
        "name": "f",
        "input_schema": {"type": "object", "properties": {"a": {"type": "string", "pattern": "(a+)+"}}},
    }
    assert [w.code for w in asked(tools=[tool]).warnings] == ["schema_not_enforced"]
    schema = {"type": "array", "uniqueItems": True}
    warned = asked(output_format={"type": "json_schema", "schema": schema}).warnings
    assert "uniqueItems" in warned[0].text


DEEP: dict[str, Any] = {}
for _ in range(100):
    DEEP = {"properties": {"a": DEEP}}

REFUSED: dict[str, tuple[dict[str, Any], type[OprelError], str]] = {
    "no messages": ({"messages": []}, InvalidRequestError, "messages"),
    "nothing but system": ({"messages": [{"role": "system", "content": "x"}]}, InvalidRequestError, "messages"),
    "a role": ({"messages": [{"role": "tool", "content": "x"}]}, InvalidRequestError, "'tool'"),
    "an image elsewhere": (
        {"messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": "http://x"}}]}]},
        UnsupportedError,
        "nothing is fetched",
    ),
    "an image that is none": (
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}}
                    ],
                }
            ]
        },
        InvalidRequestError,
        "PNG",
    ),
    "too many images": ({"messages": [{"role": "user", "content": [IMAGE] * 17}]}, InvalidRequestError, "17 images"),
    "a PDF": (
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {
                            "type": "document",
                            "source": {"type": "base64", "media_type": "application/pdf", "data": "aGk="},
                        }
                    ],
                }
            ]
        },
        UnsupportedError,
        "'base64'",
    ),
    "a block that runs on servers": (
        {"messages": [{"role": "user", "content": [{"type": "container_upload", "file_id": "x"}]}]},
        UnsupportedError,
        "container_upload",
    ),
    "a block of no type": (
        {"messages": [{"role": "user", "content": [{"text": "x"}]}]},
        InvalidRequestError,
        "messages[0].content[0].type",
    ),
    "a block of no known type": (
        {"messages": [{"role": "user", "content": [{"type": "smell"}]}]},
        InvalidRequestError,
        "'smell'",
    ),
    "a block in a wrong place": (
        {"messages": [{"role": "user", "content": [USE]}]},
        InvalidRequestError,
        "messages[0].content[0].type",
    ),
    "a result of nothing": (
        {"messages": [{"role": "user", "content": [RESULT]}]},
        InvalidRequestError,
        "tool_use_id",
    ),
    "an end with a call": (
        {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": [USE]}]},
        InvalidRequestError,
        "tool_result",
    ),
    "an empty end of the assistant's": (
        {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": ""}]},
        InvalidRequestError,
        "empty",
    ),
    "a field of a wrong type inside a block": (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": 5}]}]},
        InvalidRequestError,
        "messages[0].content[0].text",
    ),
    "a server's tool": ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, UnsupportedError, "web_s"),
    "a tool without a schema": ({"tools": [{"name": "f"}]}, InvalidRequestError, "tools[0].input_schema"),
    "a tool without a name": ({"tools": [{**TOOL, "name": " "}]}, InvalidRequestError, "tools[0].name"),
    "a tool twice": ({"tools": [TOOL, TOOL]}, InvalidRequestError, "weather"),
    "too many tools": ({"tools": [TOOL] * 129}, InvalidRequestError, "129"),
    "a schema that is too deep": ({"tools": [{"name": "f", "input_schema": DEEP}]}, InvalidRequestError, "schema"),
    "any of no tools": ({"tool_choice": {"type": "any"}}, InvalidRequestError, "tool_choice"),
    "a tool that isn't there": (
        {"tools": [TOOL], "tool_choice": {"type": "tool", "name": "x"}},
        InvalidRequestError,
        "'x'",
    ),
    "a choice of no kind": ({"tool_choice": {"type": "all"}}, InvalidRequestError, "'all'"),
    "thinking of no kind": ({"thinking": {"type": "deep"}}, InvalidRequestError, "'deep'"),
    "thinking between tools": ({"thinking": {"type": "between_tools"}}, UnsupportedError, "between_tools"),
    "a display of no kind": ({"thinking": {"type": "adaptive", "display": "x"}}, InvalidRequestError, "display"),
    "an effort of no kind": ({"output_config": {"effort": "extreme"}}, InvalidRequestError, "extreme"),
    "a format of no kind": ({"output_format": {"type": "xml"}}, InvalidRequestError, "output_format"),
    "too warm": ({"temperature": 1.5}, InvalidRequestError, "temperature"),
    "a limit below zero": ({"max_tokens": -1}, InvalidRequestError, "max_tokens"),
    "too many stops": ({"stop_sequences": ["a"] * 17}, InvalidRequestError, "stop_sequences"),
    "a container": ({"container": "x"}, UnsupportedError, "container"),
    "servers of tools": ({"mcp_servers": [{"type": "url"}]}, UnsupportedError, "mcp_servers"),
}  # fmt: skip


@pytest.mark.parametrize(("fields", "kind", "named"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_refused_is_named(fields: dict[str, Any], kind: type[OprelError], named: str) -> None:
    with pytest.raises(kind) as caught:
        asked(**fields)
    assert named in caught.value.message


@pytest.mark.parametrize(
    "fields",
    [
        {"thinking": {"type": "enabled", "budget_tokens": 1024}},
        {"tools": [TOOL], "tool_choice": {"type": "any"}},
        {"output_format": {"type": "json_schema", "schema": SCHEMA}},
    ],
    ids=["thinking", "a forced call", "a schema"],
)
def test_an_answer_that_was_begun_can_be_held_to_nothing(fields: dict[str, Any]) -> None:
    turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
    with pytest.raises(UnsupportedError, match="assistant's turn"):
        asked(messages=turns, **fields)


def test_what_asks_for_nothing_passes() -> None:
    assert asked(mcp_servers=[], metadata={"user_id": "x"}, service_tier="auto", cache_control={"type": "ephemeral"})


def test_counting_reads_the_same_conversation() -> None:
    body = {"model": "m", "system": "s", "messages": [{"role": "user", "content": "hi"}], "tools": [TOOL]}
    counted = counted_request(_read(json.dumps(body).encode(), CountBody).body).request
    whole = asked(system="s", tools=[TOOL]).request
    assert (counted.messages, counted.tools) == (whole.messages, whole.tools)


_NAMES = [
    "type", "text", "content", "source", "data", "role", "name", "input", "input_schema", "id", "tool_use_id",
    "thinking", "effort", "format", "schema", "citations",
]  # fmt: skip
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(_NAMES) | st.text(max_size=4), inner),
    max_leaves=12,
)
_TYPES = st.sampled_from(
    ["text", "image", "document", "tool_use", "tool_result", "thinking", "search_result", "base64", "custom", "tool"]
)
_OBJECTS = st.fixed_dictionaries({}, optional={"type": _TYPES, **{name: _VALUES for name in _NAMES if name != "type"}})
_TURNS = st.fixed_dictionaries(
    {
        "role": st.sampled_from(["user", "assistant", "system"]),
        "content": st.text(max_size=4) | st.lists(_OBJECTS, max_size=3),
    }
)
_OTHERS = [name for name in MessagesBody.__struct_fields__ if name not in ("model", "max_tokens", "messages")]
_BODIES = st.fixed_dictionaries(
    {"model": st.just("m"), "max_tokens": st.just(1) | _VALUES, "messages": st.lists(_TURNS, max_size=3)},
    optional={name: _VALUES | _OBJECTS | st.lists(_OBJECTS, max_size=2) for name in _OTHERS},
)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(_BODIES)
def test_any_body_is_understood_or_refused(body: dict[str, Any]) -> None:
    """A refusal is a 4xx in Anthropic's shape; nothing else is raised."""
    try:
        found = message_request(_read(json.dumps(body).encode(), MessagesBody).body)
    except InvalidRequestError as error:
        head, content = ERRORS.whole(error)
        assert 400 <= head.status < 500
        specs.validate("anthropic", "/v1/messages", "POST", head.status, json.loads(content))
    else:
        msgspec.json.encode(found.request)


@pytest.mark.parametrize(
    "raw",
    [
        b"[" * 100_000,
        b'{"model":"m","model":"n","max_tokens":1,"messages":[]}',
        b'{"model":"m","max_tokens":NaN,"messages":[]}',
        b'{"model":"m","max_tokens":99999999999999999999999,"messages":[]}',
        b'{"model":"\\ud800","max_tokens":1,"messages":[]}',
        b"\xff",
        b"null",
    ],
    ids=["nesting", "a key twice", "NaN", "a huge integer", "half a surrogate pair", "no UTF-8", "null"],
)
def test_hostile_bodies(raw: bytes) -> None:
    with pytest.raises(InvalidRequestError):
        _read(raw, MessagesBody)
