"""A conversation that is longer than the context: oldest turns go, system messages and the last turn stay."""

from __future__ import annotations

import msgspec

from oprel.drivers import Engine
from oprel.schema import ChatRequest, Message, events

__all__ = ["fitted", "truncation_warning"]


async def fitted(engine: Engine, request: ChatRequest) -> ChatRequest | None:
    """`request` with as few of its oldest turns left out as makes the rest fit; None where that can't help.

    The engine renders and counts, a few times (halving), so that the count is the one that it will make.
    """
    if not engine.capabilities.tokenize or _droppable(request.messages) < 1:
        return None
    fewest, most = 1, _droppable(request.messages)
    if not await _fits(engine, _without(request, most)):
        return None
    while fewest < most:
        middle = (fewest + most) // 2
        if await _fits(engine, _without(request, middle)):
            most = middle
        else:
            fewest = middle + 1
    return _without(request, most)


def truncation_warning(before: ChatRequest, after: ChatRequest) -> events.Warning:
    dropped = len(before.messages) - len(after.messages)
    return events.Warning(
        "prompt_truncated", f"the conversation didn't fit: its {dropped} oldest messages were left out"
    )


async def _fits(engine: Engine, request: ChatRequest) -> bool:
    tokens = await engine.tokenize(await engine.render(request), add_special=True)
    # One token at least must be left to answer with.
    return len(tokens) < engine.plan.context_tokens


def _droppable(messages: tuple[Message, ...]) -> int:
    return sum(1 for message in messages[:-1] if message.role != "system")


def _without(request: ChatRequest, count: int) -> ChatRequest:
    """`request` without the first `count` messages that aren't system messages."""
    kept: list[Message] = []
    left = count
    for message in request.messages:
        if left and message.role != "system":
            left -= 1
            continue
        kept.append(message)
    return msgspec.structs.replace(request, messages=tuple(kept))
