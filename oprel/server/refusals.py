"""Answers that no route gives: each in the dialect of the path that was asked."""

from __future__ import annotations

import msgspec
from litestar import Response
from litestar.exceptions import HTTPException
from litestar.types import Receive, Scope, Send

from oprel.dialects.anthropic.errors import ERRORS as ANTHROPIC_ERRORS
from oprel.dialects.exchange import ErrorRenderer
from oprel.dialects.headers import json_headers
from oprel.dialects.ollama.errors import OllamaErrors
from oprel.dialects.openai.errors import ERRORS
from oprel.dialects.openai.wire import ErrorAnswer, ErrorObject
from oprel.errors import InvalidRequestError, OprelError
from oprel.server.choosing import asks_anthropic

__all__ = ["Header", "Refusal", "refusal", "unknown_route"]

Header = tuple[bytes, bytes]

# What OpenAI-compatible servers have beside `/v1`.
_BESIDE = frozenset({"/rerank", "/tokenize", "/detokenize"})


class Refusal:
    """A whole small answer; an ASGI app that gives it, and the framework's form of it."""

    def __init__(self, status: int, body: bytes = b"", headers: tuple[Header, ...] = ()) -> None:
        self.status = status
        self.body = body
        self.headers = headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status, "headers": list(self.headers)})
        await send({"type": "http.response.body", "body": self.body, "more_body": False})

    def as_response(self) -> Response[bytes]:
        headers = {name.decode(): value.decode() for name, value in self.headers if name != b"content-length"}
        media_type = headers.pop("content-type", "text/plain")
        return Response(self.body, status_code=self.status, headers=headers, media_type=media_type)


def refusal(error: OprelError, path: str) -> Refusal:
    """For what is refused before a route is asked."""
    head, body = _errors(path).whole(error)
    return Refusal(head.status, body, head.headers)


def unknown_route(error: HTTPException, path: str) -> Refusal:
    """For what the framework refuses: no such path, not that method, a request that it can't read."""
    allow = (error.headers or {}).get("allow", "")
    code = error.status_code
    allowed: tuple[Header, ...] = ((b"allow", allow.encode()),) if allow else ()
    said = {404: f"there is no {path!r} here", 405: f"{path!r} does not take this method: use {allow}"}
    if asks_anthropic(path):
        head, body = ANTHROPIC_ERRORS.of_route(code, said.get(code, error.detail))
        return Refusal(code, body, (*head.headers, *allowed))
    if _is_openai(path):
        body = _openai_body(said.get(code, error.detail))
        return Refusal(code, body, (*json_headers(body), *allowed))
    if code in (404, 405):
        body = b"404 page not found" if code == 404 else b"405 method not allowed"
        return Refusal(code, body, ((b"content-type", b"text/plain"), _length(body), *allowed))
    return refusal(InvalidRequestError(error.detail), path)


def _errors(path: str) -> ErrorRenderer:
    if asks_anthropic(path):
        return ANTHROPIC_ERRORS
    return ERRORS if _is_openai(path) else OllamaErrors()


def _is_openai(path: str) -> bool:
    return path == "/v1" or path.startswith("/v1/") or path in _BESIDE


def _openai_body(message: str) -> bytes:
    error = ErrorObject(message, "invalid_request_error", None, "unknown_url")
    return msgspec.json.encode(ErrorAnswer(error))


def _length(body: bytes) -> Header:
    return b"content-length", b"%d" % len(body)
