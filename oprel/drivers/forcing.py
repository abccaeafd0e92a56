"""Tool calls from models whose chat template knows no tools: the answer is held to a JSON Schema that is a call.

Such templates drop tools without a word, and engines then answer a call that is required with prose. Where a request
insists on a call (`required`, or a function by name), the functions are told in the system message, the text is
constrained, and what comes is read back into the deltas of a call. What earlier turns called is told as text.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from contextlib import aclosing
from typing import Any

import msgspec

from oprel.drivers.contract import EventStream
from oprel.errors import EngineFailedError, InvalidRequestError
from oprel.schema import (
    Capabilities,
    ChatRequest,
    Event,
    Finish,
    JsonSchema,
    Message,
    NamedTool,
    Text,
    TextPart,
    Tool,
    ToolCall,
    ToolCallDelta,
)

__all__ = ["CallReader", "calls_of", "forced", "held_to_call", "is_forced", "without_tools"]

_HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"arguments"\s*:\s*(?=\{)', re.DOTALL)
_MOST_HEAD = 4096
_OPEN = frozenset(
    {"additionalProperties", "patternProperties", "unevaluatedProperties", "$ref", "anyOf", "oneOf", "allOf", "if"}
)
_NOTHING: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}


def is_forced(request: ChatRequest, capabilities: Capabilities) -> bool:
    return bool(request.tools) and not capabilities.tools and capabilities.can_call(request.tool_choice)


def forced(request: ChatRequest) -> ChatRequest:
    """The same conversation as a request for JSON."""
    choice = request.tool_choice
    tools = tuple(tool for tool in request.tools if not isinstance(choice, NamedTool) or tool.name == choice.name)
    if not tools:
        raise InvalidRequestError("tool_choice names a function that isn't among the tools", param="tool_choice")
    return msgspec.structs.replace(
        held_to_call(request, tools),
        messages=_told(without_tools(request.messages), tools),
        tools=(),
        tool_choice=None,
        parallel_tool_calls=None,
    )


def held_to_call(request: ChatRequest, tools: Sequence[Tool]) -> ChatRequest:
    """The same request, its answer held to a call of one of `tools`. Stop strings end texts, and would cut a call in
    two."""
    return msgspec.structs.replace(
        request,
        format=JsonSchema(_schema(tools), name="call", strict=True),
        sampling=msgspec.structs.replace(request.sampling, stop=()),
    )


def without_tools(messages: Sequence[Message]) -> tuple[Message, ...]:
    """Calls and their outputs as text of the assistant's and the user's, for templates that know neither."""
    return tuple(_plain(message) for message in messages)


async def calls_of(stream: EventStream, *, driver: str) -> EventStream:
    """The stream's text, read as one call for each choice."""
    readers: dict[int, CallReader] = {}
    async with aclosing(stream):
        async for batch in stream:
            out: list[Event] = []
            for event in batch:
                if isinstance(event, Text):
                    reader = readers.setdefault(event.index, CallReader(event.index))
                    out += reader.feed(event.text)
                elif isinstance(event, Finish):
                    out.append(_finished(event, readers, driver))
                else:
                    out.append(event)
            if out:
                yield tuple(out)


class CallReader:
    """Reads `{"name": …, "arguments": {…}}` as it comes; only the arguments, as they are, are passed on."""

    def __init__(self, index: int = 0) -> None:
        self.is_whole = False
        self._index = index
        self._head: str | None = ""
        self._depth = 0
        self._is_text = False
        self._is_escaped = False

    def feed(self, text: str) -> list[ToolCallDelta]:
        if self._head is None:
            return self._arguments(text)
        self._head += text
        found = _HEAD.match(self._head)
        if found is None:
            if len(self._head) > _MOST_HEAD:
                raise EngineFailedError("the engine's answer is not the call that it was held to")
            return []
        rest, self._head = self._head[found.end() :], None
        name = msgspec.json.decode(found[1], type=str)
        begun = ToolCallDelta(0, id=f"call_{secrets.token_hex(12)}", name=name, index=self._index)
        return [begun, *self._arguments(rest)]

    def _arguments(self, text: str) -> list[ToolCallDelta]:
        end = next((at for at, character in enumerate(text, 1) if self._ends_with(character)), len(text))
        if self.is_whole and self._depth < 0:
            return []
        if self.is_whole:
            self._depth = -1
        return [ToolCallDelta(0, text[:end], index=self._index)] if text[:end] else []

    def _ends_with(self, character: str) -> bool:
        """Whether the object that the arguments are is closed by it."""
        if self.is_whole:
            return True
        if self._is_escaped:
            self._is_escaped = False
        elif self._is_text:
            self._is_escaped = character == "\\"
            self._is_text = character != '"'
        elif character == '"':
            self._is_text = True
        elif character in "{[":
            self._depth += 1
        elif character in "}]":
            self._depth -= 1
            self.is_whole = self._depth == 0
        return self.is_whole


def _finished(finish: Finish, readers: dict[int, CallReader], driver: str) -> Finish:
    is_whole = bool(readers) and all(reader.is_whole for reader in readers.values())
    if is_whole:
        return msgspec.structs.replace(finish, reasons=("tool_calls",) * len(finish.reasons), stop_sequence=None)
    if "stop" in finish.reasons:
        raise EngineFailedError(f"{driver} ended its answer within a call that it was held to", driver=driver)
    return finish


def _told(messages: tuple[Message, ...], tools: Sequence[Tool]) -> tuple[Message, ...]:
    """With the functions in the first system message."""
    lines = [_encoded({"name": tool.name, "description": tool.description or "", "parameters": _parameters(tool)})
             for tool in tools]  # fmt: skip
    text = (
        "You can call these functions:\n" + "\n".join(lines) + "\n"
        'Answer with a call and nothing else, as JSON: {"name": the function, "arguments": an object}'
    )
    if messages and messages[0].role in ("system", "developer"):
        first = messages[0]
        content = (*first.content, TextPart(("\n\n" if first.content else "") + text))
        return (msgspec.structs.replace(first, content=content), *messages[1:])
    return (Message("system", (TextPart(text),)), *messages)


def _plain(message: Message) -> Message:
    if message.role == "tool":
        whose = f" of {message.tool_name}" if message.tool_name else ""
        return Message("user", (TextPart(f"The output{whose}: "), *message.content))
    if not message.tool_calls:
        return message
    calls = [f'{{"name": {_encoded(call.name)}, "arguments": {_compact(call)}}}' for call in message.tool_calls]
    gap = (TextPart("\n"),) if message.content else ()
    return msgspec.structs.replace(message, content=(*message.content, *gap, TextPart("\n".join(calls))), tool_calls=())


def _schema(tools: Sequence[Tool]) -> str:
    """One of the calls. Schemas of parameters stand under `$defs`, where their own references still lead somewhere."""
    definitions = {
        f"arguments{at}": _moved(_closed(_parameters(tool)), f"#/$defs/arguments{at}") for at, tool in enumerate(tools)
    }
    calls = [
        {
            "type": "object",
            "properties": {"name": {"const": tool.name}, "arguments": {"$ref": f"#/$defs/arguments{at}"}},
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for at, tool in enumerate(tools)
    ]
    whole = calls[0] if len(calls) == 1 else {"anyOf": calls}
    return _encoded({**whole, "$defs": definitions})


def _parameters(tool: Tool) -> dict[str, Any]:
    if tool.parameters is None:
        return _NOTHING
    found = msgspec.json.decode(tool.parameters, type=dict[str, Any])
    return {**found, "type": "object"} if not {"type", "$ref", "anyOf", "oneOf", "allOf"} & found.keys() else found


def _closed(parameters: dict[str, Any]) -> dict[str, Any]:
    """Where a schema says which arguments there are and nothing of others, there are no others: small models would go
    on inventing some. Parts that are put together don't know of each other's."""
    is_open = "properties" in parameters and not _OPEN & parameters.keys()
    return {**parameters, "additionalProperties": False} if is_open else parameters


def _moved(value: Any, to: str) -> Any:
    """The schema with its references, which began at its own root, beginning at `to`."""
    if isinstance(value, list):
        return [_moved(item, to) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        name: to + item.removeprefix("#") if name == "$ref" and isinstance(item, str) else _moved(item, to)
        for name, item in value.items()
    }


def _compact(call: ToolCall) -> str:
    """The arguments in one spelling: some dialects bring them as text, others as an object."""
    try:
        return msgspec.json.format(call.arguments or "{}", indent=-1)
    except msgspec.DecodeError:
        return call.arguments


def _encoded(value: Any) -> str:
    return msgspec.json.encode(value).decode()
