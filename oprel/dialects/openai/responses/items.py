"""The items of a Responses input, from OpenAI's form to a conversation.

A turn of the assistant may be several items (reasoning, text, calls); an engine's template knows one message with all
of them, so that neighbours become one.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from typing import Any

import msgspec

from oprel.dialects.body import converted
from oprel.dialects.bounds import check_turns
from oprel.dialects.openai.messages import image_of_url, json_arguments
from oprel.dialects.openai.responses.wire import (
    CallItem,
    CallOutputItem,
    EarlierRefusal,
    EarlierText,
    InputFile,
    InputImage,
    InputText,
    MessageItem,
    Part,
    ReasoningInput,
    Reference,
)
from oprel.errors import InvalidRequestError, UnsupportedError
from oprel.schema import Message, Role, TextPart, ToolCall
from oprel.schema import Part as OurPart

__all__ = ["Turns", "as_items", "opaque_thinking", "referenced", "type_of"]

_ROLES: dict[str, Role] = {"system": "system", "developer": "developer", "user": "user", "assistant": "assistant"}
_TYPES = ("message", "function_call", "function_call_output", "reasoning", "item_reference")
_PARTS = "'input_text', 'input_image', 'output_text' and 'refusal'"
_OPAQUE = b"oprel-thinking:"

RawItem = dict[str, Any]


def as_items(value: str | list[RawItem] | None) -> list[RawItem]:
    """`input` as a list; a text is a message of the user's."""
    if value is None:
        return []
    if isinstance(value, str):
        return [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": value}]}]
    check_turns(len(value), param="input")
    return value


def type_of(raw: RawItem, path: str) -> str:
    """Its type, which a message and a reference may leave out."""
    kind = raw.get("type")
    if kind is None:
        kind = "message" if "role" in raw else "item_reference" if "id" in raw else None
    if kind is None:
        raise InvalidRequestError(f"'{path}.type' is required", param=f"{path}.type")
    if kind not in _TYPES:
        known = ", ".join(_TYPES)
        raise UnsupportedError(
            f"'{path}.type' is {str(kind)[:80]!r}, which is not supported; these are: {known}",
            capability="input",
            param=f"{path}.type",
        )
    return str(kind)


def referenced(raw: RawItem, path: str) -> str:
    """The id of the item that an `item_reference` stands for."""
    return converted(raw, Reference, path=path, types="'item_reference'").body.id


def opaque_thinking(text: str) -> str:
    """The thinking as `encrypted_content`, for clients that keep nothing else of it. It's no secret: it is the
    client's own."""
    return base64.b64encode(_OPAQUE + text.encode()).decode("ascii")


class Turns:
    """Messages as they come out of items, which are added in order. `unknown`: fields that nobody knows."""

    def __init__(self) -> None:
        self.unknown: dict[str, None] = {}
        self._messages: list[Message] = []
        self._names: dict[str, str] = {}
        self._thinking = ""

    @property
    def messages(self) -> tuple[Message, ...]:
        return tuple(self._messages)

    def add_instructions(self, text: str) -> None:
        self._messages.append(Message("system", (TextPart(text),)))

    def add_all(self, items: Sequence[RawItem], path: str) -> None:
        check_turns(len(items), param=path)
        for at, raw in enumerate(items):
            self._add(raw, f"{path}[{at}]")
        if self._thinking:  # it led to nothing
            self._speak((), ())

    def _add(self, raw: RawItem, path: str) -> None:
        match type_of(raw, path):
            case "message":
                self._message(self._read(raw, MessageItem, path), path)
            case "function_call":
                self._call(self._read(raw, CallItem, path), path)
            case "function_call_output":
                self._output(self._read(raw, CallOutputItem, path), path)
            case "reasoning":
                self._thinking += _thought(self._read(raw, ReasoningInput, path), path)
            case _:
                raise InvalidRequestError(f"'{path}' refers to another reference", param=path)

    def _read(self, raw: RawItem, kind: Any, path: str) -> Any:
        found = converted(raw, kind, path=path, types=_PARTS)
        self.unknown |= dict.fromkeys(found.unknown)
        return found.body

    def _message(self, body: MessageItem, path: str) -> None:
        role = _ROLES.get(body.role)
        if role is None:
            raise InvalidRequestError(
                f"'{path}.role' is {body.role[:80]!r}; it must be one of {', '.join(_ROLES)}", param=f"{path}.role"
            )
        content = _content(body.content, role, f"{path}.content")
        if role == "assistant":
            self._speak(content, ())
        else:
            self._messages.append(Message(role, content))

    def _call(self, body: CallItem, path: str) -> None:
        arguments = json_arguments(body.arguments, f"{path}.arguments")
        self._names[body.call_id] = body.name
        self._speak((), (ToolCall(body.name, arguments, id=body.call_id),))

    def _output(self, body: CallOutputItem, path: str) -> None:
        content = _content(body.output, "tool", f"{path}.output")
        name = body.name or self._names.get(body.call_id or "")
        self._messages.append(Message("tool", content, tool_call_id=body.call_id, tool_name=name))

    def _speak(self, content: tuple[OurPart, ...], calls: tuple[ToolCall, ...]) -> None:
        """The assistant's: calls belong to the text before them, and thinking to what comes after it."""
        thinking, self._thinking = self._thinking or None, ""
        last = self._messages[-1] if self._messages else None
        if calls and last is not None and last.role == "assistant" and thinking is None:
            self._messages[-1] = msgspec.structs.replace(last, tool_calls=(*last.tool_calls, *calls))
        else:
            self._messages.append(Message("assistant", content, thinking=thinking, tool_calls=calls))


def _content(value: str | list[Part], role: str, path: str) -> tuple[OurPart, ...]:
    if isinstance(value, str):
        return (TextPart(value),) if value else ()
    if not value:
        raise InvalidRequestError(f"'{path}' is an empty list: send a string or at least one part", param=path)
    return tuple(_part(part, role, f"{path}[{at}]") for at, part in enumerate(value))


def _part(part: Part, role: str, path: str) -> OurPart:
    match part:
        case InputText(text=text) | EarlierText(text=text):
            return TextPart(text)
        case EarlierRefusal(refusal=refusal):
            return TextPart(refusal)
        case InputFile():
            raise UnsupportedError(f"'{path}': files are not supported: send their text", capability="file", param=path)
        case InputImage(image_url=url) if url is not None and role == "user":
            return image_of_url(url, f"{path}.image_url")
        case InputImage(image_url=None):
            raise UnsupportedError(
                f"'{path}' names no 'image_url': no files are kept here", capability="file", param=f"{path}.file_id"
            )
        case _:
            raise InvalidRequestError(f"'{path}' must be text in a message of role {role!r}", param=path)


def _thought(body: ReasoningInput, path: str) -> str:
    """What was thought, wherever the client kept it."""
    for parts in (body.content, body.summary):
        if text := "".join(part.text for part in parts or ()):
            return text
    return _from_opaque(body.encrypted_content, f"{path}.encrypted_content") if body.encrypted_content else ""


def _from_opaque(text: str, path: str) -> str:
    try:
        data = base64.b64decode(text, validate=True)
        if data.startswith(_OPAQUE):
            return data.removeprefix(_OPAQUE).decode()
    except (binascii.Error, ValueError):
        pass
    raise InvalidRequestError(f"'{path}' wasn't made by this server: leave it out", param=path)
