"""Every answer and every event is what its document says, on every driver. On a real vLLM: tests/vllm.

ExLlamaV2 has the same host as ExLlamaV3."""

from __future__ import annotations

import pytest
from support.driven import Driven
from support.spec_rules import SpecRules


class TestLlamaCpp(SpecRules):
    @pytest.fixture(scope="class")
    @classmethod
    def driven(cls, on_llama_cpp: Driven) -> Driven:
        return on_llama_cpp


class TestRemote(SpecRules):
    @pytest.fixture(scope="class")
    @classmethod
    def driven(cls, on_a_remote: Driven) -> Driven:
        return on_a_remote


class TestFakeVllm(SpecRules):
    @pytest.fixture(scope="class")
    @classmethod
    def driven(cls, on_a_fake_vllm: Driven) -> Driven:
        return on_a_fake_vllm


class TestExllamaV3(SpecRules):
    @pytest.fixture(scope="class")
    @classmethod
    def driven(cls, on_exllamav3: Driven) -> Driven:
        return on_exllamav3
