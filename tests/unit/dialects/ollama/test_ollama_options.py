"""`options`: types, limits, and where each one goes."""

from __future__ import annotations

from typing import Any

import pytest

from oprel.dialects.ollama.admission import load_options
from oprel.dialects.ollama.errors import Refusal
from oprel.dialects.ollama.options import OPTIONS, chosen
from oprel.schema import LoadOptions, Sampling
from oprel.testing import scripted_model

ALL: dict[str, Any] = {
    "num_ctx": 2048, "num_batch": 64, "num_gpu": 3, "main_gpu": 1, "use_mmap": False, "num_thread": 2,
    "num_predict": 7, "temperature": 0, "top_k": 5, "top_p": 0.5, "min_p": 0.1, "typical_p": 0.9,
    "repeat_penalty": 1.2, "repeat_last_n": 32, "presence_penalty": 0.3, "frequency_penalty": 0.4, "seed": 42,
    "stop": ["a", "", "b"],
}  # fmt: skip


def test_every_option_goes_where_it_belongs() -> None:
    found = chosen(ALL)
    assert found.load == LoadOptions(
        context_tokens=2048, batch_tokens=64, gpu_layers=3, main_gpu=1, mmap=False, threads=2
    )
    assert found.sampling == Sampling(
        max_tokens=7, temperature=0.0, top_k=5, top_p=0.5, min_p=0.1, typical_p=0.9, repeat_penalty=1.2,
        repeat_last_n=32, presence_penalty=0.3, frequency_penalty=0.4, seed=42, stop=("a", "b"),
    )  # fmt: skip
    assert found.unknown == ()
    assert found.given == tuple(ALL)
    assert set(ALL) | {"num_keep", "draft_num_predict"} == set(OPTIONS)


def test_the_unknown_are_told_and_the_legacy_are_not() -> None:
    found = chosen({"mirostat": "?", "low_vram": True, "num_keep": 4, "seed": None, "warmth": 9})
    assert (found.given, found.unknown) == (("num_keep",), ("warmth",))


@pytest.mark.parametrize(
    ("name", "value", "field", "expected"),
    [
        ("num_ctx", 1, "context_tokens", 4),
        ("num_ctx", 2048.9, "context_tokens", 2048),
        ("num_ctx", 10**30, "context_tokens", 2**31 - 1),
        ("num_gpu", -1, "gpu_layers", None),
        ("num_gpu", 0, "gpu_layers", 0),
        ("num_thread", 0, "threads", None),
        ("use_mmap", None, "mmap", None),
    ],
)
def test_values_at_the_edges_of_load_options(name: str, value: object, field: str, expected: object) -> None:
    assert getattr(chosen({name: value}).load, field) == expected


@pytest.mark.parametrize(
    ("name", "value", "field", "expected"),
    [
        ("num_predict", -1, "max_tokens", None),
        ("num_predict", -2, "max_tokens", None),
        ("seed", -1, "seed", None),
        ("seed", 10**30, "seed", 2**63 - 1),
        ("repeat_last_n", 2**40, "repeat_last_n", 65_536),
        ("repeat_last_n", -1, "repeat_last_n", -1),
        ("top_p", 1e300, "top_p", 1e6),
        ("stop", "one", "stop", ("one",)),
        ("temperature", None, "temperature", None),
    ],
)
def test_values_at_the_edges_of_sampling(name: str, value: object, field: str, expected: object) -> None:
    assert getattr(chosen({name: value}).sampling, field) == expected


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("num_ctx", "big", 'option "num_ctx" must be of type integer'),
        ("num_ctx", True, 'option "num_ctx" must be of type integer'),
        ("temperature", "hot", 'option "temperature" must be of type float32'),
        ("use_mmap", 1, 'option "use_mmap" must be of type boolean'),
        ("stop", 1, 'option "stop" must be of type array'),
        ("stop", ["a", 1], 'option "stop" must be of an array of strings'),
    ],
)
def test_a_wrong_type_is_500_in_ollamas_words(name: str, value: object, text: str) -> None:
    with pytest.raises(Refusal) as refused:
        chosen({name: value})
    assert (refused.value.row.status, str(refused.value)) == (500, text)


def test_no_context_is_longer_than_the_model_was_trained_for() -> None:
    assert load_options(scripted_model(context_tokens=8192), chosen({"num_ctx": 100_000})).context_tokens == 8192
