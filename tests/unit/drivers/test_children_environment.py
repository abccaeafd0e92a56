"""What a child engine gets to know of its parent's environment."""

from __future__ import annotations

import pytest

from oprel.drivers.children import built_environment

SECRETS = (
    "HF_TOKEN", "LLAMA_ARG_HOST", "LLAMA_API_KEY", "AWS_SECRET_ACCESS_KEY", "OPENAI_API_KEY", "HTTPS_PROXY",
    "https_proxy", "OPREL_API_KEY", "PYTHONPATH", "LD_PRELOAD", "AIP_MODE", "GITHUB_TOKEN",
)  # fmt: skip


@pytest.mark.parametrize("name", SECRETS)
def test_secrets_and_steering_variables_stay(name: str) -> None:
    assert name not in built_environment(base={name: "canary"})


@pytest.mark.parametrize(
    "name", ["PATH", "HOME", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "LC_ALL"]
)
def test_what_finds_programs_and_gpus_goes_along(name: str) -> None:
    assert built_environment(base={name: "value"})[name] == "value"


def test_the_plans_own_come_last() -> None:
    environment = built_environment((("CUDA_VISIBLE_DEVICES", ""),), base={"CUDA_VISIBLE_DEVICES": "0"})
    assert environment["CUDA_VISIBLE_DEVICES"] == ""
    assert environment["GGML_NO_BACKTRACE"] == "1"
