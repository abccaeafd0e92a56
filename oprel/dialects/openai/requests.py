"""Requests, from OpenAI's form to ours. What only a loaded engine can say comes in afterwards, in `settling`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import msgspec
from msgspec import Struct

from oprel.dialects.bounds import SchemaBudget, checked_schema, checked_stops, schema_warnings
from oprel.dialects.keep_alive import keep_alive_s
from oprel.dialects.loading import Loading, loading
from oprel.dialects.openai import rules
from oprel.dialects.openai.messages import conversation
from oprel.dialects.openai.wire import (
    ChatBody,
    CompletionBody,
    EmbeddingBody,
    ResponseFormat,
    ToolBody,
    ToolChoiceBody,
)
from oprel.errors import InvalidRequestError, UnsupportedError
from oprel.schema import (
    ChatRequest,
    CompletionRequest,
    EmbedRequest,
    JsonObject,
    JsonSchema,
    NamedTool,
    OutputFormat,
    Sampling,
    Thinking,
    Tool,
    ToolChoice,
    events,
)

__all__ = [
    "MAX_TOOLS",
    "Chat",
    "Prompts",
    "chat_request",
    "check_tool_name",
    "completion_requests",
    "embed_request",
    "include_usage",
    "keep_alive_s",
    "thinking",
]

MAX_TOOLS = 128
_MAX_TOOL_NAME = 256
_MAX_LOGIT_BIAS = 1024
_MAX_BIAS = 100
_MAX_INPUTS = 2048
_MAX_CHOICES = 256
_MAX_TOKEN_ID = 2**31 - 1

_Effort = Literal["minimal", "low", "medium", "high", "max"]
_EFFORTS: dict[str, _Effort] = {effort: effort for effort in get_args(_Effort)} | {"xhigh": "max"}


class Chat(Struct, frozen=True):
    """`warnings`: what of its schemas an answer may break."""

    request: ChatRequest
    loading: Loading
    warnings: tuple[events.Warning, ...]


class Prompts(Struct, frozen=True):
    """One request for each prompt; each gets `n` choices, and `echo` puts the prompt before the text."""

    requests: tuple[CompletionRequest, ...]
    n: int
    echo: bool
    loading: Loading
    warnings: tuple[events.Warning, ...]


def chat_request(body: ChatBody) -> Chat:
    rules.apply(rules.CHAT, body)
    if body.max_tokens is not None and body.max_completion_tokens is not None:
        raise InvalidRequestError(
            "'max_tokens' and 'max_completion_tokens' mean the same: send one of them", param="max_tokens"
        )
    dropped: list[str] = []
    tools, choice = _tools(body, dropped)
    loaded = loading(body.model, body.num_ctx, body.options)
    request = ChatRequest(
        messages=conversation(body.messages),
        sampling=loaded.completed(_sampling(body, max_tokens=_either(body.max_completion_tokens, body.max_tokens))),
        tools=tools,
        tool_choice=choice,
        parallel_tool_calls=body.parallel_tool_calls if tools else None,
        format=_format(body.response_format),
        thinking=thinking(body.reasoning_effort),
        logprobs=_chat_logprobs(body),
    )
    return Chat(request, loaded, (*loaded.warnings, *schema_warnings(request.format, dropped)))


def completion_requests(body: CompletionBody) -> Prompts:
    rules.apply(rules.COMPLETIONS, body)
    n = body.n or 1
    if (body.best_of or 1) > n:
        raise UnsupportedError(
            f"'best_of' is {body.best_of}, more than 'n' ({n}): choices are not ranked; ask for 'n' of them",
            capability="best_of",
            param="best_of",
        )
    if body.echo and body.logprobs is not None:
        raise UnsupportedError(
            "'echo' together with 'logprobs' is not supported: engines don't tell the prompt's own probabilities",
            capability="echo",
            param="echo",
        )
    prompts = _texts("" if body.prompt is None else body.prompt, param="prompt")
    if len(prompts) * n > _MAX_CHOICES:
        raise InvalidRequestError(
            f"'prompt' and 'n' ask for {len(prompts) * n} choices; at most {_MAX_CHOICES} are allowed", param="prompt"
        )
    loaded = loading(body.model, body.num_ctx, body.options)
    shared = CompletionRequest(
        prompt="",
        sampling=loaded.completed(_sampling(body, max_tokens=body.max_tokens)),
        suffix=body.suffix or None,
        format=_format(body.response_format),
        logprobs=body.logprobs,
    )
    requests = tuple(msgspec.structs.replace(shared, prompt=prompt) for prompt in prompts)
    warnings = (*loaded.warnings, *schema_warnings(shared.format, ()))
    return Prompts(requests, n, bool(body.echo), loaded, warnings)


def embed_request(body: EmbeddingBody) -> EmbedRequest:
    rules.apply(rules.EMBEDDINGS, body)
    if body.encoding_format not in (None, "float", "base64"):
        raise InvalidRequestError(
            f"'encoding_format' is {body.encoding_format!r}; it must be 'float' or 'base64'", param="encoding_format"
        )
    inputs = _texts(body.input, param="input")
    if len(inputs) > _MAX_INPUTS:
        raise InvalidRequestError(
            f"'input' has {len(inputs)} entries; at most {_MAX_INPUTS} are allowed", param="input"
        )
    return EmbedRequest(inputs)


def include_usage(body: ChatBody | CompletionBody) -> bool:
    return body.stream_options is not None and bool(body.stream_options.include_usage)


def _either(one: int | None, other: int | None) -> int | None:
    return other if one is None else one


def _sampling(body: ChatBody | CompletionBody, *, max_tokens: int | None) -> Sampling:
    return Sampling(
        max_tokens=max_tokens,
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=None if body.top_k is None else max(0, body.top_k),
        min_p=body.min_p,
        repeat_penalty=body.repeat_penalty,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        seed=body.seed,
        stop=checked_stops(body.stop, param="stop"),
        logit_bias=_logit_bias(body.logit_bias or {}),
    )


def _logit_bias(bias: dict[str, float]) -> tuple[tuple[int, float], ...]:
    if len(bias) > _MAX_LOGIT_BIAS:
        raise InvalidRequestError(
            f"'logit_bias' has {len(bias)} tokens; at most {_MAX_LOGIT_BIAS} are allowed", param="logit_bias"
        )
    return tuple((_token_id(token), _bias(token, value)) for token, value in bias.items())


def _token_id(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 10 and int(text) <= _MAX_TOKEN_ID):
        raise InvalidRequestError(f"'logit_bias' has the key {text[:40]!r}; keys are token ids", param="logit_bias")
    return int(text)


def _bias(token: str, value: float) -> float:
    if not -_MAX_BIAS <= value <= _MAX_BIAS:
        raise InvalidRequestError(
            f"'logit_bias.{token}' is {value}; it must be between -{_MAX_BIAS} and {_MAX_BIAS}",
            param=f"logit_bias.{token}",
        )
    return value


def _chat_logprobs(body: ChatBody) -> int | None:
    if body.top_logprobs and not body.logprobs:
        raise InvalidRequestError("'top_logprobs' needs 'logprobs' to be true", param="top_logprobs")
    return (body.top_logprobs or 0) if body.logprobs else None


def thinking(effort: str | None, *, param: str = "reasoning_effort") -> Thinking | None:
    if effort is None:
        return None
    if effort == "none":
        return Thinking(enabled=False)
    if effort not in _EFFORTS:
        raise InvalidRequestError(
            f"'{param}' is {effort!r}; it must be one of none, {', '.join(_EFFORTS)}", param=param
        )
    return Thinking(enabled=True, effort=_EFFORTS[effort])


def _format(body: ResponseFormat | None) -> OutputFormat | None:
    match body:
        case None | ResponseFormat(type="text"):
            return None
        case ResponseFormat(type="json_object"):
            return JsonObject()
        case ResponseFormat(type="json_schema", json_schema=spec) if spec is not None:
            if spec.schema is None:
                return JsonObject()
            text = checked_schema(spec.schema, param="response_format.json_schema.schema")
            return JsonSchema(text, name=spec.name, strict=bool(spec.strict))
        case ResponseFormat(type="json_schema"):
            raise InvalidRequestError("'response_format.json_schema' is required", param="response_format.json_schema")
        case _:
            raise InvalidRequestError(
                f"'response_format.type' is {body.type!r}; it must be 'text', 'json_object' or 'json_schema'",
                param="response_format.type",
            )


def _tools(body: ChatBody, dropped: list[str]) -> tuple[tuple[Tool, ...], ToolChoice | None]:
    bodies = body.tools or []
    if len(bodies) > MAX_TOOLS:
        raise InvalidRequestError(f"'tools' has {len(bodies)} tools; at most {MAX_TOOLS} are allowed", param="tools")
    budget = SchemaBudget()
    tools = tuple(_tool(tool, f"tools[{at}]", budget, dropped) for at, tool in enumerate(bodies))
    return _chosen(tools, body.tool_choice)


def _tool(body: ToolBody, path: str, budget: SchemaBudget, dropped: list[str]) -> Tool:
    """What a tool that isn't strict asks beyond bounds is dropped: clients bring tools that others made."""
    if body.type != "function":
        raise UnsupportedError(
            f"'{path}.type' is {body.type!r}; only functions are supported", capability="tools", param=f"{path}.type"
        )
    if body.function is None:
        raise InvalidRequestError(f"'{path}.function' is required", param=f"{path}.function")
    function = body.function
    check_tool_name(function.name, f"{path}.function.name")
    parameters = None
    if function.parameters is not None:
        parameters = checked_schema(
            function.parameters,
            param=f"{path}.function.parameters",
            budget=budget,
            dropped=None if function.strict else dropped,
        )
    return Tool(function.name, function.description, parameters, strict=bool(function.strict))


def check_tool_name(name: str, path: str) -> None:
    if not name.strip() or len(name) > _MAX_TOOL_NAME or not name.isprintable():
        raise InvalidRequestError(
            f"'{path}' is {name[:80]!r}; it must be 1 to {_MAX_TOOL_NAME} printable characters", param=path
        )


def _chosen(tools: tuple[Tool, ...], choice: str | ToolChoiceBody | None) -> tuple[tuple[Tool, ...], ToolChoice | None]:
    match choice:
        case None:
            return tools, None
        case "none" | "auto":
            return tools, (choice if tools else None)
        case "required" if tools:
            return tools, "required"
        case str():
            raise _bad_choice(choice, tools)
        case ToolChoiceBody(type="function", function=named) if named is not None:
            _check_named(named.name, tools, "tool_choice.function.name")
            return tools, NamedTool(named.name)
        case ToolChoiceBody(type="allowed_tools", allowed_tools=allowed) if allowed is not None:
            names = [tool.function.name for tool in allowed.tools if tool.function is not None]
            for name in names:
                _check_named(name, tools, "tool_choice.allowed_tools.tools")
            if allowed.mode not in ("auto", "required"):
                raise InvalidRequestError(
                    f"'tool_choice.allowed_tools.mode' is {allowed.mode!r}; it must be 'auto' or 'required'",
                    param="tool_choice.allowed_tools.mode",
                )
            kept = tuple(tool for tool in tools if tool.name in names)
            return kept, ("required" if allowed.mode == "required" and kept else "auto" if kept else None)
        case _:
            raise InvalidRequestError(
                f"'tool_choice.type' is {choice.type!r}; it must be 'function' or 'allowed_tools', "
                "with the field of that name",
                param="tool_choice.type",
            )


def _bad_choice(choice: str, tools: Sequence[Tool]) -> InvalidRequestError:
    if choice == "required" and not tools:
        return InvalidRequestError("'tool_choice' is 'required', but there are no 'tools'", param="tool_choice")
    return InvalidRequestError(
        f"'tool_choice' is {choice!r}; it must be 'none', 'auto', 'required' or an object", param="tool_choice"
    )


def _check_named(name: str, tools: Sequence[Tool], param: str) -> None:
    if all(tool.name != name for tool in tools):
        raise InvalidRequestError(f"'{param}' is {name!r}, which is not among 'tools'", param=param)


def _texts(value: str | list[str | int | list[int]], *, param: str) -> tuple[str | tuple[int, ...], ...]:
    """A text, the tokens of one, or several of either."""
    if isinstance(value, str):
        return (value,)
    if not value:
        raise InvalidRequestError(f"'{param}' is an empty list: send at least one entry", param=param)
    if isinstance(value[0], int):
        return (_tokens(value, param),)
    return tuple(
        entry if isinstance(entry, str) else _tokens(entry, f"{param}[{at}]") for at, entry in enumerate(value)
    )


def _tokens(value: Any, param: str) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(isinstance(token, int) for token in value):
        raise InvalidRequestError(f"'{param}' mixes token ids with something else", param=param)
    if not value:
        raise InvalidRequestError(f"'{param}' is an empty list of tokens", param=param)
    if not 0 <= min(value) <= max(value) <= _MAX_TOKEN_ID:
        raise InvalidRequestError(f"'{param}' holds a token id outside 0 to {_MAX_TOKEN_ID}", param=param)
    return tuple(value)
