"""The process is killed at every step that changes the disk: the store stays valid, and the next run succeeds.

After each kill: every visible blob holds what its name says, every manifest parses and has its blobs, each name has the
version from before or the one from after, and none that was kept is lost.
"""

from __future__ import annotations

import asyncio
import functools
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import store_actions
from support.crashing import Kill, killer, steps
from support.lock_actions import FilePuller, bring, catalog_over
from support.store_actions import begun, empty, opened, prepared
from support.store_checks import assert_valid_store

from oprel.sources.lockfile import write_lock
from oprel.sources.pins import Pins
from oprel.store import ModelName, Store, hash_file
from oprel.store import store as store_module
from oprel.store.disk import Disk
from oprel.store.manifests import parse_manifest
from oprel.store.resumable import remove_resumables

M, OTHER = ModelName.parse("m"), ModelName.parse("other")
Action = Callable[[Path, Disk], None]
Prepare = Callable[[Path], Store]


@pytest.fixture(scope="module")
def kill() -> Iterator[Kill]:
    with killer() as kill:
        yield kill


@pytest.fixture(autouse=True)
def restored_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "GRACE_S", store_module.GRACE_S)  # whatever is set later is undone


def versions(store: Store) -> dict[str, str | None]:
    return {str(name): store.versions.current(name) for name in (M, OTHER)}


def pruned(folder: Path) -> Store:
    """As `prepared`, after unused blobs were removed."""
    store = prepared(folder)
    store_module.GRACE_S = -1.0
    store.collect_garbage()
    return store


def with_neighbour(folder: Path) -> Store:
    store = prepared(folder)
    (folder / "theirs").mkdir()
    opened(folder / "theirs").import_gguf(folder / "new.gguf", "theirs")
    return store


def locked(folder: Path) -> Store:
    """With a lock that pins a version which isn't here."""
    store = prepared(folder)
    (folder / "oprel.lock").write_text(lock_text())
    return store


@functools.cache
def lock_text() -> str:
    """What pins the model of `new.gguf`, which is the same wherever it is made."""

    async def pull(store: Store, file: Path) -> None:
        async for _ in FilePuller(catalog_over(store), file).pull("pypi:some-model==1.0"):
            pass

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "elsewhere"
        store = prepared(folder)
        asyncio.run(pull(store, folder / "new.gguf"))
        pins = Pins(catalog_over(store), lambda catalog: FilePuller(catalog, folder / "new.gguf"))
        write_lock(folder / "oprel.lock", [pins.lock("from/source:1")])
        return (folder / "oprel.lock").read_text()


def run_again(action: Action, folder: Path) -> None:
    action(folder, opened(folder).disk)


CASES: dict[str, tuple[Action, bool, Prepare, int, int]] = {
    # the action, whether links can be made, what was before, names before and after
    "import, linked": (store_actions.import_new, True, prepared, 2, 2),
    "import, copied": (store_actions.import_new, False, prepared, 2, 2),
    "create": (store_actions.create, True, prepared, 2, 2),
    "create of a file, linked": (store_actions.create_uploaded, True, prepared, 2, 2),
    "create of a file, copied": (store_actions.create_uploaded, False, prepared, 2, 2),
    "copy": (store_actions.copy, True, prepared, 2, 2),
    "rollback": (store_actions.rollback, True, pruned, 2, 2),
    "delete": (store_actions.delete, True, prepared, 2, 1),
    "collect garbage": (store_actions.collect, True, prepared, 2, 2),
    "adopt": (store_actions.repair_aside, True, with_neighbour, 2, 2),
    "sync": (store_actions.sync, True, locked, 2, 3),
    "fetch, taken up": (store_actions.fetch, True, begun, 0, 1),
    "fetch, unpack, forget": (store_actions.fetch_and_unpack, True, empty, 0, 1),
}


@pytest.mark.parametrize(("action", "links", "prepare", "before", "after"), CASES.values(), ids=CASES.keys())
def test_a_kill_at_any_step(
    tmp_path: Path, kill: Kill, action: Action, links: bool, prepare: Prepare, before: int, after: int
) -> None:
    finished = versions_after(tmp_path, action, prepare)
    for step in steps():
        folder = tmp_path / str(step)
        store = prepare(folder)
        old, kept = versions(store), store.versions.kept()

        was_killed = kill(f"{action.__module__}:{action.__name__}", folder, step, links=links)

        store = opened(folder)
        assert assert_valid_store(store.models_dir) in {before, after}
        assert all(now in (old[name], finished[name]) for name, now in versions(store).items())
        assert action is store_actions.delete or kept <= store.versions.kept() | set(versions(store).values())
        assert_kept_whole(store)
        if action is not store_actions.rollback or versions(store) == old:  # a second one would go back
            run_again(action, folder)
        assert versions(opened(folder)) == finished
        assert assert_valid_store(store.models_dir) == after
        store.sweep(min_age_s=-1)
        remove_resumables(store.partial_dir(), disk=store.disk, min_age_s=-1)  # a wheel that was used up may be left
        assert not list((store.state_dir / "partial").iterdir())
        if not was_killed:
            assert step >= 2, "the store went around the disk's methods"
            break


def versions_after(tmp_path: Path, action: Action, prepare: Prepare) -> dict[str, str | None]:
    folder = tmp_path / "undisturbed"
    prepare(folder)
    run_again(action, folder)
    return versions(opened(folder))


def assert_kept_whole(store: Store) -> None:
    """Whatever is kept can be brought back: its files are there, and hold what their names say."""
    for digest in store.versions.kept():
        for blob in parse_manifest(store.versions.kept_manifest(digest)).blobs:
            assert hash_file(blob.digest.blob_path(store.versions.folder)) == blob.digest


def test_a_sync_that_ends_brings_the_locked_version(tmp_path: Path) -> None:
    store = locked(tmp_path / "here")
    bring(tmp_path / "here", store)
    assert store.versions.current(ModelName.parse("from/source:1")) is not None
