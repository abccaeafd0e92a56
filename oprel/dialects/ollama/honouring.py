"""What an engine takes of a request: parameters of sampling that it doesn't take are left out, with a warning for those
that were asked for, since a default that nobody chose must not make a request fail."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from oprel.dialects.ollama.options import OPTIONS
from oprel.drivers import Engine
from oprel.schema import ChatRequest, CompletionRequest, Sampling, events

__all__ = ["honoured", "thinking_if_able"]

RequestT = TypeVar("RequestT", ChatRequest, CompletionRequest)

_UNSET = Sampling()
_OURS = "time_limit_s"  # this side ends a generation by the clock, whatever the engine can
_NAMES = {option.goes_to: name for name, option in OPTIONS.items() if not option.in_load}


def honoured(engine: Engine, request: RequestT, asked: Sampling, warnings: list[events.Warning]) -> RequestT:
    """`request` without what `engine` doesn't take; `asked` is what the client's options said, before any default."""
    taken = engine.capabilities.sampling
    sampling = request.sampling
    left_out = [
        name
        for name in Sampling.__struct_fields__
        if name not in taken and name != _OURS and getattr(sampling, name) != getattr(_UNSET, name)
    ]
    if not left_out:
        return request
    named = [_NAMES.get(name, name) for name in left_out if getattr(asked, name) != getattr(_UNSET, name)]
    if named:
        text = f"the driver {engine.plan.driver!r} doesn't take: options.{', options.'.join(named)}"
        warnings.append(events.Warning("parameter_ignored", text))
    sampling = msgspec.structs.replace(sampling, **{name: getattr(_UNSET, name) for name in left_out})
    return msgspec.structs.replace(request, sampling=sampling)


def thinking_if_able(engine: Engine, request: ChatRequest, *, is_asked: bool) -> ChatRequest:
    """A model thinks by default where its template has a place for it, which is no promise that its engine can tell
    thoughts apart."""
    if is_asked or request.thinking is None or engine.capabilities.thinking:
        return request
    return msgspec.structs.replace(request, thinking=None)
