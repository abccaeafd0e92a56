"""A model that does what it is asked to, as a script: it calls the tool that it is given, fills in the form that it is
given, and says something otherwise. What it fills in, it takes out of the last message.

It stands in where a test needs a model that is abler than one of 135M parameters, and the engine doesn't matter.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

from oprel.schema import ChatRequest, JsonObject, JsonSchema, NamedTool, Tool, ToolCall
from oprel.testing import Script
from oprel.testing.script import GenerateRequest

__all__ = ["able_script"]

_SAID = ("Hello", " to", " you", ",", " too", ".")
_NUMBER = re.compile(r"-?\d+")
_QUOTED = re.compile(r"'([^']+)'")


def able_script(**changes: Any) -> Script:
    return Script(text=_text, tool_calls=_calls, **changes)


def _text(request: GenerateRequest) -> Iterable[str]:
    assert isinstance(request, ChatRequest)
    asked = request.messages[-1].text
    match request.format:
        case JsonSchema(schema=schema):
            return _pieces(json.dumps(_filled(json.loads(schema), asked), ensure_ascii=False))
        case JsonObject():
            return _pieces(json.dumps(dict.fromkeys(_QUOTED.findall(asked), "as asked")))
        case _:
            return () if _calls(request) else _SAID


def _pieces(text: str) -> list[str]:
    return [text[at : at + 4] for at in range(0, len(text), 4)]


def _calls(request: GenerateRequest) -> tuple[ToolCall, ...]:
    """One, where the user spoke last or a call is asked for by name or not."""
    assert isinstance(request, ChatRequest)
    last, choice = request.messages[-1], request.tool_choice
    if not request.tools or choice == "none" or (last.role != "user" and choice in (None, "auto")):
        return ()
    tool = _chosen(request)
    arguments = _filled(json.loads(tool.parameters or "{}"), last.text)
    return (ToolCall(tool.name, json.dumps(arguments, ensure_ascii=False)),)


def _chosen(request: ChatRequest) -> Tool:
    choice = request.tool_choice
    names = [choice.name] if isinstance(choice, NamedTool) else [tool.name for tool in request.tools]
    return next(tool for tool in request.tools if tool.name in names)


def _filled(schema: dict[str, Any], asked: str) -> Any:
    """A value that the schema takes; it knows as much of schemas as the suites need."""
    match schema:
        case {"anyOf": [first, *_]}:
            return _filled(first, asked)
        case {"type": "integer"}:
            found = _NUMBER.search(asked)
            return int(found[0]) if found else 0
        case {"type": "string"}:
            found = _QUOTED.search(asked)
            return found[1] if found else asked
        case {"type": "object", "properties": fields}:
            return {name: _filled(field, asked) for name, field in fields.items()}
        case _:
            return {}
