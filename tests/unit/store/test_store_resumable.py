"""Hashing of what comes in any order: from memory where it is still there, else from the file."""

from __future__ import annotations

import hashlib
import os
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oprel.store import Digest, ResumableBlob, Store, resumable

_BLOCK = 1000
_DATA = random.Random(3).randbytes(30 * _BLOCK + 77)  # noqa: S311
_DIGEST = Digest(hashlib.sha256(_DATA).hexdigest())


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resumable, "BLOCK_BYTES", _BLOCK)


def opened(folder: Path) -> ResumableBlob:
    blob = Store(folder / "models", state_dir=folder / "state").resume_blob(str(_DIGEST))
    assert blob is not None
    blob.begin(total=len(_DATA), validator="v")
    return blob


def write(blob: ResumableBlob, number: int) -> None:
    part = _DATA[number * _BLOCK : (number + 1) * _BLOCK]
    block = blob.room()
    block[: len(part)] = part
    blob.write_at(number * _BLOCK, block, len(part))


def test_what_comes_in_order_is_never_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "preadv", lambda *arguments: pytest.fail("it was read back"))
    with opened(tmp_path) as blob:
        for number in range(31):
            write(blob, number)
            assert blob.hash_front()
        assert blob.finish(_DIGEST) == _DIGEST


def test_what_isnt_hashed_for_long_leaves_memory(tmp_path: Path) -> None:
    with opened(tmp_path) as blob:
        for number in range(30, -1, -1):
            write(blob, number)
        assert len(blob._fresh) == resumable._FRESH_BLOCKS
        assert blob.hash_front()
        assert not blob._fresh
        assert blob.finish(_DIGEST) == _DIGEST


@settings(deadline=None)
@given(order=st.permutations(range(31)), hashed_after=st.sets(st.integers(0, 30)))
def test_any_order_has_the_same_digest(
    tmp_path_factory: pytest.TempPathFactory, order: list[int], hashed_after: set[int]
) -> None:
    with opened(tmp_path_factory.mktemp("store")) as blob:
        for count, number in enumerate(order):
            write(blob, number)
            if count in hashed_after:
                blob.hash_front()
        while not blob.hash_front():
            pass
        assert not blob._fresh
        assert blob.finish(_DIGEST) == _DIGEST
