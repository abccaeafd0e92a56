"""The table [vllm]: known keys, typed values, nothing that could become another option."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from oprel.config import load_settings
from oprel.drivers.vllm.options import VllmOptions
from oprel.errors import ConfigError
from oprel.server.compose import make_registry


def test_nothing_given_is_nothing_chosen() -> None:
    options = VllmOptions.parse({})
    assert (options.ranks, options.local_gpus, options.is_over_machines) == (1, 1, False)


def test_a_model_may_have_its_own() -> None:
    table = {"dtype": "bfloat16", "tensor_parallel": 2, "models": {"Big:70b": {"tensor_parallel": 8}}}
    assert VllmOptions.parse(table, "big:70b").tensor_parallel == 8
    assert VllmOptions.parse(table, "big:70b").dtype == "bfloat16"
    assert VllmOptions.parse(table, "small:latest").tensor_parallel == 2


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a flag of one's own": ({"extra_args": "--trust-remote-code"}, "no option of vLLM's that can be set"),
    "a near miss": ({"tensor_paralel": 2}, "did you mean 'tensor_parallel'"),
    "another type": ({"tensor_parallel": "2"}, "tensor_parallel"),
    "a switch that is a number": ({"enforce_eager": 1}, "enforce_eager"),
    "out of range": ({"gpu_memory_share": 1.5}, "gpu_memory_share"),
    "a word that is an option": ({"quantization": "--trust-remote-code"}, "quantization"),
    "a word with a space": ({"tool_parser": "hermes --trust-remote-code"}, "tool_parser"),
    "an address that is an option": ({"host_ip": "-x"}, "host_ip"),
    "a format that runs code": ({"load_format": "pt"}, "load_format"),
    "a relative path": ({"lora": "adapter"}, "absolute path"),
    "a rank of no adapter": ({"max_lora_rank": 16}, "for a model with lora"),
    "an odd rank": ({"lora": "/a", "max_lora_rank": 17}, "max_lora_rank"),
    "nodes without a master": ({"nodes": 2}, "needs master_address"),
    "nodes of Ray": ({"nodes": 2, "executor": "ray", "master_address": "a"}, "Ray finds its machines"),
    "Ray's address without Ray": ({"ray_address": "a:6379"}, "ray_address is for"),
    "more local replicas than replicas": ({"data_parallel": 2, "data_parallel_local": 3}, "more than data_parallel"),
    "remote replicas without an address": ({"data_parallel": 2, "data_parallel_local": 1}, "data_parallel_address"),
    "models that are no tables": ({"models": {"a": 1}}, "must hold tables"),
    "a mistake in another model's": ({"models": {"other": {"dtype": "int3"}}}, 'vllm.models."other"'),
    "a model that is no name": ({"models": {"a b": {}}}, "vllm.models"),
    "a value that is NaN": ({"cpu_offload_gib": float("nan")}, "cpu_offload_gib"),
}


@pytest.mark.parametrize(("table", "said"), REFUSED.values(), ids=REFUSED.keys())
def test_what_can_not_be_used_is_one_sentence(table: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        VllmOptions.parse(table, "mine")
    assert said in caught.value.message
    assert "[vllm" in caught.value.message
    assert "\n" not in caught.value.message


def test_the_table_comes_from_the_users_config(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text('[vllm]\ndtype = "float16"\n[vllm.models."a:b"]\ntensor_parallel = 2\n')
    environ = {"HOME": str(tmp_path), "OPREL_CONFIG": str(config)}
    settings = load_settings(environ=environ, cwd=tmp_path)
    assert settings.vllm == {"dtype": "float16", "models": {"a:b": {"tensor_parallel": 2}}}
    options = make_registry(settings).options
    assert dict(options.tables)["vllm"] == settings.vllm


def test_a_mistake_in_it_is_told_before_anything_runs(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text("[vllm]\ndtpye = 'float16'\n")
    environ = {"HOME": str(tmp_path), "OPREL_CONFIG": str(config)}
    with pytest.raises(ConfigError, match="did you mean 'dtype'"):
        make_registry(load_settings(environ=environ, cwd=tmp_path))


def test_a_project_may_not_bring_it(tmp_path: Path) -> None:
    (tmp_path / "oprel.toml").write_text("[vllm]\ndtype = 'float16'\n")
    with pytest.raises(ConfigError, match="can't be set by a project"):
        load_settings(environ={"HOME": str(tmp_path)}, cwd=tmp_path)


@pytest.mark.parametrize("name", ["OPREL_VLLM_PYTHON", "OPREL_TREES_DIR"])
def test_paths_come_by_environment(tmp_path: Path, name: str) -> None:
    settings = load_settings(environ={"HOME": str(tmp_path), name: "/some/where"}, cwd=tmp_path)
    assert Path("/some/where") in (settings.vllm_python, settings.trees_dir)


def test_trees_lie_beside_the_state(tmp_path: Path) -> None:
    settings = load_settings(environ={"HOME": str(tmp_path)}, cwd=tmp_path)
    assert settings.trees_dir == tmp_path / ".oprel/trees"
    elsewhere = load_settings(environ={"HOME": str(tmp_path), "OPREL_STATE_DIR": "/x/state"}, cwd=tmp_path)
    assert elsewhere.trees_dir == Path("/x/trees")
