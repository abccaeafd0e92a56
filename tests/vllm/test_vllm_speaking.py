"""The model that thinks and calls of itself, on a real vLLM: all dialects end in the same, and as documented."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.driven import Driven, vllm_driven
from support.parity_rules import ThinkingParityRules
from support.spec_rules import SpecRules


@pytest.fixture(scope="module")
def on_vllm(python: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driven]:
    with vllm_driven(tmp_path_factory.mktemp("speaking"), python) as driven:
        yield driven


class TestParity(ThinkingParityRules):
    on = "on_vllm"

    @pytest.mark.vllm_full  # test_vllm_clients.py names functions too
    def test_a_function_that_is_named(self, driven: Driven) -> None:
        super().test_a_function_that_is_named(driven)


@pytest.mark.vllm_full
class TestSpecs(SpecRules):
    on = "on_vllm"
