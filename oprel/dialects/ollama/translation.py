"""From wire structs to the schema: messages, tools, formats, thinking."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, get_args

from oprel.dialects.bounds import SchemaBudget, check_turns, checked_schema
from oprel.dialects.ollama.errors import refusal
from oprel.dialects.ollama.gojson import go_quoted, text
from oprel.dialects.ollama.media import attachments, with_text
from oprel.dialects.ollama.wire import Message as WireMessage
from oprel.dialects.ollama.wire import Tool as WireTool
from oprel.dialects.ollama.wire import ToolCall as WireToolCall
from oprel.errors import InvalidRequestError
from oprel.schema import (
    ImagePart,
    JsonObject,
    JsonSchema,
    Message,
    Model,
    OutputFormat,
    Role,
    TextPart,
    Thinking,
    Tool,
    ToolCall,
    events,
)

__all__ = ["count_images", "messages", "output_format", "system_message", "thinking", "tools", "wanted_thinking"]

_ROLES: frozenset[str] = frozenset(get_args(Role))
# Any role is accepted; the schema's own words for those that have one, "user" for the rest.
_OTHER_ROLES: Mapping[str, Role] = {"function": "tool", "model": "assistant", "ai": "assistant", "human": "user"}
_EFFORTS = ("high", "medium", "low", "max")


def system_message(content: str) -> Message:
    return Message("system", (TextPart(content),))


def messages(given: Sequence[WireMessage], warnings: list[events.Warning]) -> tuple[Message, ...]:
    check_turns(len(given), param="messages")
    return tuple(_message(message, warnings) for message in given)


def _message(given: WireMessage, warnings: list[events.Warning]) -> Message:
    return Message(
        role=_role(given.role.lower(), warnings),
        content=with_text(given.content, attachments(given.images)),
        thinking=given.thinking or None,
        tool_calls=tuple(_tool_call(call) for call in given.tool_calls),
        tool_call_id=given.tool_call_id or None,
        tool_name=given.tool_name or None,
    )


def _role(role: str, warnings: list[events.Warning]) -> Role:
    if role in _ROLES:
        return role  # type: ignore[return-value]  # it is one of Role's words
    if role not in _OTHER_ROLES:
        warnings.append(events.Warning("role_unknown", f"the role {role!r} was read as 'user'"))
    return _OTHER_ROLES.get(role, "user")


def _tool_call(given: WireToolCall) -> ToolCall:
    arguments = {} if given.function.arguments is None else given.function.arguments
    if not isinstance(arguments, dict):
        raise refusal("bad_arguments")
    return ToolCall(given.function.name, text(arguments), given.id or None)


def count_images(given: Iterable[Message]) -> int:
    return sum(isinstance(part, ImagePart) for message in given for part in message.content)


def tools(given: Iterable[WireTool], budget: SchemaBudget) -> tuple[Tool, ...]:
    return tuple(_tool(tool, f"tools[{at}].function", budget) for at, tool in enumerate(given))


def _tool(given: WireTool, path: str, budget: SchemaBudget) -> Tool:
    parameters = given.function.parameters
    if not given.function.name:
        raise InvalidRequestError(f"'{path}.name' is missing: every tool needs a name", param=f"{path}.name")
    return Tool(
        name=given.function.name,
        description=given.function.description or None,
        parameters=checked_schema(parameters, param=f"{path}.parameters", budget=budget) if parameters else None,
    )


def output_format(given: Any, budget: SchemaBudget) -> OutputFormat | None:
    if given is None or given == "":
        return None
    if given == "json":
        return JsonObject()
    if isinstance(given, dict):
        return JsonSchema(checked_schema(given, param="format", budget=budget))
    raise refusal("invalid_format", raw=go_quoted(text(given)))


def wanted_thinking(given: Any) -> Thinking | None:
    """`think` as it was sent; None when it wasn't."""
    match given:
        case None:
            return None
        case bool():
            return Thinking(given)
        case str() if given in _EFFORTS:
            return Thinking(True, given)  # type: ignore[arg-type]  # it is one of the efforts
        case str():
            raise refusal("think_value", value=go_quoted(given))
        case _:
            raise refusal("think_type")


def thinking(wanted: Thinking | None, model: Model, *, name: str) -> Thinking | None:
    """What the engine is asked: a model that can think does, unless it is told not to."""
    if not model.capabilities:
        return wanted  # nothing is known of it: its engine says what it can do
    can_think = "thinking" in model.capabilities
    if wanted is not None and wanted.enabled and not can_think:
        raise refusal("not_for", name=name, what="thinking")
    if not can_think:
        return None
    return wanted or Thinking(True)
