"""Blobs that no manifest refers to, removed without taking one from a pull or a creation that is under way.

Three things spare a blob: it is young (`grace_s`; Ollama's own figure is an hour), somebody holds the store in use, or
a manifest can't be read and might need it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from msgspec import Struct

from oprel.errors import InvalidRequestError, OprelError
from oprel.store.disk import Disk, translated
from oprel.store.manifests import MAX_MANIFEST_BYTES, iter_manifests, parse_manifest, read_small
from oprel.store.names import Digest

__all__ = ["Garbage", "InUse", "remove_garbage", "unreferenced"]


class Garbage(Struct, frozen=True):
    """What was removed; `excuse` says why nothing was looked at."""

    blobs: int = 0
    size_bytes: int = 0
    excuse: str = ""


class InUse:
    """Held, by any number of threads and processes, while blobs are written that no manifest refers to yet."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Never waits for long: who looks whether it is held lets go at once."""
        descriptor = self._open()
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            yield
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def free(self) -> Iterator[bool]:
        """Whether nobody holds it; nobody can begin to until the block ends."""
        descriptor = self._open()
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
        finally:
            os.close(descriptor)

    def _open(self) -> int:
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        return os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def unreferenced(root: Path) -> list[tuple[Path, os.stat_result]]:
    """The blobs that no manifest below `root` refers to. Raises OprelError for a manifest that can't be read."""
    needed: set[str] = set()
    for entry in iter_manifests(root):
        try:
            manifest = parse_manifest(read_small(entry.path, MAX_MANIFEST_BYTES))
        except OprelError as problem:
            raise type(problem)(f"the manifest of {str(entry.name)!r} can't be read") from problem
        needed.update(blob.digest.hex for blob in manifest.blobs)
    found = []
    for path in sorted((root / "blobs").glob("sha256-*")):
        try:
            digest = Digest.parse(path.name)
            status = path.lstat()
        except (InvalidRequestError, FileNotFoundError):
            continue  # another program's, or one that it removed meanwhile
        if digest.hex not in needed:
            found.append((path, status))
    return found


def remove_garbage(root: Path, *, disk: Disk, grace_s: float) -> Garbage:
    """Under the store's lock, while nobody has it in use."""
    try:
        candidates = unreferenced(root)
    except OprelError as problem:
        return Garbage(excuse=problem.message)
    oldest = time.time() - grace_s
    blobs = size_bytes = 0
    with translated("delete unused files"):
        for path, status in candidates:
            if max(status.st_mtime, status.st_ctime) < oldest:
                disk.remove(path)
                blobs += 1
                size_bytes += status.st_size
    return Garbage(blobs, size_bytes)
