"""Which value a request ends up with: its own, the dialect's, the model's, the default, in that order."""

from __future__ import annotations

import pytest

from oprel.schema import Model, Sampling
from oprel.schema.sampling import filled, from_model, load_from_model
from oprel.testing import scripted_model


def made_with(**parameters: object) -> Model:
    return scripted_model(parameters=tuple(parameters.items()), context_tokens=8192)


@pytest.mark.parametrize(
    ("request_value", "dialect", "model", "expected"),
    [
        pytest.param(0.1, 1.0, 0.5, 0.1, id="the-requests-own"),
        pytest.param(0.0, 1.0, 0.5, 0.0, id="zero-is-given"),
        pytest.param(None, 1.0, 0.5, 1.0, id="the-dialects"),
        pytest.param(None, None, 0.5, 0.5, id="the-models"),
        pytest.param(None, None, None, 0.8, id="the-default"),
    ],
)
def test_the_order(request_value: float | None, dialect: float | None, model: float | None, expected: float) -> None:
    made = filled(
        Sampling(temperature=request_value),
        dialect={} if dialect is None else {"temperature": dialect},
        model={} if model is None else {"temperature": model},
        defaults={"temperature": 0.8},
    )
    assert made.temperature == expected


def test_a_models_stops_hold_where_the_request_has_none() -> None:
    own = from_model(made_with(stop=["</s>", "", "User:"]))
    assert filled(Sampling(), dialect={}, model=own, defaults={}).stop == ("</s>", "User:")
    assert filled(Sampling(stop=("x",)), dialect={}, model=own, defaults={}).stop == ("x",)


@pytest.mark.parametrize(
    ("name", "value", "field", "read"),
    [
        ("temperature", 1, "temperature", 1.0),
        ("num_predict", 64, "max_tokens", 64),
        ("num_predict", -1, "max_tokens", None),
        ("seed", -1, "seed", None),
        ("top_k", 40.0, "top_k", 40),
        ("temperature", "hot", "temperature", None),
        ("temperature", True, "temperature", None),
        ("temperature", float("nan"), "temperature", None),
        ("repeat_last_n", 2**40, "repeat_last_n", None),
        ("stop", "end", "stop", ("end",)),
        ("stop", 7, "stop", None),
        ("mirostat", 2, "mirostat", None),
    ],
)
def test_a_models_parameters_are_read_within_bounds(name: str, value: object, field: str, read: object) -> None:
    assert from_model(made_with(**{name: value})).get(field) == read


@pytest.mark.parametrize(
    ("name", "value", "field", "read"),
    [
        ("num_ctx", 4096, "context_tokens", 4096),
        ("num_ctx", 100_000, "context_tokens", 8192),
        ("num_ctx", 0, "context_tokens", None),
        ("num_gpu", -1, "gpu_layers", None),
        ("num_gpu", 0, "gpu_layers", 0),
        ("num_thread", "many", "threads", None),
        ("use_mmap", False, "mmap", False),
        ("use_mmap", 1, "mmap", None),
    ],
)
def test_a_models_load_options_are_read_within_bounds(name: str, value: object, field: str, read: object) -> None:
    assert load_from_model(made_with(**{name: value})).get(field) == read
