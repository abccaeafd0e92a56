"""What a request becomes when an engine is there to answer it, by OpenAI's documents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from oprel.dialects import settling
from oprel.schema import Capabilities, ChatRequest, CompletionRequest, Model

__all__ = ["settled"]

R = TypeVar("R", bound=ChatRequest | CompletionRequest)

# Above a model's own parameters: OpenAI's clients count on them.
_DIALECT: Mapping[str, Any] = {"temperature": 1.0, "top_p": 1.0}
_LACKS = {
    "thinking": "doesn't think: leave 'reasoning_effort' out, or send 'none'",
    "infill": "can't fill in before a 'suffix'",
    "tools": "can't call tools as it likes: its chat template has no place for them ('tool_choice' 'required' or "
    "a function makes a call certain)",
}


def settled(request: R, *, name: str, model: Model, driver: str, capabilities: Capabilities, time_limit_s: float) -> R:
    """See `oprel.dialects.settling`."""
    return settling.settled(
        request,
        name=name,
        model=model,
        driver=driver,
        capabilities=capabilities,
        time_limit_s=time_limit_s,
        dialect=_DIALECT,
        lacks=_LACKS,
    )
