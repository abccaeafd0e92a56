"""Our failures in Anthropic's shape: one table from kind to status and type."""

from __future__ import annotations

import math

import msgspec
from msgspec import Struct

from oprel.dialects.anthropic.wire import ErrorAnswer, ErrorObject
from oprel.dialects.exchange import Head
from oprel.dialects.headers import Headers, json_headers
from oprel.dialects.request_id import UNKNOWN, request_id
from oprel.errors import BusyError, ContextLengthError, OprelError

__all__ = ["ERRORS", "KINDS", "AnthropicErrors", "Row", "id_header"]


class Row(Struct, frozen=True):
    """`is_final`: asking again would give the same answer, so clients that retry a 5xx are told not to."""

    status: int
    type: str
    is_final: bool = False


_INVALID = Row(400, "invalid_request_error")
_FAILED = Row(500, "api_error")
_LOST = Row(500, "api_error", is_final=True)

# What isn't here is told by its status.
KINDS = {
    "invalid_request": _INVALID,
    "unsupported": _INVALID,
    "context_length": _INVALID,
    "invalid_name": _INVALID,
    "driver_unavailable": _INVALID,
    "too_large": Row(413, "request_too_large"),
    "authentication": Row(401, "authentication_error"),
    "permission": Row(403, "permission_error"),
    "not_found": Row(404, "not_found_error"),
    "busy": Row(529, "overloaded_error"),
    "engine_timeout": Row(504, "timeout_error"),
    "memory": _LOST,
    "damaged": _LOST,
    "no_space": _LOST,
    "config": _LOST,
}
_STATUSES = {row.status: row for row in KINDS.values() if row.status < 500} | {
    429: Row(429, "rate_limit_error"),
}


class AnthropicErrors:
    """An `ErrorRenderer`."""

    def whole(self, error: OprelError) -> tuple[Head, bytes]:
        row = _row(error)
        body = _body(row.type, _message(error))
        headers = json_headers(body) + id_header()
        if isinstance(error, BusyError):
            headers += ((b"retry-after", b"%d" % max(1, math.ceil(error.retry_after_s))),)
        if row.is_final:
            headers += ((b"x-should-retry", b"false"),)
        return Head(row.status, headers), body

    def chunk(self, error: OprelError) -> bytes:
        return b"event: error\ndata: %s\n\n" % _body(_row(error).type, _message(error))

    def of_route(self, status: int, message: str) -> tuple[Head, bytes]:
        """For a path that isn't there, or a method that it doesn't take."""
        body = _body(_STATUSES.get(status, _INVALID).type, message)
        return Head(status, json_headers(body) + id_header()), body


def id_header() -> Headers:
    """`request-id`, where Anthropic's clients look for it; none where the request has no id."""
    own = request_id.get()
    return () if own == UNKNOWN else ((b"request-id", own.encode()),)


def _row(error: OprelError) -> Row:
    return KINDS.get(error.kind) or _STATUSES.get(error.status, _FAILED)


def _body(type_: str, message: str) -> bytes:
    own = request_id.get()
    text = message.encode("utf-8", "backslashreplace").decode()  # it may quote what was refused for not being text
    return msgspec.json.encode(ErrorAnswer(ErrorObject(type_, text), None if own == UNKNOWN else own))


def _message(error: OprelError) -> str:
    """Programs look for the words "prompt is too long"."""
    if not isinstance(error, ContextLengthError):
        return error.message
    if not (error.prompt_tokens and error.context_tokens):
        return f"prompt is too long: {error.message}"
    return (
        f"prompt is too long: {error.prompt_tokens} tokens > {error.context_tokens} maximum: shorten it, or load the "
        "model with a larger context"
    )


ERRORS = AnthropicErrors()
