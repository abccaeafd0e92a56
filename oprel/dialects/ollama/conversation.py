"""Asking an engine for the next turn of a conversation, made shorter when it doesn't fit."""

from __future__ import annotations

from oprel.dialects.ollama.generation import Begun, Turn, begun
from oprel.dialects.ollama.honouring import honoured, thinking_if_able
from oprel.dialects.ollama.truncation import fitted, truncation_warning
from oprel.drivers import Engine
from oprel.errors import ContextLengthError
from oprel.schema import ChatRequest

__all__ = ["opened", "rendered"]


async def opened(engine: Engine, *, request: ChatRequest, turn: Turn, truncate: bool) -> Begun:
    """Only a request that the engine finds too long is counted: the usual one costs nothing more."""
    request = honoured(engine, request, turn.asked, turn.warnings)
    request = thinking_if_able(engine, request, is_asked=turn.is_thinking_asked)
    try:
        return await begun(engine.chat(request))
    except ContextLengthError:
        shorter = await fitted(engine, request) if truncate else None
        if shorter is None:
            raise
        turn.warnings.append(truncation_warning(request, shorter))
        return await begun(engine.chat(shorter))


async def rendered(engine: Engine, *, request: ChatRequest, turn: Turn) -> str:
    return await engine.render(thinking_if_able(engine, request, is_asked=turn.is_thinking_asked))
