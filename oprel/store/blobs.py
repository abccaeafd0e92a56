"""Blobs: files named by what they hold, visible only when complete, verified and durable.

Order of a write (each step survives a kill at any point): partial file under its own lock → hash while writing →
fsync → rename to its digest → fsync of the folder. A partial file that nobody holds a lock on is rubbish, and the
next sweep removes it.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import secrets
import stat
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from msgspec import Struct

from oprel.errors import InvalidRequestError, NoSpaceError, SourceError
from oprel.store.disk import Disk, translated
from oprel.store.names import Digest

__all__ = ["BlobRef", "BlobWriter", "Progress", "Published", "hash_file", "remove_partials", "require_space"]

_PARTIAL = ("oprel-", ".partial")  # in Ollama's own folder the name says whose the file is
_BLOCK_BYTES = 1 << 20

Published = Callable[[Digest, Path], None]
Progress = Callable[[int], None]
"""Called with the bytes done so far; whatever it raises ends the work, which leaves nothing behind."""


class BlobRef(Struct, frozen=True):
    digest: Digest
    size_bytes: int


class BlobWriter:
    """One blob in the making; a context manager that removes what wasn't published.

    `fill_from` or `write` (many times), then `finish`, then `publish`. Between the last two, `path` can be looked into.
    """

    def __init__(self, path: Path, models_dir: Path, *, disk: Disk, published: Published | None = None) -> None:
        self.path = path
        self._published = published
        self._models_dir = models_dir
        self._disk = disk
        self._hash = hashlib.sha256()
        self._size = 0
        self._digest: Digest | None = None
        self._descriptor = -1

    @classmethod
    def open(
        cls,
        folder: Path,
        models_dir: Path,
        *,
        disk: Disk,
        size_bytes: int | None = None,
        published: Published | None = None,
    ) -> BlobWriter:
        """`size_bytes`, where it is known, is checked against what the disk has left before anything is written.
        `published` is told of the blob when it has its name."""
        writer = cls(folder / _partial_name(), models_dir, disk=disk, published=published)
        with translated(f"write in {folder}"):
            disk.make_folder(folder, mode=0o700)
            if size_bytes is not None:
                require_space(disk, folder, size_bytes)
            writer._create()
        return writer

    def __enter__(self) -> BlobWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.discard()

    def write(self, data: bytes | memoryview) -> None:
        with translated("write a model's file"):
            self._disk.write(self._descriptor, data)
        self._hash.update(data)
        self._size += len(data)

    def restart(self) -> None:
        """Forget what was written."""
        with translated("write a model's file"):
            os.lseek(self._descriptor, 0, os.SEEK_SET)
            os.ftruncate(self._descriptor, 0)
        self._forget()

    def fill_from(self, source: Path, *, progress: Progress | None = None) -> None:
        """Take a whole regular file: its blocks are shared or the file linked where the file system can, else it is
        copied; it is read once in any case. Raises InvalidRequestError when it changes meanwhile."""
        with translated(f"read {source.name!r}"), source.open("rb") as handle:
            before = os.fstat(handle.fileno())
            if not stat.S_ISREG(before.st_mode):
                raise InvalidRequestError(f"{source.name!r} isn't a regular file.")
            shared = self._share(source, handle, before)
            if not shared:
                require_space(self._disk, self.path.parent, before.st_size)
            if shared:  # what is read is what is kept, even if the source is written to meanwhile
                with self.path.open("rb") as kept:
                    self._read_through(kept, copy=False, progress=progress)
            else:
                self._read_through(handle, copy=True, progress=progress)
            after = os.fstat(handle.fileno())
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns) or self._size != after.st_size:
            raise InvalidRequestError(f"{source.name!r} changed while it was read; try again when it is complete.")

    def refill(self, make: Callable[[Path], None]) -> None:
        """Let another program write the file, in place: its path is given to `make`. Read through once afterwards."""
        make(self.path)
        self._forget()
        with translated("write a model's file"), self.path.open("rb") as made:
            if not os.path.samestat(os.fstat(made.fileno()), os.fstat(self._descriptor)):
                raise InvalidRequestError("The program that wrote the model's file put another one in its place.")
            self._read_through(made, copy=False, progress=None)

    def finish(self, expected: Digest | None = None) -> Digest:
        """Make it durable and check it. Raises SourceError for another digest than `expected`."""
        digest = Digest(self._hash.hexdigest())
        if expected is not None and digest != expected:
            raise SourceError(f"digest mismatch, file must be downloaded again: want {expected}, got {digest}.")
        with translated("write a model's file"):
            self._disk.sync(self._descriptor)
        self._digest = digest
        return digest

    def publish(self) -> BlobRef:
        """Give it its name. A blob that had the name already is replaced by this verified one."""
        if self._digest is None:
            raise RuntimeError("finish() comes before publish()")
        target = self._digest.blob_path(self._models_dir)
        self.move_to(target)
        if self._published is not None:
            self._published(self._digest, target)
        return BlobRef(digest=self._digest, size_bytes=self._size)

    def move_to(self, target: Path) -> None:
        """Give it another name than its digest (manifests have one)."""
        if self._digest is None:
            raise RuntimeError("finish() comes before move_to()")
        with translated("keep a model's file"):
            self._disk.make_folder(target.parent)
            if not _is_same_file(self.path, target):  # renaming one link of a file over another does nothing
                self._rename(target)
            self._disk.sync_folder(target.parent)
            self.discard()

    def discard(self) -> None:
        """Nothing is left but what was published."""
        if self._descriptor < 0:
            return
        descriptor, self._descriptor = self._descriptor, -1
        try:
            self._disk.remove(self.path)
        finally:
            os.close(descriptor)

    def _forget(self) -> None:
        self._hash = hashlib.sha256()
        self._size = 0

    def _create(self) -> None:
        self._descriptor = self._disk.create(self.path)
        fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _share(self, source: Path, handle: BinaryIO, before: os.stat_result) -> bool:
        try:
            self._disk.clone(handle.fileno(), self._descriptor)
        except OSError:
            return self._link(source, before)
        return True

    def _link(self, source: Path, before: os.stat_result) -> bool:
        if before.st_uid != os.getuid() or before.st_dev != self._models_device():
            return False  # another user could change it, or it is on another file system
        linked = self.path.with_name(_partial_name())
        try:
            self._disk.link(source, linked)
        except OSError:
            return False
        self._disk.rename(linked, self.path)
        is_same = os.stat(self.path).st_ino == before.st_ino  # noqa: PTH116
        self._reopen()
        if not is_same:
            raise InvalidRequestError(f"{source.name!r} changed while it was read; try again when it is complete.")
        return True

    def _reopen(self) -> None:
        descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        os.close(self._descriptor)
        self._descriptor = descriptor
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)

    def _models_device(self) -> int:
        return self.path.parent.stat().st_dev

    def _read_through(self, handle: BinaryIO, *, copy: bool, progress: Progress | None) -> None:
        block = bytearray(_BLOCK_BYTES)
        view = memoryview(block)
        while count := handle.readinto(block):  # type: ignore[attr-defined]  # a buffered binary file has it
            if copy:
                self.write(view[:count])
            else:
                self._hash.update(view[:count])
                self._size += count
            if progress is not None:
                progress(self._size)

    def _rename(self, target: Path) -> None:
        try:
            self._disk.rename(self.path, target)
        except OSError as problem:
            if problem.errno != errno.EXDEV:
                raise
            self._carry_over(target)

    def _carry_over(self, target: Path) -> None:
        """The partial is on another file system after all (a bind mount has the same device number)."""
        beside = target.with_name(self.path.name)
        descriptor = self._disk.create(beside)
        try:
            with self.path.open("rb") as source:
                while data := source.read(_BLOCK_BYTES):
                    self._disk.write(descriptor, data)
            self._disk.sync(descriptor)
            self._disk.rename(beside, target)
        except BaseException:
            self._disk.remove(beside)
            raise
        finally:
            os.close(descriptor)


def hash_file(path: Path, *, progress: Progress | None = None) -> Digest:
    """Raises StoreError for a file that can't be read."""
    digest, done = hashlib.sha256(), 0
    with translated(f"read {path.name}"), path.open("rb") as handle:
        while data := handle.read(_BLOCK_BYTES):
            digest.update(data)
            done += len(data)
            if progress is not None:
                progress(done)
    return Digest(digest.hexdigest())


def require_space(disk: Disk, folder: Path, size_bytes: int) -> None:
    free = disk.free_bytes(folder)
    if size_bytes > free:
        raise NoSpaceError(
            f"{size_bytes / 1e6:.0f} MB are needed, but the disk has {free / 1e6:.0f} MB left; free some and try again."
        )


def remove_partials(folder: Path, *, disk: Disk, min_age_s: float) -> int:
    """Remove partial files whose writers are gone; returns how many.

    A writer holds a lock on its file; `min_age_s` covers the moment between making the file and locking it."""
    removed = 0
    oldest = time.time() - min_age_s
    for path in sorted(folder.glob("*".join(_PARTIAL))):
        if path.lstat().st_ctime <= oldest and _is_orphan(path):
            disk.remove(path)
            removed += 1
    return removed


def _partial_name() -> str:
    return f"{os.getpid()}-{secrets.token_hex(8)}".join(_PARTIAL)


def _is_orphan(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    else:
        return True
    finally:
        os.close(descriptor)


def _is_same_file(path: Path, target: Path) -> bool:
    try:
        return path.samefile(target)
    except FileNotFoundError:
        return False
