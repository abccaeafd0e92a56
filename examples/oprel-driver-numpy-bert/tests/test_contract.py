"""The driver keeps Oprel's contract. Rules that need a chat model don't apply."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from oprel_driver_numpy_bert import NumpyBertDriver

from oprel.schema import Model, ModelFile
from oprel.testing.contract import DriverContract, Subject


class TestContract(DriverContract):
    @pytest.fixture(scope="class")
    @classmethod
    def subject(cls, model: Model, tmp_path_factory: pytest.TempPathFactory) -> Subject:
        cut = tmp_path_factory.mktemp("damaged") / "cut.gguf"
        cut.write_bytes(Path(model.weights.path).read_bytes()[:1_000_000])
        file = ModelFile("weights", str(cut), model.weights.digest, cut.stat().st_size)
        damaged = msgspec.structs.replace(model, name="damaged", files=(file,))
        return Subject(make=NumpyBertDriver, embed=model, damaged=damaged)
