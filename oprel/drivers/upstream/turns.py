"""Which turns of a conversation go first when it's longer than the context."""

from __future__ import annotations

import msgspec

from oprel.errors import ContextLengthError
from oprel.schema import ChatRequest, Message, TextPart, events

__all__ = ["MAX_TRUNCATIONS", "TRUNCATED", "shortened", "without_oldest"]

MAX_TRUNCATIONS = 20
TRUNCATED = events.Warning(
    "prompt_truncated", "the conversation was longer than the context: its oldest turns were left out"
)

# What a template puts around a message, in characters, roughly.
_AROUND = 20


def shortened(request: ChatRequest, error: ContextLengthError) -> ChatRequest | None:
    """`request` without as many of its oldest turns as `error` says are too many; None where none is left."""
    excess = 0.25
    if error.prompt_tokens and error.context_tokens:
        excess = max(0.02, 1 - error.context_tokens / error.prompt_tokens)
    messages = without_oldest(request.messages, excess=excess)
    return None if messages is None else msgspec.structs.replace(request, messages=messages)


def without_oldest(messages: tuple[Message, ...], *, excess: float) -> tuple[Message, ...] | None:
    """`messages` without the oldest turns that make up at least the share `excess` (0 to 1) of all their text.

    System messages and the last message stay; a tool's answer goes with the call that it answers. None when there is
    nothing left to drop.
    """
    target = max(1.0, excess * sum(_size(message) for message in messages))
    last = len(messages) - 1
    dropped: set[int] = set()
    size = 0
    for position, message in enumerate(messages[:last]):
        if message.role in ("system", "developer"):
            continue
        if size >= target and not _belongs(message, position, dropped):
            break
        dropped.add(position)
        size += _size(message)
    if not dropped:
        return None
    return tuple(message for position, message in enumerate(messages) if position not in dropped)


def _belongs(message: Message, position: int, dropped: set[int]) -> bool:
    """A tool's answer to a call that is gone."""
    return message.role == "tool" and position - 1 in dropped


def _size(message: Message) -> int:
    text = sum(len(part.text) if isinstance(part, TextPart) else 1000 for part in message.content)
    return _AROUND + text + sum(len(call.arguments) for call in message.tool_calls)
