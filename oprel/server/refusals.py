"""Answers that no route gives: each in the dialect of the path that was asked."""

from __future__ import annotations

import msgspec
from litestar import Response
from litestar.exceptions import HTTPException
from litestar.types import Receive, Scope, Send

from oprel.errors import BusyError, OprelError

__all__ = ["Header", "Refusal", "refusal", "unknown_route"]

Header = tuple[bytes, bytes]


class Refusal:
    """A whole small answer; an ASGI app that gives it, and the framework's form of it."""

    def __init__(self, status: int, body: bytes = b"", headers: tuple[Header, ...] = ()) -> None:
        self.status = status
        self.body = body
        self.headers = headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        length = () if self.status == 204 else ((b"content-length", str(len(self.body)).encode()),)
        headers = [*length, *self.headers]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": False})

    def as_response(self) -> Response[bytes]:
        headers = {name.decode(): value.decode() for name, value in self.headers}
        media_type = headers.pop("content-type", "text/plain")
        return Response(self.body, status_code=self.status, headers=headers, media_type=media_type)


_JSON: Header = (b"content-type", b"application/json")
_TEXT: Header = (b"content-type", b"text/plain")

# OpenAI's `type` by our kinds; its `code` is our kind where it has one of its own.
_OPENAI_TYPES = {"authentication": "authentication_error", "permission": "permission_error"}
_OPENAI_CODES = {"authentication": "invalid_api_key", "busy": "server_busy", "too_large": "request_too_large"}


def refusal(error: OprelError, path: str) -> Refusal:
    """For what is refused before a route is asked."""
    headers: tuple[Header, ...] = (_JSON,)
    if error.status == 401:
        headers += ((b"www-authenticate", b"Bearer"),)
    if isinstance(error, BusyError):
        headers += ((b"retry-after", str(max(1, round(error.retry_after_s))).encode()),)
    return Refusal(error.status, _body(error.message, error.kind, error.status, path), headers)


def unknown_route(error: HTTPException, path: str) -> Refusal:
    """For what the framework refuses: no such path, not that method, a request that it can't read."""
    allow = (error.headers or {}).get("allow", "")
    if _is_openai(path):
        message = {404: f"there is no {path!r} here", 405: f"{path!r} does not take this method: use {allow}"}
        body = _body(message.get(error.status_code, error.detail), "unknown_url", error.status_code, path)
        content_type = _JSON
    elif error.status_code in (404, 405):
        body = b"404 page not found" if error.status_code == 404 else b"405 method not allowed"
        content_type = _TEXT
    else:
        body = _body(error.detail, "invalid_request", error.status_code, path)
        content_type = _JSON
    headers = (content_type, (b"allow", allow.encode())) if allow else (content_type,)
    return Refusal(error.status_code, body, headers)


def _is_openai(path: str) -> bool:
    return path == "/v1" or path.startswith("/v1/")


def _body(message: str, kind: str, status: int, path: str) -> bytes:
    if not _is_openai(path):
        return msgspec.json.encode({"error": message})
    default = "server_error" if status >= 500 else "invalid_request_error"
    error = {
        "message": message,
        "type": _OPENAI_TYPES.get(kind, default),
        "param": None,
        "code": _OPENAI_CODES.get(kind, kind),
    }
    return msgspec.json.encode({"error": error})
