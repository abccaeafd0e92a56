"""A folder's name is copied, given back and taken away, and the process is killed at every step: every model that is
listed is whole, and the next run succeeds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from support.crashing import Died, DyingDisk, steps
from support.tree_folders import write_folder

from oprel.store import ModelName, Trees

M, N = ModelName.parse("m"), ModelName.parse("n")
Action = Callable[[Trees], object]


def opened(folder: Path, disk: DyingDisk | None = None) -> Trees:
    return Trees(folder / "trees", state_dir=folder / "state", disk=disk)


def prepared(folder: Path) -> Trees:
    """Two versions of `m`, and another model."""
    trees = opened(folder)
    for name, size in (("m", 64), ("m", 128), ("n", 256)):
        trees.add(write_folder(folder / str(size), hidden_size=size), name)
    return trees


def versions(trees: Trees) -> dict[str, str | None]:
    return {str(name): trees.versions.current(name) for name in (M, N)}


ACTIONS: dict[str, Action] = {
    "copy": lambda trees: trees.copy(M, N),
    "rollback": lambda trees: trees.rollback(M),
    "delete": lambda trees: trees.delete("m"),
    "import again": lambda trees: trees.add(trees.trees_dir.parent / "256", "m"),
}


@pytest.mark.parametrize("action", ACTIONS.values(), ids=ACTIONS.keys())
def test_a_death_at_any_step(tmp_path: Path, action: Action) -> None:
    (tmp_path / "whole").mkdir()
    whole = prepared(tmp_path / "whole")
    action(whole)
    after = versions(whole)
    for step in steps():
        folder = tmp_path / str(step)
        folder.mkdir()
        before = versions(prepared(folder))
        died = False
        try:
            action(opened(folder, DyingDisk(step)))
        except Died:
            died = True
        trees = opened(folder)
        assert all(now in (before[name], after[name]) for name, now in versions(trees).items())
        assert all(model.damage is None and trees.verify(model.name) is None for model in trees.list())
        for digest in trees.versions.kept():
            assert (trees.trees_dir / digest / "config.json").is_file()
        if versions(trees) != after:
            action(trees)
        assert versions(trees) == after
        if not died:
            assert step >= 3
            break
