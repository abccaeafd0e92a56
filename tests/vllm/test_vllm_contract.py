"""The driver contract on a real vLLM, and what `oprel drivers check` says of it."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import msgspec
import pytest
from support.vllm_real import LOAD_LIMIT_S, fill_trees, tiny_folder

from oprel.drivers import DriverOptions, Engine
from oprel.drivers.vllm import VllmDriver
from oprel.store import Trees
from oprel.testing.contract import DriverContract, Subject


def kill(engine: Engine) -> None:
    """Every process of it at once, as the out-of-memory killer might."""
    os.killpg(engine._child.pid, signal.SIGKILL)  # type: ignore[attr-defined]  # only ours have it


def refused_folder(folder: Path) -> Path:
    """Whole, and of an architecture that nobody knows."""
    folder.mkdir()
    for file in tiny_folder().iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    config["architectures"] = ["NobodysForCausalLM"]
    (folder / "config.json").write_text(json.dumps(config))
    return folder


class TestVllm(DriverContract):
    @pytest.fixture(scope="class")
    @classmethod
    def subject(cls, python: Path, tmp_path_factory: pytest.TempPathFactory) -> Subject:
        home = tmp_path_factory.mktemp("contract")
        trees = Trees(fill_trees(home / "trees", home / "state"), state_dir=home / "state")
        trees.add(refused_folder(home / "refused"), "refused")

        def make(options: DriverOptions) -> VllmDriver:
            return VllmDriver(
                msgspec.structs.replace(options, executables=(("vllm", str(python)),), start_timeout_s=LOAD_LIMIT_S)
            )

        return Subject(
            make=make,
            chat=trees.find("smollm2:135m"),
            embed=trees.find("all-minilm"),
            damaged=trees.find("refused"),
            kill=kill,
            start_limit_s=LOAD_LIMIT_S,
            stop_limit_s=30.0,
        )
