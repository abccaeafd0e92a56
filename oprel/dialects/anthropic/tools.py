"""Tools and the choice among them, from Anthropic's form to ours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from oprel.dialects.anthropic.blocks import BlockReader
from oprel.dialects.anthropic.wire import ToolBody, ToolChoiceBody
from oprel.dialects.bounds import SchemaBudget, checked_schema
from oprel.errors import InvalidRequestError, UnsupportedError
from oprel.schema import NamedTool, Tool, ToolChoice

__all__ = ["chosen", "tools"]

_MAX_TOOLS = 128
_MAX_NAME = 256


def tools(bodies: Sequence[dict[str, Any]], reader: BlockReader, dropped: list[str]) -> tuple[Tool, ...]:
    """`dropped` learns what of schemas that aren't strict was left out for going beyond bounds."""
    if len(bodies) > _MAX_TOOLS:
        raise InvalidRequestError(f"'tools' has {len(bodies)} tools; at most {_MAX_TOOLS} are allowed", param="tools")
    budget = SchemaBudget()
    found = tuple(_tool(raw, f"tools[{at}]", reader, budget, dropped) for at, raw in enumerate(bodies))
    names = [tool.name for tool in found]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InvalidRequestError(f"'tools' has the name {twice!r} more than once", param="tools")
    return found


def chosen(body: ToolChoiceBody | None, among: Sequence[Tool]) -> ToolChoice | None:
    match body:
        case None:
            return None
        case ToolChoiceBody(type="auto"):
            return "auto" if among else None
        case ToolChoiceBody(type="none"):
            return "none" if among else None
        case ToolChoiceBody(type="any"):
            if not among:
                raise InvalidRequestError("'tool_choice' is 'any', but there are no 'tools'", param="tool_choice")
            return "required"
        case ToolChoiceBody(type="tool"):
            if all(tool.name != body.name for tool in among):
                raise InvalidRequestError(
                    f"'tool_choice.name' is {body.name!r}, which is not among 'tools'", param="tool_choice.name"
                )
            return NamedTool(body.name or "")
        case _:
            raise InvalidRequestError(
                f"'tool_choice.type' is {body.type[:80]!r}; it must be 'auto', 'any', 'tool' or 'none'",
                param="tool_choice.type",
            )


def _tool(raw: dict[str, Any], path: str, reader: BlockReader, budget: SchemaBudget, dropped: list[str]) -> Tool:
    kind = raw.get("type")
    if isinstance(kind, str) and kind != "custom":
        raise UnsupportedError(
            f"'{path}.type' is {kind[:80]!r}, which is not supported: nothing runs on this server but the model; "
            "describe the tool with an 'input_schema'",
            capability="tools",
            param=f"{path}.type",
        )
    body = reader.read(raw, ToolBody, path)
    if not body.name.strip() or len(body.name) > _MAX_NAME or not body.name.isprintable():
        raise InvalidRequestError(
            f"'{path}.name' is {body.name[:80]!r}; it must be 1 to {_MAX_NAME} printable characters",
            param=f"{path}.name",
        )
    schema = checked_schema(
        body.input_schema, param=f"{path}.input_schema", budget=budget, dropped=None if body.strict else dropped
    )
    return Tool(body.name, body.description, schema, strict=bool(body.strict))
