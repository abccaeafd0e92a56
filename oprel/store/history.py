"""What happened to models' names, one line for each change: an append-only file of JSON lines in the state folder.

A line is written before the change that it tells of, so that no change is ever without its source. A process that dies
between the two leaves a line about a version that never came: it is listed as one whose files are gone. A half-written
line, which a kill may leave, ends where the next one begins. The file is bounded: past its limit, the newest lines are
kept.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

from oprel.errors import StoreError
from oprel.store.disk import Disk, translated
from oprel.store.names import ModelName

__all__ = ["Action", "Event", "History"]

Action = Literal["pull", "import", "create", "copy", "rollback", "delete", "found"]
"""`found`: the version was made by another program, and Oprel saw it when it replaced it."""

MAX_BYTES = 4 << 20
KEPT_LINES = 5000


class Event(Struct, frozen=True, omit_defaults=True):
    """`at` in Unix seconds; `name` as displayed; `digest` is the manifest's, in hexadecimal digits, and of the version
    that goes for a deletion. `source` is what a pull was asked for, exact as far as it can be; `revision` pins it
    further, where the source has such a thing. `not_kept` says why the version before this one couldn't be."""

    at: float
    action: Action
    name: str
    digest: str
    source: str = ""
    revision: str = ""
    not_kept: str = ""


class History:
    """Written under the store's lock; read at any time."""

    def __init__(self, path: Path, *, disk: Disk) -> None:
        self.path = path
        self._disk = disk

    def __iter__(self) -> Iterator[Event]:
        """Oldest first."""
        for line in self._read().splitlines():
            try:
                yield msgspec.json.decode(line, type=Event)
            except (msgspec.MsgspecError, ValueError):
                continue  # a line that a kill has cut, or of a later version

    def of(self, name: ModelName) -> tuple[Event, ...]:
        """Newest first, in any spelling of the name."""
        return tuple(event for event in reversed(tuple(self)) if _is_called(event, name))

    def origins(self, name: ModelName | None = None) -> dict[str, Event]:
        """By digest the newest event that says where the version came from: one of `name` before those of other names
        that the version has, or had."""
        told = [event for event in self if event.source]
        own = [event for event in told if name is not None and _is_called(event, name)]
        return {event.digest: event for event in (*told, *own)}

    def append(self, event: Event) -> None:
        with translated("keep the history of models"):
            self._disk.make_folder(self.path.parent, mode=0o700)
            self._shorten()
            is_new = not self.path.exists()
            descriptor = self._disk.open_end(self.path)
            try:
                start = b"" if _ends_in_line(descriptor) else b"\n"
                self._disk.write(descriptor, start + msgspec.json.encode(event) + b"\n")
                self._disk.sync(descriptor)
            finally:
                os.close(descriptor)
            if is_new:
                self._disk.sync_folder(self.path.parent)

    def _shorten(self) -> None:
        if not self.path.exists() or self.path.stat().st_size <= MAX_BYTES:
            return
        kept = b"".join(line + b"\n" for line in self._read().splitlines()[-KEPT_LINES:])
        partial = self.path.with_suffix(".partial")
        self._disk.remove(partial)  # of one that was killed
        descriptor = self._disk.create(partial)
        try:
            self._disk.write(descriptor, kept)
            self._disk.sync(descriptor)
        finally:
            os.close(descriptor)
        self._disk.rename(partial, self.path)
        self._disk.sync_folder(self.path.parent)

    def _read(self) -> bytes:
        """Raises StoreError for a file that is there and can't be read: it says what must be kept."""
        try:
            with translated("read the history of models"), self.path.open("rb") as handle:
                return handle.read(2 * MAX_BYTES)
        except StoreError as problem:
            if isinstance(problem.__cause__, FileNotFoundError):
                return b""
            raise


def _is_called(event: Event, name: ModelName) -> bool:
    return event.name.lower() == str(name).lower()


def _ends_in_line(descriptor: int) -> bool:
    end = os.fstat(descriptor).st_size
    return end == 0 or os.pread(descriptor, 1, end - 1) == b"\n"
