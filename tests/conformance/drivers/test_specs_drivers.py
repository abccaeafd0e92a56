"""Every answer and every event is what its document says, on every driver. On a real vLLM: tests/vllm.

ExLlamaV2 has the same host as ExLlamaV3."""

from __future__ import annotations

from support.spec_rules import SpecRules


class TestLlamaCpp(SpecRules):
    on = "on_llama_cpp"


class TestRemote(SpecRules):
    on = "on_a_remote"


class TestFakeVllm(SpecRules):
    on = "on_a_fake_vllm"


class TestExllamaV3(SpecRules):
    on = "on_exllamav3"
