"""What is written goes to the disk while more comes, so that a sync finds little left to do."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from oprel.store import disk
from oprel.store.disk import Disk, begin_sync
from oprel.store.resumable import ResumableBlob

MIB = 1 << 20


def test_a_large_blob_is_on_its_way_every_8_mib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[int] = []
    monkeypatch.setattr(
        "oprel.store.resumable.begin_sync", lambda descriptor: begun.append(os.fstat(descriptor).st_size)
    )
    blob = ResumableBlob.resume(tmp_path, tmp_path, disk=Disk(), key="k")
    assert blob is not None
    blob.begin(total=20 * MIB, validator="")
    block = memoryview(bytes(4 * MIB))
    for at in range(0, 20 * MIB, len(block)):
        blob.write_at(at, block)
    blob.forget()
    assert begun == [8 * MIB, 16 * MIB]


@pytest.mark.skipif(sys.platform != "linux", reason="there is such a call on Linux only")
def test_it_is_asked_of_the_kernel_in_its_own_terms(tmp_path: Path) -> None:
    function = disk._sync_file_range
    assert function is not None
    with (tmp_path / "file").open("wb") as handle:
        handle.write(bytes(MIB))
        handle.flush()
        assert function(handle.fileno(), 0, 0, disk._SYNC_FILE_RANGE_WRITE) == 0
        assert function(handle.fileno(), 0, 0, 99) == -1, "it looks at what it is asked"


def test_where_it_can_not_be_asked_nothing_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begin_sync(-1)  # nor where the kernel refuses
    monkeypatch.setattr("oprel.store.disk._sync_file_range", None)
    with (tmp_path / "file").open("wb") as handle:
        begin_sync(handle.fileno())
