"""What `oprel drivers check` makes for a driver to fail on."""

from __future__ import annotations

import json
from pathlib import Path

from support.tree_folders import write_folder

from oprel.store import Trees
from oprel.testing.installed import _damaged


def test_a_folder_is_whole_but_for_its_weights(tmp_path: Path) -> None:
    """So that the weights are what the engine finds wrong, and not what lies beside them."""
    trees = Trees(tmp_path / "trees", state_dir=tmp_path / "state")
    trees.add(write_folder(tmp_path / "source"), "one")
    model = trees.find("one")
    assert model is not None
    (tmp_path / "damaged").mkdir()
    damaged = _damaged(model, tmp_path / "damaged")
    assert damaged is not None
    assert {file.role for file in damaged.files} == {file.role for file in model.files}
    folder = Path(damaged.weights.path).parent
    assert folder == tmp_path / "damaged"
    assert json.loads((folder / "config.json").read_text())["architectures"]
    assert 0 < Path(damaged.weights.path).stat().st_size < model.weights.size_bytes
    assert Path(model.weights.path).stat().st_size == model.weights.size_bytes, "the model itself is as it was"
