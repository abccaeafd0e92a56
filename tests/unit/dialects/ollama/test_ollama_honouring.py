"""Defaults that an engine doesn't take never make a request fail; what a client asked for is told."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from oprel.dialects.ollama.honouring import honoured
from oprel.dialects.ollama.options import DEFAULTS
from oprel.schema import ChatRequest, CompletionRequest, Sampling, events

TAKEN = frozenset({"temperature", "top_p", "max_tokens", "stop"})


def engine(taken: frozenset[str] = TAKEN) -> Any:
    return SimpleNamespace(capabilities=SimpleNamespace(sampling=taken), plan=SimpleNamespace(driver="openai"))


def test_defaults_are_left_out_in_silence() -> None:
    warnings: list[events.Warning] = []
    request = ChatRequest((), Sampling(**DEFAULTS, time_limit_s=5.0))
    found = honoured(engine(), request, Sampling(), warnings)
    assert found.sampling == Sampling(temperature=0.8, top_p=0.9, time_limit_s=5.0)
    assert warnings == []


def test_what_was_asked_for_is_told_by_its_name_in_options() -> None:
    warnings: list[events.Warning] = []
    asked = Sampling(top_k=5, temperature=0.0, seed=3)
    found = honoured(engine(), CompletionRequest("x", asked), asked, warnings)
    assert found.sampling == Sampling(temperature=0.0)
    assert [(warning.code, warning.text) for warning in warnings] == [
        ("parameter_ignored", "the driver 'openai' doesn't take: options.top_k, options.seed")
    ]


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=1.0, stop=("x",))])
def test_what_is_taken_stays_as_it_is(sampling: Sampling) -> None:
    request = ChatRequest((), sampling)
    assert honoured(engine(), request, sampling, []) is request
