"""A call that must come does come from a model whose template knows no tools, however its text is cut."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from oprel.drivers.forcing import CallReader, calls_of, forced, is_forced, without_tools
from oprel.errors import EngineFailedError, InvalidRequestError
from oprel.schema import (
    Capabilities,
    ChatRequest,
    Event,
    Finish,
    JsonSchema,
    Message,
    NamedTool,
    Sampling,
    Text,
    TextPart,
    Tool,
    ToolCall,
    ToolCallDelta,
    Usage,
)

CITY = Tool("weather", "Tells it.", '{"type":"object","properties":{"city":{"type":"string"}},"required":["city"]}')
TREE = Tool(
    "tree", None, '{"$defs":{"n":{"type":"object","properties":{"next":{"$ref":"#/$defs/n"}}}},"$ref":"#/$defs/n"}'
)
CLOCK = Tool("clock")
USER = Message("user", (TextPart("hi"),))
ABLE = Capabilities(chat=True, json_schema=True)


def request(*tools: Tool, choice: Any = "required", messages: tuple[Message, ...] = (USER,)) -> ChatRequest:
    return ChatRequest(messages, tools=tools, tool_choice=choice, sampling=Sampling(stop=("}",)))


@pytest.mark.parametrize(
    ("choice", "capabilities", "expected"),
    [
        ("required", ABLE, True),
        (NamedTool("weather"), ABLE, True),
        ("auto", ABLE, False),
        (None, ABLE, False),
        ("required", Capabilities(chat=True, json_schema=True, tools=True), False),
        ("required", Capabilities(chat=True), False),
    ],
)
def test_when_a_call_is_forced(choice: Any, capabilities: Capabilities, expected: bool) -> None:
    assert is_forced(request(CITY, choice=choice), capabilities) is expected


def valid(made: ChatRequest, call: Any) -> bool:
    assert isinstance(made.format, JsonSchema)
    schema = json.loads(made.format.schema)
    Draft202012Validator.check_schema(schema)
    return bool(Draft202012Validator(schema).is_valid(call))


def test_the_schema_is_a_call_of_one_of_the_tools() -> None:
    made = forced(request(CITY, CLOCK, TREE))
    assert valid(made, {"name": "weather", "arguments": {"city": "Rome"}})
    assert valid(made, {"name": "clock", "arguments": {}})
    assert valid(made, {"name": "tree", "arguments": {"next": {"next": {}}}})
    assert not valid(made, {"name": "weather", "arguments": {}})
    assert not valid(made, {"name": "clock", "arguments": {"city": "Rome"}})
    assert not valid(made, {"name": "tree", "arguments": {"next": 1}})
    assert not valid(made, {"name": "other", "arguments": {}})


def test_a_named_function_is_the_only_one() -> None:
    made = forced(request(CITY, CLOCK, choice=NamedTool("clock")))
    assert valid(made, {"name": "clock", "arguments": {}})
    assert not valid(made, {"name": "weather", "arguments": {"city": "Rome"}})
    assert "weather" not in made.messages[0].text
    with pytest.raises(InvalidRequestError):
        forced(request(CITY, choice=NamedTool("nobody")))


def test_the_functions_are_told_in_the_system_message() -> None:
    (system, user) = forced(request(CITY)).messages
    assert (system.role, user) == ("system", USER)
    assert '"weather"' in system.text and '"city"' in system.text
    own = Message("system", (TextPart("Be brief."),))
    system, _ = forced(request(CITY, messages=(own, USER))).messages
    assert system.text.startswith("Be brief.\n\nYou can call")


def test_nothing_else_of_tools_is_left_and_no_stop_cuts_a_call() -> None:
    made = forced(request(CITY))
    assert (made.tools, made.tool_choice, made.sampling.stop) == ((), None, ())


def test_earlier_calls_and_outputs_are_told_as_text() -> None:
    called = Message("assistant", (TextPart("Let me see."),), tool_calls=(ToolCall("weather", '{"city":"Rome"}', "1"),))
    output = Message("tool", (TextPart("sunny"),), tool_call_id="1", tool_name="weather")
    user, spoken, told = without_tools((USER, called, output))
    assert user == USER
    assert spoken.text == 'Let me see.\n{"name": "weather", "arguments": {"city":"Rome"}}' and not spoken.tool_calls
    assert (told.role, told.text) == ("user", "The output of weather: sunny")


@pytest.mark.parametrize("arguments", ['{"city":"Rome"}', '{ "city" : "Rome" }', '{"city": "Rome"}'])
def test_earlier_calls_are_told_in_one_spelling(arguments: str) -> None:
    """Dialects bring them as text or as an object, and their prompts shall be as long."""
    (spoken,) = without_tools((Message("assistant", tool_calls=(ToolCall("weather", arguments, "1"),)),))
    assert spoken.text == '{"name": "weather", "arguments": {"city":"Rome"}}'


def test_earlier_calls_that_are_no_json_are_told_as_they_are() -> None:
    (spoken,) = without_tools((Message("assistant", tool_calls=(ToolCall("weather", '{"city', "1"),)),))
    assert spoken.text == '{"name": "weather", "arguments": {"city}'


ARGUMENTS = st.dictionaries(st.text(), st.recursive(st.text() | st.integers(), lambda s: st.lists(s), max_leaves=4))


@given(st.text(min_size=1, max_size=20), ARGUMENTS, st.lists(st.integers(1, 5)), st.booleans())
def test_a_call_is_read_however_it_is_cut(name: str, arguments: Any, cuts: list[int], is_compact: bool) -> None:
    separators = (",", ":") if is_compact else (", ", ": ")
    whole = json.dumps({"name": name, "arguments": arguments}, separators=separators)
    reader, deltas = CallReader(), list[ToolCallDelta]()
    at = 0
    for size in (*cuts, len(whole)):
        deltas += reader.feed(whole[at : at + size])
        at += size
    assert reader.is_whole
    first, *rest = deltas
    assert (first.name, first.arguments) == (name, "") and first.id
    assert all(delta.name is None and delta.id is None for delta in rest)
    assert json.loads("".join(delta.arguments for delta in rest)) == arguments


def read(*texts: str, reason: Any = "stop") -> list[Event]:
    async def stream() -> AsyncGenerator[tuple[Event, ...], None]:
        for text in texts:
            yield (Text(text),)
        yield (Finish((reason,), Usage(1, len(texts))),)

    async def go() -> list[Event]:
        return [event async for batch in calls_of(stream(), driver="d") for event in batch]

    return asyncio.run(go())


def test_the_end_says_that_it_was_a_call() -> None:
    *_, arguments, finish = read('{"name":"f","arg', 'uments":{"a":"}"}}', "  ")
    assert isinstance(arguments, ToolCallDelta) and arguments.arguments == '{"a":"}"}'
    assert isinstance(finish, Finish) and finish.reasons == ("tool_calls",)


def test_a_call_that_is_cut_short_says_so() -> None:
    *_, finish = read('{"name":"f","arguments":{"a":"', reason="length")
    assert isinstance(finish, Finish) and finish.reasons == ("length",)


@pytest.mark.parametrize("texts", [('{"name":"f",',), ("Sunny.",), (), ("x" * 5000,)])
def test_what_is_no_call_is_the_engines_failure(texts: tuple[str, ...]) -> None:
    with pytest.raises(EngineFailedError):
        read(*texts)
