"""Where what isn't what its name says is put: it may be all that somebody has, so it is never deleted."""

from __future__ import annotations

import errno
import time
from pathlib import Path

from oprel.store.disk import Disk, translated

__all__ = ["put_aside"]


def put_aside(path: Path, state_dir: Path, *, disk: Disk) -> Path | None:
    """Move a file, a link or a folder into `<state>/quarantine`. None if it isn't there, or if that is another file
    system: then it stays until a good one takes its place. Raises StoreError."""
    with translated(f"put {path.name} aside"):
        if not path.exists() and not path.is_symlink():
            return None
        target = state_dir / "quarantine" / f"{path.name}-{time.time_ns()}"
        disk.make_folder(target.parent, mode=0o700)
        try:
            disk.rename(path, target)
        except OSError as problem:
            if problem.errno == errno.EXDEV:
                return None
            raise
        disk.sync_folder(path.parent)
        disk.sync_folder(target.parent)
    return target
