"""Where a model came from, by its manifest's digest: small JSON files in the state folder.

What is lost here is only known no more: nothing that a model needs to run.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
from msgspec import Struct

from oprel.store.disk import Disk, translated
from oprel.store.names import Digest

__all__ = ["Origin", "Origins"]

_MAX_BYTES = 1 << 20


class Origin(Struct, frozen=True):
    """`source` as it was asked for, `revision` what pins it (a commit), `files` by their names there."""

    source: str
    revision: str
    endpoint: str = ""
    files: tuple[str, ...] = ()


class Origins:
    def __init__(self, state_dir: Path, *, disk: Disk | None = None) -> None:
        self._folder = state_dir.expanduser().absolute() / "sources"
        self._disk = disk or Disk()

    def record(self, manifest: Digest, origin: Origin) -> None:
        """Raises StoreError, NoSpaceError."""
        path = self._path(manifest)
        partial = path.with_suffix(".partial")
        with translated("keep where a model came from"):
            self._disk.make_folder(self._folder, mode=0o700)
            self._disk.remove(partial)  # of a process that was killed
            descriptor = self._disk.create(partial)
            try:
                self._disk.write(descriptor, msgspec.json.encode(origin))
                self._disk.sync(descriptor)
            finally:
                os.close(descriptor)
            self._disk.rename(partial, path)
            self._disk.sync_folder(self._folder)

    def of(self, manifest: Digest) -> Origin | None:
        """None where it isn't known."""
        try:
            data = self._path(manifest).read_bytes()
            return msgspec.json.decode(data, type=Origin) if len(data) <= _MAX_BYTES else None
        except (OSError, msgspec.MsgspecError, ValueError):
            return None

    def _path(self, manifest: Digest) -> Path:
        return self._folder / f"{manifest.hex}.json"
