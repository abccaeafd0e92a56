"""Each kind of failure has its status, type, code and field, and is told alike before and in a stream."""

from __future__ import annotations

import json
from typing import Any

import pytest

from oprel import errors
from oprel.dialects.openai.errors import KINDS, PARAMS, OpenAIErrors
from oprel.dialects.openai.responses.keeping import UnknownResponseError
from oprel.testing import specs

ERRORS = OpenAIErrors()


def whole(error: errors.OprelError, renderer: OpenAIErrors = ERRORS) -> tuple[int, dict[str, str], dict[str, Any]]:
    head, body = renderer.whole(error)
    answer = json.loads(body)
    specs.validate("openai", "/v1/chat/completions", "POST", head.status, answer)
    return head.status, {name.decode(): value.decode() for name, value in head.headers}, answer["error"]


ROWS = {
    "invalid": (
        errors.InvalidRequestError("'n' is 0", param="n"),
        400,
        ("invalid_request_error", "n", None),
    ),
    "unsupported field": (
        errors.UnsupportedError("no", capability="audio", param="audio"),
        400,
        ("invalid_request_error", "audio", "unsupported_parameter"),
    ),
    "unsupported need": (
        errors.UnsupportedError("no", capability="embed"),
        400,
        ("invalid_request_error", "model", "unsupported_model"),
    ),
    "unsupported capability": (
        errors.UnsupportedError("no", capability="tools"),
        400,
        ("invalid_request_error", "tools", "unsupported_parameter"),
    ),
    "name": (
        errors.InvalidNameError("no", name=".."),
        400,
        ("invalid_request_error", "model", "invalid_model_name"),
    ),
    "not found": (
        errors.ModelNotFoundError("no", model="x"),
        404,
        ("invalid_request_error", "model", "model_not_found"),
    ),
    "context": (
        errors.ContextLengthError("long"),
        400,
        ("invalid_request_error", "messages", "context_length_exceeded"),
    ),
    "too large": (
        errors.PayloadTooLargeError("large", limit_bytes=1),
        413,
        ("invalid_request_error", None, "request_too_large"),
    ),
    "key": (errors.AuthenticationError("no"), 401, ("authentication_error", None, "invalid_api_key")),
    "permission": (errors.PermissionDeniedError("no"), 403, ("permission_error", None, "permission_denied")),
    "busy": (errors.BusyError("full"), 503, ("server_error", None, "server_busy")),
    "memory": (errors.InsufficientMemoryError("large"), 500, ("server_error", None, "insufficient_memory")),
    "start": (errors.EngineStartError("no"), 500, ("server_error", None, "engine_start_failed")),
    "died": (errors.EngineFailedError("died"), 502, ("server_error", None, "engine_failed")),
    "timeout": (errors.EngineTimeoutError("slow"), 504, ("server_error", None, "engine_timeout")),
    "damaged": (errors.ModelDamagedError("bad", model="x"), 500, ("server_error", None, "model_damaged")),
    "defect": (errors.OprelError("internal error"), 500, ("server_error", None, "internal_error")),
}


@pytest.mark.parametrize(("error", "status", "told"), ROWS.values(), ids=ROWS.keys())
def test_each_kind(error: errors.OprelError, status: int, told: tuple[str, str | None, str | None]) -> None:
    found_status, headers, body = whole(error)
    assert found_status == status
    assert (body["type"], body["param"], body["code"]) == told
    assert body["message"].endswith(error.message)
    assert headers["content-type"] == "application/json"
    chunk = ERRORS.chunk(error)
    assert chunk.startswith(b"data: ") and chunk.endswith(b"}\n\n")
    event = json.loads(chunk.removeprefix(b"data: "))
    specs.validate_event("openai", "/v1/chat/completions", "POST", event)
    assert event == {"error": body}


def test_every_kind_of_error_has_its_row() -> None:
    found = {getattr(errors, name).kind for name in errors.__all__}
    assert found | {UnknownResponseError.kind} == set(KINDS)


def test_both_numbers_of_a_context_are_told() -> None:
    error = errors.ContextLengthError("engine's words", prompt_tokens=9031, context_tokens=4096)
    _, _, body = whole(error, OpenAIErrors("input"))
    assert body["message"].startswith("this model's maximum context length is 4096 tokens, but 'input' came to 9031 ")
    assert body["param"] == "input"


def test_a_context_without_numbers_is_told_in_words_that_programs_look_for() -> None:
    _, _, body = whole(errors.ContextLengthError("engine's words"))
    assert body["message"] == "this model's maximum context length is exceeded: engine's words"


@pytest.mark.parametrize(("seconds", "header"), [(0.2, "1"), (2.1, "3")])
def test_busy_says_when_to_ask_again(seconds: float, header: str) -> None:
    _, headers, _ = whole(errors.BusyError("full", retry_after_s=seconds))
    assert headers["retry-after"] == header
    assert "x-should-retry" not in headers


def test_what_will_not_change_is_not_asked_again() -> None:
    _, headers, _ = whole(errors.InsufficientMemoryError("large"))
    assert headers["x-should-retry"] == "false"


def test_text_that_is_no_text_is_told_all_the_same() -> None:
    _, _, body = whole(errors.InvalidRequestError("bad \ud800", param="\udfff"))
    assert body["message"] == "bad \\ud800"


def test_capabilities_without_a_field_are_the_models_own() -> None:
    assert {"chat", "complete", "embed"}.isdisjoint(PARAMS)
