"""Hashing of what comes in any order."""

from __future__ import annotations

import hashlib
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oprel.store import Digest, Store

_BLOCK = 1000
_DATA = random.Random(3).randbytes(30 * _BLOCK + 77)  # noqa: S311
_DIGEST = Digest(hashlib.sha256(_DATA).hexdigest())


@settings(deadline=None)
@given(order=st.permutations(range(31)), hashed_after=st.sets(st.integers(0, 30)))
def test_any_order_has_the_same_digest(
    tmp_path_factory: pytest.TempPathFactory, order: list[int], hashed_after: set[int]
) -> None:
    folder = tmp_path_factory.mktemp("store")
    blob = Store(folder / "models", state_dir=folder / "state").resume_blob(str(_DIGEST))
    assert blob is not None
    with blob:
        blob.begin(total=len(_DATA), validator="v")
        for count, number in enumerate(order):
            at = number * _BLOCK
            blob.write_at(at, memoryview(_DATA)[at : at + _BLOCK])
            if count in hashed_after:
                blob.hash_front()
        while not blob.hash_front():
            pass
        assert blob.finish(_DIGEST) == _DIGEST
