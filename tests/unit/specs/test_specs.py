"""What a document describes passes; what it doesn't is told with its place."""

from __future__ import annotations

import pytest

from oprel.testing import specs

MODEL = {"id": "m", "object": "model", "created": 1, "owned_by": "library"}
FAILURE = {"error": {"message": "no", "type": "server_error", "param": None, "code": None}}


@pytest.mark.parametrize("path", ["/v1/models/m", "/models/m", "/v1/models/hf.co/a/b:Q4", "/v1/models/m?x=1"])
def test_paths_are_found_with_and_without_their_base(path: str) -> None:
    specs.validate("openai", path, "GET", 200, MODEL)


def test_a_path_without_parameters_is_preferred() -> None:
    specs.validate("openai", "/v1/models", "get", 200, {"object": "list", "data": [MODEL]})


def test_any_failure_has_one_form() -> None:
    specs.validate("openai", "/v1/models", "GET", 503, FAILURE)


def test_a_missing_field_is_named() -> None:
    with pytest.raises(specs.SpecError, match="'owned_by' is a required property"):
        specs.validate("openai", "/v1/models/m", "GET", 200, {"id": "m", "object": "model", "created": 1})


def test_a_field_too_many_is_named_with_its_place() -> None:
    with pytest.raises(specs.SpecError, match=r"\$\.data\[0\].*'x' was unexpected"):
        specs.validate("openai", "/v1/models", "GET", 200, {"object": "list", "data": [{**MODEL, "x": 1}]})


@pytest.mark.parametrize(("path", "method"), [("/v1/nothing", "GET"), ("/v1/models", "POST")])
def test_what_is_not_described_is_no_operation(path: str, method: str) -> None:
    with pytest.raises(specs.SpecError, match="doesn't know"):
        specs.validate("openai", path, method, 200, {})


def test_an_event_is_not_a_whole_answer() -> None:
    specs.validate_event("openai", "/v1/chat/completions", "POST", FAILURE)
    with pytest.raises(specs.SpecError):
        specs.validate_event("openai", "/v1/chat/completions", "POST", {"object": "chat.completion"})
    with pytest.raises(specs.SpecError, match="no streamed answer"):
        specs.validate_event("openai", "/v1/models", "GET", {})


def test_requests_are_described_as_well() -> None:
    specs.validate_request("openai", "/v1/embeddings", "POST", {"model": "m", "input": ["a"]})
    with pytest.raises(specs.SpecError, match="dimensions"):
        specs.validate_request("openai", "/v1/embeddings", "POST", {"model": "m", "input": "a", "dimensions": 0})
