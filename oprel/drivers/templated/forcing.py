"""A call that must be made: the answer is held to the JSON of one, by a schema made of the tools' own."""

from __future__ import annotations

from typing import Any

import msgspec

from oprel.errors import InvalidRequestError, UnsupportedError
from oprel.schema import ChatRequest, JsonSchema, NamedTool, Tool
from oprel.templates.chat import used_tools

__all__ = ["check_choice", "forced_format"]


def check_choice(request: ChatRequest) -> None:
    """Refuses a choice of what isn't there."""
    choice = request.tool_choice
    if choice == "required" and not request.tools:
        raise InvalidRequestError("tool_choice is 'required', but there are no tools", param="tool_choice")
    if isinstance(choice, NamedTool) and not used_tools(request):
        known = ", ".join(sorted(tool.name for tool in request.tools)) or "none"
        raise InvalidRequestError(
            f"tool_choice names {choice.name!r}, which isn't among the tools ({known})", param="tool_choice"
        )


def forced_format(request: ChatRequest, *, driver: str, model: str) -> JsonSchema | None:
    """None where the model may choose."""
    if not (request.tool_choice == "required" or isinstance(request.tool_choice, NamedTool)):
        return None
    if request.format is not None:
        raise _unsupported("a format beside a call that must be made", "response_format", driver, model)
    calls = [_call(tool, driver, model) for tool in used_tools(request)]
    schema = calls[0] if len(calls) == 1 else {"anyOf": calls}
    return JsonSchema(msgspec.json.encode(schema).decode(), name="call")


def _call(tool: Tool, driver: str, model: str) -> dict[str, Any]:
    parameters = tool.parameters or '{"type":"object"}'
    if '"$ref"' in parameters:  # it would point to another place, inside another schema
        raise _unsupported(f"references in the schema of {tool.name!r}, which must be called", "tools", driver, model)
    arguments = msgspec.json.decode(parameters)
    if isinstance(arguments, dict) and "properties" in arguments:
        arguments.setdefault("additionalProperties", False)  # small models would go on inventing arguments
    return {
        "type": "object",
        "properties": {"name": {"const": tool.name}, "arguments": arguments},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


def _unsupported(what: str, param: str, driver: str, model: str) -> UnsupportedError:
    text = f"{model} with a Go template on {driver} can't honour {what}"
    return UnsupportedError(text, capability="tools", param=param, driver=driver, model=model)
