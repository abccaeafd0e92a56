"""Each kind of failure has its status and type, and is told alike before and in a stream."""

from __future__ import annotations

import inspect
import json

import pytest

from oprel import errors
from oprel.dialects.anthropic.errors import AnthropicErrors
from oprel.dialects.request_id import request_id
from oprel.testing import specs

ERRORS = AnthropicErrors()

ROWS = {
    "invalid": (errors.InvalidRequestError("'n' is 0", param="n"), 400, "invalid_request_error"),
    "unsupported": (errors.UnsupportedError("no", capability="audio"), 400, "invalid_request_error"),
    "name": (errors.InvalidNameError("no", name=".."), 400, "invalid_request_error"),
    "driver": (errors.DriverUnavailableError("no"), 400, "invalid_request_error"),
    "key": (errors.AuthenticationError("no"), 401, "authentication_error"),
    "permission": (errors.PermissionDeniedError("no"), 403, "permission_error"),
    "not found": (errors.ModelNotFoundError("no", model="x"), 404, "not_found_error"),
    "too large": (errors.PayloadTooLargeError("large", limit_bytes=1), 413, "request_too_large"),
    "memory": (errors.InsufficientMemoryError("large"), 500, "api_error"),
    "start": (errors.EngineStartError("no"), 500, "api_error"),
    "died": (errors.EngineFailedError("died"), 500, "api_error"),
    "damaged": (errors.ModelDamagedError("bad", model="x"), 500, "api_error"),
    "defect": (errors.OprelError("internal error"), 500, "api_error"),
    "timeout": (errors.EngineTimeoutError("slow"), 504, "timeout_error"),
    "busy": (errors.BusyError("full"), 529, "overloaded_error"),
}


@pytest.mark.parametrize(("error", "status", "kind"), ROWS.values(), ids=ROWS.keys())
def test_each_kind(error: errors.OprelError, status: int, kind: str) -> None:
    head, body = ERRORS.whole(error)
    answer = json.loads(body)
    specs.validate("anthropic", "/v1/messages", "POST", head.status, answer)
    assert (head.status, answer["error"]) == (status, {"type": kind, "message": error.message})
    event, data, *rest = ERRORS.chunk(error).decode().split("\n")
    assert (event, rest) == ("event: error", ["", ""])
    specs.validate_event("anthropic", "/v1/messages", "POST", json.loads(data.removeprefix("data: ")))
    assert json.loads(data.removeprefix("data: ")) == answer


def test_no_kind_of_error_is_without_a_type() -> None:
    """A kind that isn't in the table is told by its status."""
    for name in errors.__all__:
        kind = getattr(errors, name)
        needed = [p for p in list(inspect.signature(kind).parameters.values())[1:] if p.default is p.empty]
        head, body = ERRORS.whole(kind("no", **{p.name: "x" for p in needed}))
        specs.validate("anthropic", "/v1/messages", "POST", head.status, json.loads(body))


def test_the_id_is_in_the_body_and_the_header() -> None:
    token = request_id.set("abc")
    try:
        head, body = ERRORS.whole(errors.OprelError("no"))
    finally:
        request_id.reset(token)
    assert json.loads(body)["request_id"] == "abc"
    assert dict(head.headers)[b"request-id"] == b"abc"


def test_without_an_id_there_is_no_header() -> None:
    head, body = ERRORS.whole(errors.OprelError("no"))
    assert json.loads(body)["request_id"] is None
    assert b"request-id" not in dict(head.headers)


def test_programs_find_the_words_that_they_look_for() -> None:
    _, body = ERRORS.whole(errors.ContextLengthError("engine's words", prompt_tokens=9031, context_tokens=4096))
    assert json.loads(body)["error"]["message"].startswith("prompt is too long: 9031 tokens > 4096 maximum")
    _, body = ERRORS.whole(errors.ContextLengthError("engine's words"))
    assert json.loads(body)["error"]["message"] == "prompt is too long: engine's words"


def test_what_will_not_change_is_not_asked_again() -> None:
    head, _ = ERRORS.whole(errors.InsufficientMemoryError("large"))
    assert dict(head.headers)[b"x-should-retry"] == b"false"


def test_busy_says_when_to_ask_again() -> None:
    head, _ = ERRORS.whole(errors.BusyError("full", retry_after_s=2.1))
    assert dict(head.headers)[b"retry-after"] == b"3"


def test_text_that_is_no_text_is_told_all_the_same() -> None:
    _, body = ERRORS.whole(errors.InvalidRequestError("bad \ud800"))
    assert json.loads(body)["error"]["message"] == "bad \\ud800"
