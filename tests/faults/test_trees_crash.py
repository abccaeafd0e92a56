"""A folder's name is copied, given back and taken away, a file of it is put back, and the process is killed at every
step: every model that is listed is whole, and the next run succeeds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from support.crashing import Died, DyingDisk, UnsyncedDisk, steps
from support.tree_folders import write_folder

from oprel.store import ModelName, Trees

M, N = ModelName.parse("m"), ModelName.parse("n")
Action = Callable[[Trees], object]


def opened(folder: Path, disk: DyingDisk | None = None) -> Trees:
    return Trees(folder / "trees", state_dir=folder / "state", disk=disk or UnsyncedDisk())


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


@pytest.mark.parametrize("is_there", [True, False], ids=["damaged", "missing"])
def test_a_death_while_a_file_is_put_back(tmp_path: Path, is_there: bool) -> None:
    """The other files are as they were, and what is in its place is the damaged file, nothing, or the right one."""
    source = write_folder(tmp_path / "source")
    right = (source / "model.safetensors").read_bytes()
    wrong = bytes(len(right))
    for step in steps():
        folder = tmp_path / str(step)
        trees = opened(folder)
        trees.add(source, "m")
        ((_, _, files),) = trees.listed()
        file = next(file for file in files if file.name == "model.safetensors")
        file.path.unlink()
        if is_there:
            file.path.write_bytes(wrong)
        died = False
        try:
            opened(folder, DyingDisk(step)).put_back(file, source / file.name)
        except Died:
            died = True
        trees = opened(folder)
        assert not file.path.exists() or file.path.read_bytes() in (wrong, right)
        assert {path.name for path in file.path.parent.iterdir()} - {file.name} == {
            "config.json",
            "tokenizer.json",
            "tokenizer_config.json",
        }
        aside = [path.read_bytes() for path in (folder / "state").glob("quarantine/*")]
        if is_there and not file.path.exists():
            assert aside == [wrong]
        trees.put_back(file, source / file.name)
        assert trees.verify("m") is None
        trees.sweep(min_age_s=-1.0)
        assert sorted(path.name for path in trees.trees_dir.iterdir()) == sorted([file.folder, "manifests"])
        if not died:
            assert step >= 3
            break
