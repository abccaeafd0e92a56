"""One conversation in every dialect ends in the same, on every driver. On a real vLLM: tests/vllm."""

from __future__ import annotations

import pytest
from support.driven import Driven
from support.parity_rules import ThinkingParityRules, UnthinkingParityRules


class TestLlamaCpp(ThinkingParityRules):
    @pytest.fixture(scope="class")
    @classmethod
    def driven(cls, on_llama_cpp: Driven) -> Driven:
        return on_llama_cpp


class TestRemote(ThinkingParityRules):
    @pytest.fixture(scope="class")
    @classmethod
    def driven(cls, on_a_remote: Driven) -> Driven:
        return on_a_remote


class TestFakeVllm(ThinkingParityRules):
    @pytest.fixture(scope="class")
    @classmethod
    def driven(cls, on_a_fake_vllm: Driven) -> Driven:
        return on_a_fake_vllm


class TestExllamaV2(UnthinkingParityRules):
    @pytest.fixture(scope="class")
    @classmethod
    def driven(cls, on_exllamav2: Driven) -> Driven:
        return on_exllamav2


class TestExllamaV3(UnthinkingParityRules):
    @pytest.fixture(scope="class")
    @classmethod
    def driven(cls, on_exllamav3: Driven) -> Driven:
        return on_exllamav3
