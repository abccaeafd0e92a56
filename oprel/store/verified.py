"""Which files were read whole and found to hold what their names say, so that each is read once and not on each use.

A stamp is how a file looked when it was read: size, time of change, inode. One that looks otherwise now is read again.
After an unclean shutdown all stamps are forgotten: what was never written back may be gone although the file looks the
same.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec

from oprel.store.blobs import hash_file
from oprel.store.names import Digest

__all__ = ["Verified"]

_Stamp = tuple[int, int, int, int]
_MAX_STAMPS = 4  # the same content in this store and in others that are read

Progress = Callable[[int], None]


class Verified:
    """Losing a stamp costs a read and nothing else, so what can't be read or written in `folder` is passed over. Safe
    to use from several threads: a file is read by one of them, and the others wait for what it finds."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stamps: dict[Digest, tuple[_Stamp, ...]] = {}
        self._reading: dict[Digest, threading.Lock] = {}
        self._lock = threading.Lock()

    def holds(self, digest: Digest, path: Path) -> bool:
        """Whether the file looks as it did when it was found good. False where it isn't there."""
        stamp = _stamp(path)
        return stamp is not None and (stamp in self._stamps.get(digest, ()) or stamp in self._load(digest))

    def check(self, digest: Digest, path: Path, *, progress: Progress | None = None) -> bool:
        """Whether the file holds what the digest says; read only if that isn't known. Blocks. Raises StoreError for a
        file that can't be read."""
        if self.holds(digest, path):
            return True
        with self._lock:
            turn = self._reading.setdefault(digest, threading.Lock())
        with turn:
            return self.holds(digest, path) or self.read(digest, path, progress=progress)

    def read(self, digest: Digest, path: Path, *, progress: Progress | None = None) -> bool:
        """As `check`, but reads the file in any case."""
        before = _stamp(path)
        is_good = hash_file(path, progress=progress) == digest
        if is_good and before is not None and before == _stamp(path):
            self._keep(digest, before)
        elif not is_good:
            self._forget(digest)
        return is_good

    def note(self, digest: Digest, path: Path) -> None:
        """That the file was hashed while it was written."""
        if (stamp := _stamp(path)) is not None:
            self._keep(digest, stamp)

    def forget_all(self) -> None:
        self._stamps.clear()
        with contextlib.suppress(OSError):
            for path in self._folder.iterdir():
                path.unlink(missing_ok=True)

    def _keep(self, digest: Digest, stamp: _Stamp) -> None:
        stamps = (stamp, *(each for each in self._load(digest) if each != stamp))[:_MAX_STAMPS]
        self._stamps[digest] = stamps
        partial = self._folder / f"{digest.hex}-{os.getpid()}-{secrets.token_hex(4)}"
        with contextlib.suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            try:
                partial.write_bytes(msgspec.json.encode(stamps))
                partial.replace(self._folder / digest.hex)
            finally:
                partial.unlink(missing_ok=True)

    def _load(self, digest: Digest) -> tuple[_Stamp, ...]:
        try:
            data = (self._folder / digest.hex).read_bytes()
            stamps: tuple[_Stamp, ...] = msgspec.json.decode(data, type=tuple[_Stamp, ...])
        except (OSError, msgspec.MsgspecError, ValueError):
            return ()
        self._stamps[digest] = stamps
        return stamps

    def _forget(self, digest: Digest) -> None:
        self._stamps.pop(digest, None)
        with contextlib.suppress(OSError):
            (self._folder / digest.hex).unlink(missing_ok=True)


def _stamp(path: Path) -> _Stamp | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return (status.st_size, status.st_mtime_ns, status.st_ino, status.st_dev)
