"""The file by which other programs of this user find a running server: `server-<port>.json` (0600)."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from oprel.config import Settings
from oprel.version import __version__

__all__ = ["server_state"]


@contextmanager
def server_state(settings: Settings) -> Iterator[None]:
    """There while the block runs; what a crash left is written over."""
    path = settings.state_dir / f"server-{settings.port}.json"
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    told = {"pid": os.getpid(), "url": settings.base_url, "version": __version__, "started_at": time.time()}
    partial = path.with_suffix(f".{os.getpid()}")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(told, file)
    partial.replace(path)
    try:
        yield
    finally:
        with suppress(OSError, ValueError):
            if json.loads(path.read_text())["pid"] == os.getpid():
                path.unlink()
