"""Requests, from Anthropic's form to ours. What only a loaded engine can say comes in afterwards, by `fitted`."""

from __future__ import annotations

from typing import Any, Literal, get_args

import msgspec
from msgspec import Struct

from oprel.dialects.anthropic import rules
from oprel.dialects.anthropic.blocks import BlockReader
from oprel.dialects.anthropic.conversation import conversation, is_prefilled
from oprel.dialects.anthropic.tools import chosen, tools
from oprel.dialects.anthropic.wire import CountBody, MessagesBody, ThinkingConfig
from oprel.dialects.bounds import checked_schema, checked_stops, schema_warnings
from oprel.dialects.loading import Loading, loading
from oprel.dialects.rules import apply
from oprel.errors import InvalidRequestError, UnsupportedError
from oprel.schema import (
    Capabilities,
    ChatRequest,
    JsonSchema,
    Sampling,
    Thinking,
    events,
    must_call,
)

__all__ = ["Asked", "counted_request", "effort_warnings", "fitted", "message_request"]

_Effort = Literal["minimal", "low", "medium", "high", "max"]
_EFFORTS: dict[str, _Effort] = {effort: effort for effort in get_args(_Effort) if effort != "minimal"} | {
    "xhigh": "max"
}
_DISPLAYS = (None, "summarized", "omitted")


class Asked(Struct, frozen=True):
    """`unknown` are the paths of fields that nobody knows; `warnings` say what of its schemas an answer may break, and
    which options nobody knows. `thinks_if_able`: a model that can think is asked to. `shows_thinking`: its text is
    told."""

    request: ChatRequest
    loading: Loading
    unknown: tuple[str, ...]
    warnings: tuple[events.Warning, ...]
    thinks_if_able: Thinking | None
    shows_thinking: bool

    @property
    def is_prefilled(self) -> bool:
        return is_prefilled(self.request.messages)


def message_request(body: MessagesBody) -> Asked:
    apply(rules.MESSAGES, body)
    sampling = Sampling(
        max_tokens=body.max_tokens,
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=body.top_k,
        stop=checked_stops(body.stop_sequences, param="stop_sequences"),
    )
    return _asked(body, sampling)


def counted_request(body: CountBody) -> Asked:
    apply(rules.COUNT, body)
    return _asked(body, Sampling())


def fitted(asked: Asked, capabilities: Capabilities, *, model: str, driver: str) -> ChatRequest:
    """The request for an engine of which it is known whether it thinks and goes on from an assistant's text."""
    request = asked.request
    if asked.thinks_if_able is not None and capabilities.thinking:
        request = msgspec.structs.replace(request, thinking=asked.thinks_if_able)
    if not asked.is_prefilled:
        return request
    if not capabilities.prefill:
        raise UnsupportedError(
            f"'messages' ends with an assistant's turn (a prefill), which the driver {driver!r} can't go on from: end "
            "it with a user's turn",
            capability="prefill",
            model=model,
            driver=driver,
            param="messages",
        )
    # Thinking would come before what is already said.
    return msgspec.structs.replace(request, thinking=Thinking(enabled=False))


def effort_warnings(asked: Asked, capabilities: Capabilities) -> tuple[events.Warning, ...]:
    """An effort has no effect on a model that doesn't think."""
    wanted = asked.thinks_if_able
    if wanted is None or wanted.effort is None or capabilities.thinking:
        return ()
    return (events.Warning("parameter_ignored", "'output_config.effort' has no effect: the model doesn't think"),)


def _asked(body: CountBody, sampling: Sampling) -> Asked:
    reader, dropped = BlockReader(), list[str]()
    found = tools(body.tools or [], reader, dropped)
    choice = chosen(body.tool_choice, found)
    is_single = body.tool_choice is not None and body.tool_choice.disable_parallel_tool_use
    thinking, if_able = _thinking(body)
    loaded = loading(body.model, body.num_ctx, body.options)
    request = ChatRequest(
        messages=conversation(body.system, body.messages, reader),
        sampling=loaded.completed(sampling),
        tools=found,
        tool_choice=choice,
        parallel_tool_calls=False if found and is_single else None,
        format=_format(body),
        thinking=thinking,
    )
    _check_prefill(request)
    return Asked(
        request,
        loaded,
        unknown=tuple(dict.fromkeys(reader.unknown)),
        warnings=(*loaded.warnings, *schema_warnings(request.format, dropped)),
        thinks_if_able=if_able,
        shows_thinking=body.thinking is None or body.thinking.display != "omitted",
    )


def _check_prefill(request: ChatRequest) -> None:
    """What begins elsewhere can't be held to a form from its start on."""
    if not is_prefilled(request.messages):
        return
    for name, is_asked in (
        ("thinking", request.thinking is not None and request.thinking.enabled),
        ("tool_choice", must_call(request.tool_choice)),
        ("output_config.format", request.format is not None),
    ):
        if is_asked:
            raise UnsupportedError(
                f"'{name}' is not supported together with 'messages' that end with an assistant's turn",
                capability="prefill",
                param=name,
            )


def _thinking(body: CountBody) -> tuple[Thinking | None, Thinking | None]:
    """What is asked for in any case, and what of a model that can."""
    effort = _effort(body)
    config = body.thinking
    _check_display(config)
    match config:
        case None:
            return None, None if effort is None else Thinking(enabled=True, effort=effort)
        case ThinkingConfig(type="enabled"):
            return Thinking(enabled=True, effort=effort), None
        case ThinkingConfig(type="disabled"):
            return Thinking(enabled=False), None
        case ThinkingConfig(type="adaptive"):
            return None, Thinking(enabled=True, effort=effort)
        case ThinkingConfig(type="between_tools"):
            raise UnsupportedError(
                "'thinking.type' is 'between_tools', which is not supported: send 'adaptive'",
                capability="thinking",
                param="thinking.type",
            )
        case _:
            raise InvalidRequestError(
                f"'thinking.type' is {config.type[:80]!r}; it must be 'enabled', 'disabled' or 'adaptive'",
                param="thinking.type",
            )


def _check_display(config: ThinkingConfig | None) -> None:
    if config is not None and config.display not in _DISPLAYS:
        raise InvalidRequestError(
            f"'thinking.display' is {str(config.display)[:80]!r}; it must be 'summarized' or 'omitted'",
            param="thinking.display",
        )


def _effort(body: CountBody) -> _Effort | None:
    effort = body.output_config.effort if body.output_config is not None else None
    if effort is None:
        return None
    if effort not in _EFFORTS:
        raise InvalidRequestError(
            f"'output_config.effort' is {effort[:80]!r}; it must be one of {', '.join(_EFFORTS)}",
            param="output_config.effort",
        )
    return _EFFORTS[effort]


def _format(body: CountBody) -> JsonSchema | None:
    newer = body.output_config.format if body.output_config is not None else None
    param = "output_config.format" if newer is not None else "output_format"
    wanted: dict[str, Any] | None = newer if newer is not None else body.output_format
    match wanted:
        case None:
            return None
        case {"type": "json_schema", "schema": schema}:
            return JsonSchema(checked_schema(schema, param=f"{param}.schema"), strict=True)
        case _:
            raise InvalidRequestError(f"'{param}' must be {{'type': 'json_schema', 'schema': …}}", param=param)
