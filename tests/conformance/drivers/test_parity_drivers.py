"""One conversation in every dialect ends in the same, on every driver. On a real vLLM: tests/vllm."""

from __future__ import annotations

from support.parity_rules import ThinkingParityRules, UnthinkingParityRules


class TestLlamaCpp(ThinkingParityRules):
    on = "on_llama_cpp"


class TestRemote(ThinkingParityRules):
    on = "on_a_remote"


class TestFakeVllm(ThinkingParityRules):
    on = "on_a_fake_vllm"


class TestExllamaV2(UnthinkingParityRules):
    on = "on_exllamav2"


class TestExllamaV3(UnthinkingParityRules):
    on = "on_exllamav3"
