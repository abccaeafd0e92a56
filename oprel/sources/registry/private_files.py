"""Files that only their owner may read."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from oprel.store.disk import Disk

__all__ = ["private_file"]


@contextmanager
def private_file(disk: Disk, path: Path, data: bytes) -> Iterator[Path]:
    """A file beside `path`, of mode 0600 from its first byte on and durable, to be renamed or linked to it in the
    block; what is left of it then is removed. Raises OSError."""
    beside = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        try:
            disk.write(descriptor, data)
            disk.sync(descriptor)
        finally:
            os.close(descriptor)
        yield beside
        disk.sync_folder(path.parent)
    finally:
        disk.remove(beside)
