"""What a request becomes once its engine is known: options that the engine doesn't honour are left out, as Ollama does
with what its runners don't know, and the client is told of those that it gave; all else that can't be done is refused.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec

from oprel.dialects.ollama.admission import ignored
from oprel.dialects.ollama.generation import Turn
from oprel.drivers import Engine
from oprel.drivers.enforced import check_request
from oprel.schema import ChatRequest, CompletionRequest

__all__ = ["settled"]

R = TypeVar("R", bound=ChatRequest | CompletionRequest)

# Ended by the clock on this side, whatever the engine can.
_OURS = frozenset({"time_limit_s"})


def settled(request: R, engine: Engine, turn: Turn) -> R:
    """Raises UnsupportedError, naming what the engine can't do, before the engine is asked."""
    capabilities = engine.capabilities
    check = msgspec.structs.replace(request, sampling=type(request.sampling)())
    check_request(check, capabilities, driver=engine.plan.driver, model=turn.model)
    known = capabilities.sampling | _OURS
    sampling = request.sampling
    empty = type(sampling)()
    unknown = [
        name
        for name in sampling.__struct_fields__
        if name not in known and getattr(sampling, name) != getattr(empty, name)
    ]
    if not unknown:
        return request
    turn.warnings += ignored([turn.asked[name] for name in unknown if name in turn.asked], ())
    left = msgspec.structs.replace(sampling, **{name: getattr(empty, name) for name in unknown})
    return msgspec.structs.replace(request, sampling=left)
