"""A mark that a server leaves in the state folder while it runs: one that nobody holds tells of an unclean end."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from pathlib import Path

__all__ = ["RunningMark"]

_SUFFIX = ".running"


class RunningMark:
    """A file with a lock on it, which the kernel takes away with the process. Blocking, a few small files."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / f"{os.getpid()}-{secrets.token_hex(4)}{_SUFFIX}"
        self._descriptor = -1

    def begin(self) -> bool:
        """Whether a server, the last one or another, ended without saying so. Its mark is taken away."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        left = [path for path in self._folder.glob(f"*{_SUFFIX}") if _is_left(path)]
        for path in left:
            path.unlink(missing_ok=True)
        unlocked = self._path.with_suffix(".new")  # nobody may see it before it is locked
        self._descriptor = os.open(unlocked, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        unlocked.rename(self._path)
        _make_durable(self._folder)
        return bool(left)

    def end(self) -> None:
        if self._descriptor < 0:
            return
        descriptor, self._descriptor = self._descriptor, -1
        self._path.unlink(missing_ok=True)
        os.close(descriptor)
        with contextlib.suppress(OSError):
            _make_durable(self._folder)


def _is_left(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False  # gone meanwhile
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    else:
        return True
    finally:
        os.close(descriptor)


def _make_durable(folder: Path) -> None:
    """After a power cut the mark must still be there."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
