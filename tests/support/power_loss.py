"""What a power cut leaves of a folder: only what was synced.

`VolatileDisk` does everything for real and remembers what is durable: a file's bytes as they were when it was last
synced, a folder's entries as they were when it was last synced. `after_power_cut` builds that state in another folder.
With `entries_at_once` names are durable as soon as they are given, contents still only when synced: what a journal of
metadata alone does, and what makes a rename before an fsync show.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from oprel.store.disk import Disk
from support.crashing import STEPS

__all__ = ["VolatileDisk"]

_Inode = int


class VolatileDisk(Disk):
    """`root` is what survives so far. `on_step` is called after each step. Use it in a `with`."""

    def __init__(self, root: Path, *, on_step: Callable[[VolatileDisk], None] = lambda disk: None) -> None:
        self.root = root
        self.last_step = ""
        self._on_step = on_step
        self._contents: dict[_Inode, bytes] = {}
        self._entries: dict[Path, dict[str, _Inode | None]] = {}
        self._held: dict[_Inode, int] = {}  # open, so that no number is given to another file
        for folder, _, names in os.walk(root):
            self._note_entries(Path(folder))
            for name in names:
                self._note_content(Path(folder, name))

    def __enter__(self) -> VolatileDisk:
        return self

    def __exit__(self, *failed: object) -> None:
        for descriptor in self._held.values():
            os.close(descriptor)

    def after_power_cut(self, target: Path, *, entries_at_once: bool) -> None:
        """Build in `target` what the disk has after a cut now."""
        self._build(self.root, target, entries_at_once)

    def create(self, path: Path) -> int:
        descriptor = super().create(path)
        self._hold(path)
        self._done("create", path)
        return descriptor

    def open_kept(self, path: Path) -> int:
        descriptor = super().open_kept(path)
        self._hold(path)
        self._done("open_kept", path)
        return descriptor

    def sync(self, descriptor: int) -> None:
        super().sync(descriptor)
        self._note_content(Path(f"/proc/self/fd/{descriptor}"))
        self._done("sync", Path())

    def sync_folder(self, path: Path) -> None:
        super().sync_folder(path)
        self._note_entries(path)
        self._done("sync_folder", path)

    def rename(self, source: Path, target: Path) -> None:
        is_folder = source.is_dir()
        super().rename(source, target)
        if is_folder:  # what is durable inside goes along
            for path in [path for path in self._entries if path.is_relative_to(source)]:
                self._entries[target / path.relative_to(source)] = self._entries.pop(path)
        self._done("rename", target)

    def _done(self, name: str, path: Path) -> None:
        self.last_step = f"{name} {path.name}"
        self._on_step(self)

    def _hold(self, path: Path) -> _Inode:
        inode = path.stat().st_ino
        if inode not in self._held:
            self._held[inode] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        return inode

    def _note_content(self, path: Path) -> None:
        self._contents[self._hold(path)] = path.read_bytes()

    def _note_entries(self, folder: Path) -> None:
        self._entries[folder] = self._live_entries(folder)

    def _live_entries(self, folder: Path) -> dict[str, _Inode | None]:
        if not folder.is_dir():
            return {}
        return {entry.name: None if entry.is_dir() else self._hold(entry) for entry in folder.iterdir()}

    def _build(self, folder: Path, target: Path, entries_at_once: bool) -> None:
        target.mkdir()
        entries = self._live_entries(folder) if entries_at_once else self._entries.get(folder, {})
        for name, inode in entries.items():
            if inode is None:
                self._build(folder / name, target / name, entries_at_once)
            else:
                (target / name).write_bytes(self._contents.get(inode, b""))


def _told(name: str) -> Callable[..., object]:
    def step(self: VolatileDisk, *args: object, **kwargs: object) -> object:
        made = getattr(Disk, name)(self, *args, **kwargs)
        self._done(name, next((arg for arg in reversed(args) if isinstance(arg, Path)), Path()))
        return made

    return step


for _name in STEPS:
    if _name not in vars(VolatileDisk) and _name != "make_folder":  # which is made of others
        setattr(VolatileDisk, _name, _told(_name))
