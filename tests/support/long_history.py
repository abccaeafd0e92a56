"""A long conversation, as clients of each dialect send it, and what is done with it before an engine sees it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from oprel.dialects.anthropic.requests import message_request
from oprel.dialects.anthropic.wire import MessagesBody
from oprel.dialects.body import read
from oprel.dialects.ollama import translation
from oprel.dialects.ollama import wire as ollama
from oprel.dialects.openai.requests import chat_request
from oprel.dialects.openai.responses.items import as_items
from oprel.dialects.openai.responses.requests import asked, check
from oprel.dialects.openai.responses.wire import ResponseBody
from oprel.dialects.openai.wire import ChatBody
from oprel.schema import ChatRequest

__all__ = ["PATHS", "body", "translated"]

_SAID = "Why is the sky blue at noon, and red in the evening? Tell me in a few words, as you did before, please. "


def turns(count: int) -> list[dict[str, str]]:
    """`count` messages of 200 characters, the last one the user's."""
    roles = ("assistant", "user") if count % 2 == 0 else ("user", "assistant")
    return [{"role": roles[at % 2], "content": f"{at}: {_SAID}{_SAID}"[:200]} for at in range(count)]


def body(path: str, count: int, *, model: str = "tiny", tokens: int = 1) -> dict[str, Any]:
    """A streamed request with so many messages."""
    asked: dict[str, Any] = {"model": model, "stream": True}
    match path:
        case "/v1/responses":
            return asked | {"input": turns(count), "max_output_tokens": tokens, "store": False}
        case "/api/chat":
            return asked | {"messages": turns(count), "options": {"num_predict": tokens}}
        case _:
            return asked | {"messages": turns(count), "max_tokens": tokens}


def _openai(raw: bytes) -> ChatRequest:
    return chat_request(_now(raw, ChatBody)).request


def _responses(raw: bytes) -> ChatRequest:
    found = _now(raw, ResponseBody)
    check(found)
    return asked(found, (), as_items(found.input)).request


def _anthropic(raw: bytes) -> ChatRequest:
    return message_request(_now(raw, MessagesBody)).request


def _ollama(raw: bytes) -> ChatRequest:
    found, _ = ollama.read(raw, ollama.ChatRequest)
    return ChatRequest(translation.messages(found.messages, []))


def _now(raw: bytes, kind: Any) -> Any:
    """Read without a loop or a thread between."""
    reading = read(raw, kind)
    try:
        reading.send(None)
    except StopIteration as done:
        return done.value.body
    raise RuntimeError("the body is read in a thread: it is too large for this")


translated: dict[str, Callable[[bytes], ChatRequest]] = {
    "/v1/chat/completions": _openai,
    "/v1/responses": _responses,
    "/v1/messages": _anthropic,
    "/api/chat": _ollama,
}
PATHS = tuple(translated)
