"""The power is cut after any step: what wasn't synced is gone, and what is left is a valid store."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
from support import store_actions
from support.power_loss import VolatileDisk
from support.store_actions import FETCHED, begun, empty, fetch, fetched, opened, prepared
from support.store_checks import assert_valid_store

from oprel.store import Store
from oprel.store.disk import Disk
from oprel.store.manifests import parse_manifest

Action = Callable[[Path, Disk], None]
ACTIONS: list[Action] = [
    store_actions.import_new,
    store_actions.copy,
    store_actions.rollback,
    store_actions.delete,
    store_actions.collect,
]


def cut_after_each_step(folder: Path, action: Action, disk_type: type[VolatileDisk] = VolatileDisk) -> int:
    """How many cuts the store survived."""
    cuts = 0

    def cut(disk: VolatileDisk) -> None:
        nonlocal cuts
        cuts += 1
        for entries_at_once in (False, True):
            left = folder.with_name(f"{folder.name}-{cuts}-{entries_at_once}")
            disk.after_power_cut(left, entries_at_once=entries_at_once)
            assert assert_valid_store(left / "models") >= 1, disk.last_step
            kept = opened(folder, disk).versions
            for digest in kept.kept():  # by their state folder, in which the versions of `folder` lie
                place = left / kept.folder.relative_to(folder)
                if (place / "manifests" / digest).is_file():
                    assert_whole(place, digest)

    with disk_type(folder, on_step=cut) as disk:
        action(folder, disk)
    return cuts


def assert_whole(place: Path, digest: str) -> None:
    """A kept version's manifest and blobs."""
    data = (place / "manifests" / digest).read_bytes()
    assert hashlib.sha256(data).hexdigest() == digest
    for blob in parse_manifest(data).blobs:
        assert hashlib.sha256(blob.digest.blob_path(place).read_bytes()).hexdigest() == blob.digest.hex


@pytest.mark.parametrize("action", ACTIONS, ids=lambda action: action.__name__)
def test_a_power_cut_leaves_a_valid_store(tmp_path: Path, action: Action, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("oprel.store.store.GRACE_S", 3600.0)  # an action may change it
    prepared(tmp_path / "store")
    assert cut_after_each_step(tmp_path / "store", action) >= 2


@pytest.mark.parametrize(("prepare", "durable_bytes"), [(empty, 0), (begun, 12_000)])
def test_a_fetch_goes_on_after_a_power_cut(
    tmp_path: Path, prepare: Callable[[Path], Store], durable_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a checkpoint had made durable isn't fetched again; whatever is left, the next try succeeds."""
    folder, cuts = tmp_path / "store", list[Path]()
    prepare(folder)

    def cut(disk: VolatileDisk) -> None:
        cuts.append(tmp_path / f"{len(cuts)} after {disk.last_step}"[:100])
        disk.after_power_cut(cuts[-1], entries_at_once=False)

    with VolatileDisk(folder, on_step=cut) as disk:
        fetch(folder, disk)
    monkeypatch.setattr("oprel.store.resumable._boot_id", lambda: "the next one")
    again: list[int] = []
    for left in cuts:
        assert assert_valid_store(left / "models") in (0, 1)
        has_part = any((left / "state" / "partial").glob("*.part"))
        blob, count = fetched(opened(left))
        blob.discard()
        assert not has_part or count <= len(FETCHED) - durable_bytes, left.name
        again += [count] if has_part else []
        fetch(left, Disk())
        assert assert_valid_store(left / "models") == 1
    assert min(again) <= 8_000


class HastyDisk(VolatileDisk):
    def sync(self, descriptor: int) -> None:
        pass


def test_a_cut_shows_what_was_never_synced(tmp_path: Path) -> None:
    """This test's own tool notices a store that gives a name before the content is durable."""
    prepared(tmp_path / "store")
    with pytest.raises(AssertionError):
        cut_after_each_step(tmp_path / "store", store_actions.import_new, HastyDisk)
