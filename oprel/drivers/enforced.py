"""What a request asks for, held against what an engine declares: refused by name, before the engine sees it.

For engines without a door of their own; engines that speak HTTP have theirs in `upstream/refusals.py`.
"""

from __future__ import annotations

import msgspec

from oprel.errors import InvalidRequestError, UnsupportedError
from oprel.schema import (
    AudioPart,
    Capabilities,
    ChatRequest,
    CompletionRequest,
    EmbedRequest,
    Grammar,
    ImagePart,
    JsonObject,
    JsonSchema,
    Sampling,
)

__all__ = ["asked_for", "check_request"]

Request = ChatRequest | CompletionRequest | EmbedRequest

_LACKS = {
    "chat": "can't chat",
    "complete": "can't complete text",
    "embed": "makes no embeddings",
    "vision": "takes no images",
    "audio": "takes no sound",
    "tools": "can't call tools",
    "thinking": "doesn't think",
    "json_schema": "can't be held to JSON",
    "grammar": "can't follow a grammar",
    "logprobs": "doesn't tell logprobs",
    "infill": "can't fill in the middle of a text",
}
# Whoever drives an engine ends a generation by the clock, whatever the engine can.
_NEVER_REFUSED = frozenset({"time_limit_s"})


def asked_for(request: Request) -> tuple[str, ...]:
    """The capabilities that an engine needs for `request`, its kind first."""
    if isinstance(request, EmbedRequest):
        return ("embed",)
    form = request.format
    needs = {
        "json_schema": isinstance(form, JsonObject | JsonSchema),
        "grammar": isinstance(form, Grammar),
        "logprobs": request.logprobs is not None,
    }
    if isinstance(request, CompletionRequest):
        needs |= {"infill": request.suffix is not None, "vision": bool(request.images)}
        kind = "complete"
    else:
        parts = [part for message in request.messages for part in message.content]
        needs |= {
            "vision": any(isinstance(part, ImagePart) for part in parts),
            "audio": any(isinstance(part, AudioPart) for part in parts),
            "tools": bool(request.tools),
            "thinking": request.thinking is not None and request.thinking.enabled,
        }
        kind = "chat"
    return (kind, *(name for name, is_needed in needs.items() if is_needed))


def check_request(request: Request, capabilities: Capabilities, *, driver: str, model: str) -> None:
    """Raises UnsupportedError for the first thing that is asked for and can't be done."""
    for name in asked_for(request):
        if not getattr(capabilities, name):
            raise _unsupported(name, f"{model!r} on the driver {driver!r} {_LACKS[name]}", driver=driver, model=model)
    if isinstance(request, EmbedRequest):
        if not request.inputs:
            raise InvalidRequestError("there is nothing to embed: the input is empty", param="input")
        return
    for name in _given(request.sampling):
        if name not in capabilities.sampling and name not in _NEVER_REFUSED:
            text = f"{model!r} on the driver {driver!r} can't honour the parameter {name}"
            raise _unsupported(name, text, driver=driver, model=model, param=name)


def _given(sampling: Sampling) -> list[str]:
    values = zip(sampling.__struct_fields__, msgspec.structs.astuple(sampling), strict=True)
    return [name for name, value in values if value not in (None, ())]


def _unsupported(capability: str, text: str, *, driver: str, model: str, param: str | None = None) -> UnsupportedError:
    return UnsupportedError(text, capability=capability, model=model, driver=driver, param=param)
