"""Our failures in OpenAI's shape: one table from kind to status, type and code."""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec
from msgspec import Struct

from oprel.dialects.exchange import Head
from oprel.dialects.headers import json_headers
from oprel.dialects.openai.wire import ErrorAnswer, ErrorObject
from oprel.errors import (
    BusyError,
    ContextLengthError,
    InvalidRequestError,
    OprelError,
    UnsupportedError,
)

__all__ = ["ERRORS", "KINDS", "PARAMS", "OpenAIErrors", "Row"]


class Row(Struct, frozen=True):
    """`is_final`: asking again would give the same answer, so clients that retry a 5xx are told not to."""

    status: int
    type: str = "invalid_request_error"
    code: str | None = None
    is_final: bool = False


KINDS = {
    "invalid_request": Row(400),
    "unsupported": Row(400, code="unsupported_parameter"),
    "context_length": Row(400, code="context_length_exceeded"),
    "invalid_name": Row(400, code="invalid_model_name"),
    "too_large": Row(413, code="request_too_large"),
    "authentication": Row(401, "authentication_error", "invalid_api_key"),
    "permission": Row(403, "permission_error", "permission_denied"),
    "not_found": Row(404, code="model_not_found"),
    "unknown_response": Row(404, code="response_not_found"),
    "busy": Row(503, "server_error", "server_busy"),
    "client_gone": Row(499, "server_error", "client_gone"),
    "memory": Row(500, "server_error", "insufficient_memory", is_final=True),
    "backend": Row(500, "server_error", "engine_error"),
    "driver_unavailable": Row(400, code="driver_unavailable"),
    "engine_start": Row(500, "server_error", "engine_start_failed"),
    "engine_failed": Row(502, "server_error", "engine_failed"),
    "engine_timeout": Row(504, "server_error", "engine_timeout"),
    "store": Row(500, "server_error", "store_error"),
    "damaged": Row(500, "server_error", "model_damaged", is_final=True),
    "template": Row(500, "server_error", "template_error", is_final=True),
    "no_space": Row(507, "server_error", "no_space", is_final=True),
    "source": Row(502, "server_error", "source_error"),
    "config": Row(500, "server_error", "server_misconfigured", is_final=True),
    "internal": Row(500, "server_error", "internal_error"),
}

# Which field asked for a capability that is missing; what isn't here is the model's own fault.
PARAMS = {
    "vision": "messages",
    "audio": "messages",
    "tools": "tools",
    "thinking": "reasoning_effort",
    "json_schema": "response_format",
    "grammar": "response_format",
    "logprobs": "logprobs",
    "infill": "suffix",
}


class OpenAIErrors:
    """An `ErrorRenderer`. `prompt` is the field that carries the prompt of the endpoint it serves; `params` says where
    its other fields differ from the chat's."""

    def __init__(self, prompt: str = "messages", params: Mapping[str, str] | None = None) -> None:
        self._prompt = prompt
        self._params = {**PARAMS, **(params or {})}

    def whole(self, error: OprelError) -> tuple[Head, bytes]:
        row = KINDS.get(error.kind, KINDS["internal"])
        body = self._body(error, row)
        headers = json_headers(body)
        if isinstance(error, BusyError):
            headers += ((b"retry-after", b"%d" % max(1, math.ceil(error.retry_after_s))),)
        if row.is_final:
            headers += ((b"x-should-retry", b"false"),)
        if row.status == 401:
            headers += ((b"www-authenticate", b"Bearer"),)
        return Head(row.status, headers), body

    def chunk(self, error: OprelError) -> bytes:
        return b"data: %s\n\n" % self._body(error, KINDS.get(error.kind, KINDS["internal"]))

    def _body(self, error: OprelError, row: Row) -> bytes:
        param, code = self._param(error), row.code
        if isinstance(error, UnsupportedError) and param == "model":
            code = "unsupported_model"
        answer = ErrorAnswer(ErrorObject(_text(self._message(error)), row.type, param and _text(param), code))
        return msgspec.json.encode(answer)

    def _param(self, error: OprelError) -> str | None:
        if isinstance(error, ContextLengthError):
            return self._prompt
        if isinstance(error, UnsupportedError):
            return error.param or self._params.get(error.capability, "model")
        if error.kind == "not_found":
            return "model"
        return error.param if isinstance(error, InvalidRequestError) else None

    def _message(self, error: OprelError) -> str:
        """Programs that shorten what was too long look for OpenAI's words, "this model's maximum context length is"."""
        if not isinstance(error, ContextLengthError):
            return error.message
        if not (error.prompt_tokens and error.context_tokens):
            return f"this model's maximum context length is exceeded: {error.message}"
        return (
            f"this model's maximum context length is {error.context_tokens} tokens, but '{self._prompt}' came to "
            f"{error.prompt_tokens} tokens: shorten it, or load the model with a larger context"
        )


def _text(text: str) -> str:
    """An error may quote what was refused for not being text."""
    return text.encode("utf-8", "backslashreplace").decode()


ERRORS = OpenAIErrors()
