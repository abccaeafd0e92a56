"""Blobs that outlive the process that makes them: a partial file, and beside it a journal of what is in it.

    oprel-<key>.part      the bytes, with holes; locked by its writer
    oprel-<key>.journal   a line of JSON (the source's size and validator, this boot's id), then lines in order:
                          `+ FIRST END` these bytes were written; `= FIRST END` they are on the disk (after fsync)

A killed process loses nothing that was noted: what the kernel took, it keeps. After a crash of the machine only `=`
counts. A line that was cut short counts for nothing. Whatever the journal says, the digest of the whole decides. The
sweep leaves these files for a week after the last write; a download that needs their space removes the oldest first.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import threading
import time
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import msgspec
from msgspec import Struct

from oprel.errors import NoSpaceError, SourceError
from oprel.store.blobs import BlobWriter, Published, require_space
from oprel.store.disk import Disk, begin_sync, translated
from oprel.store.names import Digest
from oprel.store.spans import Spans

__all__ = ["KEEP_S", "ResumableBlob", "remove_resumables", "reserve_bytes"]

KEEP_S = 7 * 86_400.0
MAX_RESERVE_BYTES = 256 << 20
_MAX_JOURNAL_BYTES = 64 << 20
_BLOCK_BYTES = 1 << 20
_AHEAD_BYTES = 8 << 20
_HASH_BYTES = 256 << 20
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_LINE = re.compile(rb"([+=]) (\d{1,18}) (\d{1,18})")


class _Header(Struct, frozen=True):
    total: int | None
    validator: str
    boot: str


class ResumableBlob(BlobWriter):
    """A BlobWriter whose bytes may come in any order and whose file stays when it is left unfinished.

    `total` and `validator` are what the journal knows of the source; `is_lasting` False: nothing stays. `write_at` may
    be called from several threads, `hash_front` from one at a time.
    """

    def __init__(self, path: Path, models_dir: Path, *, disk: Disk, published: Published | None = None) -> None:
        super().__init__(path, models_dir, disk=disk, published=published)
        self._journal_path = path.with_suffix(".journal")
        self._journal = -1
        self._guard = threading.Lock()
        self._noted = Spans()
        self.is_lasting = True
        self.total: int | None = None
        self.validator = ""

    @classmethod
    def resume(
        cls, folder: Path, models_dir: Path, *, disk: Disk, key: str, published: Published | None = None
    ) -> ResumableBlob | None:
        """None while another writer has it. `key` says what is being made: the same key, the same file. `published` is
        told of the blob when it has its name."""
        name = f"oprel-{sha256(key.encode()).hexdigest()[:40]}.part"
        blob = cls(folder / name, models_dir, disk=disk, published=published)
        with translated(f"write in {folder}"):
            disk.make_folder(folder, mode=0o700)
            return blob if blob._take() else None

    @property
    def done_bytes(self) -> int:
        with self._guard:
            return self._noted.size_bytes

    @property
    def front(self) -> int:
        """All bytes before it are written."""
        with self._guard:
            return self._noted.front

    def missing(self) -> list[tuple[int, int]]:
        """What is to be fetched, in order, half-open; `total` must be known."""
        with self._guard:
            return list(self._noted.missing(self.total or 0))

    def begin(self, *, total: int | None, validator: str) -> None:
        """What the source says now. What was written for another size or validator is forgotten. Raises NoSpaceError
        when the rest wouldn't fit, StoreError."""
        if self._journal < 0 or (total, validator) != (self.total, self.validator):
            self.restart()
            self.total, self.validator = total, validator
            with translated("write a model's file"):
                self._open_journal()
        if total is not None:
            self.require_space(total)

    def require_space(self, total: int) -> None:
        """Raises NoSpaceError when the rest of so many bytes wouldn't fit, even with older downloads removed."""
        folder = self.path.parent
        needed = total - self.done_bytes + reserve_bytes(self._disk, folder)
        try:
            require_space(self._disk, folder, needed)
        except NoSpaceError:
            with translated("make space"):
                remove_resumables(folder, disk=self._disk, min_age_s=0, until_free_bytes=needed)
            require_space(self._disk, folder, needed)

    def restart(self) -> None:
        """Forget what was written."""
        with translated("write a model's file"), self._guard:
            self._close_journal()
            self._disk.remove(self._journal_path)  # before the bytes it speaks of
            self._disk.cut(self._descriptor, 0)
            self._noted = Spans()
        self._hash, self._size = sha256(), 0
        self.total, self.validator = None, ""

    def write_at(self, offset: int, data: memoryview) -> None:
        """Written first, noted after."""
        end = offset + len(data)
        with translated("write a model's file"):
            self._disk.write_at(self._descriptor, data, offset)
            with self._guard:
                self._disk.write(self._journal, b"+ %d %d\n" % (offset, end))
                self._noted.add(offset, end)
            if offset // _AHEAD_BYTES != end // _AHEAD_BYTES:
                begin_sync(self._descriptor)

    def checkpoint(self) -> None:
        """What was written until now survives a crash of the machine, too."""
        with self._guard:
            written = b"".join(b"= %d %d\n" % span for span in self._noted)
        with translated("write a model's file"):
            self._disk.sync(self._descriptor)
            with self._guard:
                self._disk.write(self._journal, written)
            self._disk.sync(self._journal)

    def hash_front(self) -> bool:
        """Go on hashing towards the front, for a while; whether it is reached. The bytes are read back from the
        kernel's cache."""
        front = self.front
        stop = min(front, self._size + _HASH_BYTES)
        block = memoryview(bytearray(min(_BLOCK_BYTES, max(stop - self._size, 0))))
        with translated("read a model's file"):
            while self._size < stop:
                count = os.preadv(self._descriptor, [block[: stop - self._size]], self._size)
                if not count:
                    raise SourceError("A partial file was cut short by somebody else; try again.")
                self._hash.update(block[:count])
                self._size += count
        return stop == front

    def finish(self, expected: Digest | None = None) -> Digest:
        """As BlobWriter's; with another digest nothing of it is kept. All bytes must be hashed."""
        if self._size != self.total:
            raise RuntimeError("finish() comes after hash_front() has seen the last byte")
        try:
            with translated("write a model's file"):
                self._disk.cut(self._descriptor, self._size)
            return super().finish(expected)
        except SourceError:
            self.forget()
            raise

    def forget(self) -> None:
        """It's of no use: nothing is kept for another try."""
        self.is_lasting = False
        self.discard()

    def discard(self) -> None:
        """What is unfinished stays for the next try."""
        if self._descriptor < 0:
            return
        descriptor, self._descriptor = self._descriptor, -1
        try:
            self._close_journal()
            if not self.is_lasting or not self.path.exists():  # it has another name now
                self._disk.remove(self._journal_path)
                self._disk.remove(self.path)
        finally:
            os.close(descriptor)

    def _take(self) -> bool:
        descriptor = self._disk.open_kept(self.path)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_ours = os.fstat(descriptor).st_ino == self.path.stat().st_ino
        except (BlockingIOError, FileNotFoundError):
            is_ours = False
        if not is_ours:  # locked, or published or removed since it was opened
            os.close(descriptor)
            return False
        self._descriptor = descriptor
        self._read_journal(os.fstat(descriptor).st_size)
        return True

    def _read_journal(self, size_bytes: int) -> None:
        try:
            with self._journal_path.open("rb") as handle:
                data = handle.read(_MAX_JOURNAL_BYTES)
            head, *lines = data.split(b"\n")[:-1]
            header = msgspec.json.decode(head, type=_Header)
        except (OSError, ValueError, msgspec.MsgspecError):
            return  # none yet, or not one of ours: what is there is written over
        is_same_boot = bool(header.boot) and header.boot == _boot_id()
        self.total, self.validator = header.total, header.validator
        for first, end in _counting(lines, is_same_boot=is_same_boot):
            if end <= size_bytes and (self.total is None or end <= self.total):
                self._noted.add(first, end)
        if is_same_boot:
            self._journal = self._disk.open_kept(self._journal_path)
            self._disk.cut(self._journal, data.rfind(b"\n") + 1)
            os.lseek(self._journal, 0, os.SEEK_END)
        else:
            self._open_journal()

    def _open_journal(self) -> None:
        """Written anew, with what counts, and renamed: there is a whole one at any time."""
        self._close_journal()
        beside = self._journal_path.with_suffix(".noting")
        self._disk.remove(beside)
        self._journal = self._disk.create(beside)
        header = msgspec.json.encode(_Header(self.total, self.validator, _boot_id()))
        lines = b"".join(b"= %d %d\n" % span for span in self._noted)
        self._disk.write(self._journal, header + b"\n" + lines)
        self._disk.sync(self._journal)
        self._disk.rename(beside, self._journal_path)
        self._disk.sync_folder(self.path.parent)

    def _close_journal(self) -> None:
        if self._journal >= 0:
            os.close(self._journal)
            self._journal = -1


def reserve_bytes(disk: Disk, folder: Path) -> int:
    """What a download leaves free for others: a twentieth of the disk, 256 MiB at most."""
    return min(MAX_RESERVE_BYTES, disk.total_bytes(folder) // 20)


def remove_resumables(
    folder: Path, *, disk: Disk, min_age_s: float = KEEP_S, until_free_bytes: int | None = None
) -> int:
    """Remove downloads that nobody is at and that weren't written to for `min_age_s`, the oldest first, until there is
    so much space; returns how many."""
    removed = 0
    oldest = time.time() - min_age_s
    parts = sorted((_written_at(path), path) for path in folder.glob("oprel-*.part"))
    for written_at, path in parts:
        if until_free_bytes is not None and disk.free_bytes(folder) >= until_free_bytes:
            break
        if written_at <= oldest and _remove_orphan(path, disk):
            removed += 1
    for kind in ("journal", "noting"):
        for path in folder.glob(f"oprel-*.{kind}"):
            if not path.with_suffix(".part").exists():  # it speaks of nothing any more
                disk.remove(path)
    return removed


def _remove_orphan(path: Path, disk: Disk) -> bool:
    """Under its lock, so that nobody takes it up meanwhile."""
    with contextlib.ExitStack() as stack:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            stack.callback(os.close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        disk.remove(path.with_suffix(".journal"))
        disk.remove(path)
        return True


def _written_at(path: Path) -> float:
    try:
        return path.lstat().st_mtime
    except FileNotFoundError:
        return time.time()


def _counting(lines: list[bytes], *, is_same_boot: bool) -> Iterator[tuple[int, int]]:
    for line in lines:
        match = _LINE.fullmatch(line)
        if match is not None and (is_same_boot or match[1] == b"="):
            yield int(match[2]), int(match[3])


def _boot_id() -> str:
    """Empty where the system has none: then only what was synced counts, as after a crash."""
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return ""
