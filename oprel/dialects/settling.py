"""What a request becomes when an engine is there to answer it: checked against what the engine can do, and its gaps
filled with what the dialect, the model and then Oprel put there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from oprel.errors import UnsupportedError
from oprel.schema import (
    AudioPart,
    Capabilities,
    ChatRequest,
    CompletionRequest,
    Grammar,
    ImagePart,
    JsonObject,
    JsonSchema,
    Model,
    Sampling,
    sampling,
    with_opening,
)

__all__ = ["settled"]

R = TypeVar("R", bound=ChatRequest | CompletionRequest)

# These stand below a model's own parameters: what the engines' usual clients get.
_DEFAULTS: Mapping[str, Any] = {
    "top_k": 40,
    "min_p": 0.0,
    "typical_p": 1.0,
    "repeat_penalty": 1.0,
    "repeat_last_n": 64,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}


def settled(
    request: R,
    *,
    name: str,
    model: Model,
    driver: str,
    capabilities: Capabilities,
    time_limit_s: float,
    dialect: Mapping[str, Any],
    lacks: Mapping[str, str],
    fields: Mapping[str, str] | None = None,
) -> R:
    """The request (chat or completion) as the engine gets it: gaps filled, all that it asks for within what the engine
    can. `name` is the model's as the client wrote it, `dialect` what its documents put above a model's own parameters,
    `lacks` what is said of a capability that is missing, where a field is to be named, `fields` what its documents call
    fields of `Sampling` that have another name there. Raises UnsupportedError, naming the field and the driver."""
    _check_capabilities(request, name, driver, capabilities, {**_LACKS, **lacks})
    honoured = capabilities.sampling
    for field in request.sampling.__struct_fields__:
        if getattr(request.sampling, field) not in (None, ()) and field not in honoured:
            param = (fields or {}).get(field, field)
            raise UnsupportedError(
                f"'{param}' is not supported by the driver {driver!r}",
                capability=field,
                model=name,
                driver=driver,
                param=param,
            )
    if isinstance(request, ChatRequest) and request.tool_choice == "none" and not capabilities.tools:
        request = msgspec.structs.replace(request, tools=(), tool_choice=None)
    if isinstance(request, ChatRequest) and (model.system or model.messages):
        request = msgspec.structs.replace(request, messages=with_opening(model, request.messages))
    return msgspec.structs.replace(request, sampling=_filled(request.sampling, model, honoured, dialect, time_limit_s))


def _filled(
    asked: Sampling, model: Model, honoured: frozenset[str], dialect: Mapping[str, Any], time_limit_s: float
) -> Sampling:
    own = sampling.from_model(model)
    full = sampling.filled(
        asked,
        dialect={name: value for name, value in dialect.items() if name in honoured},
        model={name: value for name, value in own.items() if name in honoured},
        defaults={name: value for name, value in _DEFAULTS.items() if name in honoured},
    )
    if full.max_tokens is None and "time_limit_s" in honoured:
        full = msgspec.structs.replace(full, time_limit_s=time_limit_s)
    elif full.max_tokens == 0:
        # Engines give at least one token; the answer is muted instead, and its prompt is read and counted.
        full = msgspec.structs.replace(full, max_tokens=1)
    return full


def _check_capabilities(
    request: ChatRequest | CompletionRequest,
    name: str,
    driver: str,
    capabilities: Capabilities,
    lacks: Mapping[str, str],
) -> None:
    asked = {
        "json_schema": isinstance(request.format, JsonObject | JsonSchema),
        "grammar": isinstance(request.format, Grammar),
        "logprobs": request.logprobs is not None,
    }
    if isinstance(request, ChatRequest):
        asked["vision"] = _first_part(request, ImagePart) is not None
        asked["audio"] = _first_part(request, AudioPart) is not None
        is_callable = capabilities.can_call(request.tool_choice)
        asked["tools"] = bool(request.tools) and request.tool_choice != "none" and not is_callable
        asked["thinking"] = request.thinking is not None and request.thinking.enabled
    else:
        asked["infill"] = request.suffix is not None
    for capability, is_asked in asked.items():
        if is_asked and not getattr(capabilities, capability):
            raise UnsupportedError(
                f"the model {name!r} {lacks[capability]} (driver {driver!r})",
                capability=capability,
                model=name,
                driver=driver,
                param=_where(request, capability),
            )


_LACKS = {
    "json_schema": "can't be held to a format here",
    "grammar": "can't be held to a grammar here",
    "logprobs": "doesn't tell the probabilities of its tokens here",
    "vision": "takes no images",
    "audio": "takes no sound",
    "tools": "can't call tools: its chat template has no place for them",
    "thinking": "doesn't think",
    "infill": "can't fill in before another text",
}
_PARTS: dict[str, type[ImagePart | AudioPart]] = {"vision": ImagePart, "audio": AudioPart}


def _where(request: ChatRequest | CompletionRequest, capability: str) -> str | None:
    if capability not in _PARTS or not isinstance(request, ChatRequest):
        return None
    return _first_part(request, _PARTS[capability])


def _first_part(request: ChatRequest, kind: type[ImagePart | AudioPart]) -> str | None:
    for at, message in enumerate(request.messages):
        for number, part in enumerate(message.content):
            if isinstance(part, kind):
                return f"messages[{at}].content[{number}]"
    return None
