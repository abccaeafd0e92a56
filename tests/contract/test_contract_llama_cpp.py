"""The contract on llama_cpp, with real models on the engine that it finds on this machine."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import msgspec
import pytest

from oprel.drivers import Engine
from oprel.drivers.llama_cpp import LlamaCppDriver
from oprel.schema import ModelFile
from oprel.store import Catalog, Store
from oprel.testing.contract import DriverContract, Subject


def kill(engine: Engine) -> None:
    """The engine's whole group, as the out-of-memory killer would."""
    os.killpg(engine._child.pid, signal.SIGKILL)  # type: ignore[attr-defined]  # only llama_cpp's have it


class TestLlamaCpp(DriverContract):
    @pytest.fixture(scope="class")
    @classmethod
    def subject(cls, real_models_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Subject:
        state_dir = tmp_path_factory.mktemp("contract-state")
        catalog = Catalog(Store(real_models_dir, state_dir=state_dir))
        chat = catalog.find("smollm2:135m")
        cut = tmp_path_factory.mktemp("contract-damaged") / "cut.gguf"
        cut.write_bytes(Path(chat.weights.path).read_bytes()[:1_000_000])
        file = ModelFile("weights", str(cut), chat.weights.digest, cut.stat().st_size)
        return Subject(
            make=LlamaCppDriver,
            chat=chat,
            embed=catalog.find("all-minilm"),
            damaged=msgspec.structs.replace(chat, name="damaged:latest", files=(file,)),
            kill=kill,
        )
