"""A Responses request, from OpenAI's form to ours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec import Struct

from oprel.dialects.body import converted
from oprel.dialects.bounds import SchemaBudget, checked_schema, schema_warnings
from oprel.dialects.loading import Loading, loading
from oprel.dialects.openai import rules
from oprel.dialects.openai.messages import check_images
from oprel.dialects.openai.requests import MAX_TOOLS, check_tool_name, thinking
from oprel.dialects.openai.responses.items import Turns
from oprel.dialects.openai.responses.wire import FunctionTool, ResponseBody, TextBody, ToolChoiceBody
from oprel.errors import InvalidRequestError, UnsupportedError
from oprel.schema import (
    ChatRequest,
    JsonObject,
    JsonSchema,
    Message,
    NamedTool,
    OutputFormat,
    Sampling,
    Tool,
    ToolChoice,
    events,
)

__all__ = ["Asked", "asked", "check"]

_INCLUDES = frozenset(
    {
        "file_search_call.results", "web_search_call.results", "web_search_call.action.sources",
        "message.input_image.image_url", "computer_call_output.output.image_url", "code_interpreter_call.outputs",
        "reasoning.encrypted_content", "message.output_text.logprobs",
    }
)  # fmt: skip
_SUMMARIES = ("auto", "concise", "detailed")
_TRUNCATIONS = ("auto", "disabled")
_MAX_METADATA = 16
_MAX_METADATA_KEY = 64
_MAX_METADATA_VALUE = 512

RawItem = dict[str, Any]


class Asked(Struct, frozen=True):
    """`has_summary`: the thinking is told as its own summary; `has_opaque`: it comes as `encrypted_content` too."""

    request: ChatRequest
    loading: Loading
    has_logprobs: bool
    has_summary: bool
    has_opaque: bool
    warnings: tuple[events.Warning, ...]
    unknown: tuple[str, ...]


def check(body: ResponseBody) -> None:
    """What can be told from the fields alone, before anything is read from the store."""
    rules.apply(rules.RESPONSES, body)
    for value in body.include or ():
        if value not in _INCLUDES:
            known = ", ".join(sorted(_INCLUDES))
            raise InvalidRequestError(f"'include' has {value[:80]!r}; these are known: {known}", param="include")
    if body.truncation not in (None, *_TRUNCATIONS):
        raise InvalidRequestError(
            f"'truncation' is {body.truncation!r}; it must be 'auto' or 'disabled'", param="truncation"
        )
    _check_metadata(body.metadata or {})
    _check_reasoning(body)


def asked(body: ResponseBody, history: Sequence[RawItem], items: Sequence[RawItem]) -> Asked:
    """`history` is the conversation before, `items` the request's own, its references resolved."""
    turns = Turns()
    if body.instructions:
        turns.add_instructions(body.instructions)
    turns.add_all(history, "previous_response_id")
    turns.add_all(items, "input")
    _check_messages(turns.messages)
    loaded = loading(body.model, body.num_ctx, body.options)
    dropped: list[str] = []
    tools, choice = _tools(body, dropped, turns.unknown)
    include = frozenset(body.include or ())
    reasoning = body.reasoning
    request = ChatRequest(
        messages=turns.messages,
        sampling=loaded.completed(
            Sampling(max_tokens=body.max_output_tokens, temperature=body.temperature, top_p=body.top_p)
        ),
        tools=tools,
        tool_choice=choice,
        parallel_tool_calls=body.parallel_tool_calls if tools else None,
        format=_format(body.text),
        thinking=thinking(reasoning.effort if reasoning else None, param="reasoning.effort"),
        logprobs=_logprobs(body, include),
        truncate=body.truncation == "auto",
    )
    return Asked(
        request=request,
        loading=loaded,
        has_logprobs=request.logprobs is not None,
        has_summary=reasoning is not None and bool(reasoning.summary or reasoning.generate_summary),
        has_opaque="reasoning.encrypted_content" in include,
        warnings=(*loaded.warnings, *schema_warnings(request.format, dropped)),
        unknown=tuple(turns.unknown),
    )


def _check_metadata(metadata: dict[str, str]) -> None:
    if len(metadata) > _MAX_METADATA:
        raise InvalidRequestError(
            f"'metadata' has {len(metadata)} entries; at most {_MAX_METADATA} are allowed", param="metadata"
        )
    for name, value in metadata.items():
        if len(name) > _MAX_METADATA_KEY or len(value) > _MAX_METADATA_VALUE:
            raise InvalidRequestError(
                f"'metadata' has an entry of {len(name)} and {len(value)} characters; at most {_MAX_METADATA_KEY} and "
                f"{_MAX_METADATA_VALUE} are allowed",
                param="metadata",
            )


def _check_reasoning(body: ResponseBody) -> None:
    for name in ("summary", "generate_summary"):
        value = getattr(body.reasoning, name, None)
        if value not in (None, *_SUMMARIES):
            raise InvalidRequestError(
                f"'reasoning.{name}' is {value!r}; it must be one of {', '.join(_SUMMARIES)}", param=f"reasoning.{name}"
            )


def _check_messages(messages: tuple[Message, ...]) -> None:
    if not messages:
        raise InvalidRequestError("'input' is required: send a text, or at least one item", param="input")
    check_images(messages, param="input")


def _logprobs(body: ResponseBody, include: frozenset[str]) -> int | None:
    return (body.top_logprobs or 0) if body.top_logprobs or "message.output_text.logprobs" in include else None


def _format(text: TextBody | None) -> OutputFormat | None:
    if text is None:
        return None
    if text.verbosity not in (None, "medium"):
        raise UnsupportedError(
            "'text.verbosity' is not supported: say it in a message", capability="verbosity", param="text.verbosity"
        )
    wanted = text.format
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return JsonObject()
    if wanted.type != "json_schema":
        raise InvalidRequestError(
            f"'text.format.type' is {wanted.type[:80]!r}; it must be 'text', 'json_object' or 'json_schema'",
            param="text.format.type",
        )
    if wanted.schema is None:
        raise InvalidRequestError("'text.format.schema' is required", param="text.format.schema")
    schema = checked_schema(wanted.schema, param="text.format.schema")
    return JsonSchema(schema, name=wanted.name, strict=bool(wanted.strict))


def _tools(
    body: ResponseBody, dropped: list[str], unknown: dict[str, None]
) -> tuple[tuple[Tool, ...], ToolChoice | None]:
    bodies = body.tools or []
    if len(bodies) > MAX_TOOLS:
        raise InvalidRequestError(f"'tools' has {len(bodies)} tools; at most {MAX_TOOLS} are allowed", param="tools")
    budget = SchemaBudget()
    tools = tuple(_tool(raw, f"tools[{at}]", budget, dropped, unknown) for at, raw in enumerate(bodies))
    return _chosen(tools, body.tool_choice)


def _tool(raw: dict[str, Any], path: str, budget: SchemaBudget, dropped: list[str], unknown: dict[str, None]) -> Tool:
    kind = raw.get("type")
    if kind != "function":
        raise UnsupportedError(
            f"'{path}.type' is {str(kind)[:80]!r}; only functions are supported",
            capability="tools",
            param=f"{path}.type",
        )
    found = converted(raw, FunctionTool, path=path, types="'function'")
    unknown |= dict.fromkeys(found.unknown)
    tool = found.body
    if tool.name is None:
        raise InvalidRequestError(f"'{path}.name' is required", param=f"{path}.name")
    check_tool_name(tool.name, f"{path}.name")
    parameters = None
    if tool.parameters is not None:
        parameters = checked_schema(
            tool.parameters, param=f"{path}.parameters", budget=budget, dropped=None if tool.strict else dropped
        )
    return Tool(tool.name, tool.description, parameters, strict=bool(tool.strict))


def _chosen(tools: tuple[Tool, ...], choice: str | ToolChoiceBody | None) -> tuple[tuple[Tool, ...], ToolChoice | None]:
    match choice:
        case None:
            return tools, None
        case "none" | "auto":
            return tools, (choice if tools else None)
        case "required" if tools:
            return tools, "required"
        case "required":
            raise InvalidRequestError("'tool_choice' is 'required', but there are no 'tools'", param="tool_choice")
        case str():
            raise InvalidRequestError(
                f"'tool_choice' is {choice[:80]!r}; it must be 'none', 'auto', 'required' or an object",
                param="tool_choice",
            )
        case ToolChoiceBody(type="function", name=str(name)):
            _check_named(name, tools, "tool_choice.name")
            return tools, NamedTool(name)
        case ToolChoiceBody(type="allowed_tools", tools=list()):
            return _allowed(tools, choice)
        case _:
            raise InvalidRequestError(
                f"'tool_choice.type' is {choice.type[:80]!r}; it must be 'function' with a 'name', or 'allowed_tools' "
                "with 'tools'",
                param="tool_choice.type",
            )


def _allowed(tools: tuple[Tool, ...], choice: ToolChoiceBody) -> tuple[tuple[Tool, ...], ToolChoice | None]:
    names = [str(tool.get("name")) for tool in choice.tools or ()]
    for name in names:
        _check_named(name, tools, "tool_choice.tools")
    if choice.mode not in ("auto", "required"):
        raise InvalidRequestError(
            f"'tool_choice.mode' is {choice.mode!r}; it must be 'auto' or 'required'", param="tool_choice.mode"
        )
    kept = tuple(tool for tool in tools if tool.name in names)
    return kept, ("required" if choice.mode == "required" and kept else "auto" if kept else None)


def _check_named(name: str, tools: Sequence[Tool], param: str) -> None:
    if all(tool.name != name for tool in tools):
        raise InvalidRequestError(f"'{param}' is {name[:80]!r}, which is not among 'tools'", param=param)
