"""Folders in the making, beside the models' own: each is held by a lock while somebody is at it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from oprel.store.disk import Disk, translated

__all__ = ["is_held", "is_staging", "staging_folder"]

_NAME = (".oprel-", ".partial")


@contextlib.contextmanager
def staging_folder(beside: Path, *, disk: Disk) -> Iterator[Path]:
    """Gone at the end of the block, unless it has got another name by then. Raises StoreError."""
    path = beside / f"{os.getpid()}-{secrets.token_hex(8)}".join(_NAME)
    with translated(f"write in {beside}"):
        disk.make_folder(beside, mode=0o700)
        disk.make_folder(path, mode=0o700)
    try:
        with _holding(path):
            yield path
    finally:
        disk.remove_tree(path)


def is_staging(path: Path) -> bool:
    return path.name.startswith(_NAME[0])


def is_held(folder: Path) -> bool:
    """Whether its maker is still at it."""
    try:
        with _holding(folder):
            return False
    except OSError:
        return True


@contextlib.contextmanager
def _holding(folder: Path) -> Iterator[None]:
    """A lock on the folder itself, which stays when it is renamed and ends with this process."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)
