"""Every step that changes the file system, one method each.

The store goes through these and nothing else, so that tests can stop the process after any step, fill the disk or
record the order. Errors of the operating system become ours in `translated`.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from oprel.errors import NoSpaceError, StoreError

__all__ = ["Disk", "FileLock", "begin_sync", "translated"]

_SYNC_FILE_RANGE_WRITE = 2  # linux/fs.h
_FICLONE = 0x40049409  # linux/fs.h: share the blocks of another file (btrfs, xfs)
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_LOCK_STEP_S = 0.02


class Disk:
    def make_folder(self, path: Path, *, mode: int = 0o777) -> None:
        """Parents too; each is durable before the next."""
        if path.is_dir():
            return
        self.make_folder(path.parent, mode=mode)
        try:
            path.mkdir(mode=mode)
        except FileExistsError:
            return
        self.sync_folder(path.parent)

    def create(self, path: Path) -> int:
        """A file descriptor of a file that wasn't there."""
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)

    def open_end(self, path: Path) -> int:
        """A file descriptor that writes at a file's end; the file is made where it isn't there."""
        return os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def write(self, descriptor: int, data: bytes | memoryview) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(descriptor, rest) :]

    def open_kept(self, path: Path) -> int:
        """A file descriptor of a file that may be there already; a link isn't followed."""
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)

    def write_at(self, descriptor: int, data: bytes | memoryview, offset: int) -> None:
        rest = memoryview(data)
        while rest:
            count = os.pwrite(descriptor, rest, offset)
            rest, offset = rest[count:], offset + count

    def cut(self, descriptor: int, size_bytes: int) -> None:
        os.ftruncate(descriptor, size_bytes)

    def sync(self, descriptor: int) -> None:
        os.fsync(descriptor)

    def sync_folder(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        source.replace(target)

    def link(self, source: Path, target: Path) -> None:
        os.link(source.resolve(), target)  # a link to a link would leave the store

    def clone(self, source: int, target: int) -> None:
        """Share the source's blocks; OSError where the file system can't."""
        fcntl.ioctl(target, _FICLONE, source)

    def remove(self, path: Path) -> None:
        path.unlink(missing_ok=True)

    def remove_folder(self, path: Path) -> None:
        path.rmdir()

    def remove_tree(self, path: Path) -> None:
        """A folder with all that is in it, as far as it can be removed."""
        shutil.rmtree(path, ignore_errors=True)

    def free_bytes(self, path: Path) -> int:
        stat = os.statvfs(path)
        return stat.f_bavail * stat.f_frsize

    def total_bytes(self, path: Path) -> int:
        stat = os.statvfs(path)
        return stat.f_blocks * stat.f_frsize


class FileLock:
    """An exclusive lock between processes and threads, given back by the kernel when its holder dies."""

    def __init__(self, path: Path, *, limit_s: float = 30.0) -> None:
        self._path = path
        self._limit_s = limit_s

    @contextmanager
    def held(self) -> Iterator[None]:
        """Waits up to the limit, then raises StoreError."""
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            self._take(descriptor)
            yield
        finally:
            os.close(descriptor)

    def _take(self, descriptor: int) -> None:
        deadline = time.monotonic() + self._limit_s
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise StoreError(
                        f"The store has been locked by another process for {self._limit_s:.0f} s; "
                        "try again when that is done."
                    ) from None
                time.sleep(_LOCK_STEP_S)
            else:
                return


@contextmanager
def translated(doing: str) -> Iterator[None]:
    """Turn what the operating system refuses into NoSpaceError or StoreError; `doing` completes "can't …"."""
    try:
        yield
    except OSError as problem:
        if problem.errno in _FULL:
            raise NoSpaceError(f"There is no space left on the disk to {doing}; free some and try again.") from problem
        reason = problem.strerror or str(problem)
        raise StoreError(f"The store can't {doing}: {reason}.") from problem


def begin_sync(descriptor: int) -> None:
    """Have what is written go to the disk from now on, and don't wait for it: a `sync` finds little left to do. It
    changes nothing and promises nothing, so it is no step of `Disk`; where the system can't, nothing happens."""
    if _sync_file_range is not None:
        _sync_file_range(descriptor, 0, 0, _SYNC_FILE_RANGE_WRITE)


def _find_sync_file_range() -> Callable[[int, int, int, int], object] | None:
    if sys.platform != "linux":
        return None
    function = getattr(ctypes.CDLL(None), "sync_file_range", None)
    if function is not None:
        function.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    return function


_sync_file_range = _find_sync_file_range()
