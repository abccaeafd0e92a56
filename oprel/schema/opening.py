"""What a model says before its client does: the system text and the messages that it was made with."""

from __future__ import annotations

from collections.abc import Sequence

from oprel.schema.messages import Message, TextPart
from oprel.schema.models import Model

__all__ = ["with_opening"]


def with_opening(model: Model, given: Sequence[Message]) -> tuple[Message, ...]:
    """The model's messages come first, and before them its system text unless the client begins with one."""
    own = model.messages
    if model.system and not (given and given[0].role == "system"):
        own = (Message("system", (TextPart(model.system),)), *own)
    return (*own, *given)
