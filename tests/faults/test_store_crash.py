"""The process is killed at every step that changes the disk: the store stays valid, and the next run succeeds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.crashing import Kill, killer, steps
from support.store_actions import opened, prepared
from support.store_checks import assert_valid_store

from oprel.store import ModelName

MODEL = ModelName.parse("m")


@pytest.fixture(scope="module")
def kill() -> Iterator[Kill]:
    with killer() as kill:
        yield kill


@pytest.mark.parametrize("links", [True, False], ids=["links", "copies"])
def test_an_import_killed_at_any_step(tmp_path: Path, kill: Kill, links: bool) -> None:
    for step in steps():
        folder = tmp_path / str(step)
        path = MODEL.manifest_path(prepared(folder).models_dir)
        before = path.read_bytes()

        was_killed = kill("support.store_actions:import_new", folder, step, links=links)

        store = opened(folder)
        assert assert_valid_store(store.models_dir) == 2
        assert was_killed or path.read_bytes() != before
        store.sweep(min_age_s=-1)
        store.import_gguf(folder / "new.gguf", "m", licenses=["yours"])
        assert path.read_bytes() != before
        assert assert_valid_store(store.models_dir) == 2
        assert not list((store.state_dir / "partial").iterdir())
        if not was_killed:
            assert step >= 5, "the store went around the disk's methods"
            break


def test_a_deletion_killed_at_any_step(tmp_path: Path, kill: Kill) -> None:
    for step in steps():
        folder = tmp_path / str(step)
        path = MODEL.manifest_path(prepared(folder).models_dir)
        before = path.read_bytes()

        was_killed = kill("support.store_actions:delete", folder, step)

        store = opened(folder)
        assert assert_valid_store(store.models_dir) >= 1
        assert not path.exists() or (was_killed and path.read_bytes() == before)
        store.delete(MODEL)
        assert not path.exists()
        assert assert_valid_store(store.models_dir) == 1
        assert not list((store.state_dir / "partial").iterdir())
        if not was_killed:
            assert step >= 3, "the store went around the disk's methods"
            break
