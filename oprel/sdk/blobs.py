"""Files on their way to a server: named by their digest, sent once."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from oprel.errors import InvalidRequestError

__all__ = ["digest_of", "file_at", "headers_of", "read_blocks", "read_blocks_async"]

_BLOCK_BYTES = 1 << 20


def file_at(path: str | Path) -> Path:
    return Path(path).expanduser()


def digest_of(path: Path) -> str:
    """`sha256:` and the digest, by which /api/blobs knows the file. Raises InvalidRequestError."""
    digest = hashlib.sha256()
    for block in read_blocks(path):
        digest.update(block)
    return f"sha256:{digest.hexdigest()}"


def headers_of(path: Path) -> dict[str, str]:
    return {"content-length": str(path.stat().st_size), "content-type": "application/octet-stream"}


def read_blocks(path: Path) -> Iterator[bytes]:
    if not path.is_file():  # opening a pipe or a device could wait for ever
        raise InvalidRequestError(f"{str(path)!r} isn't a file that can be read")
    try:
        with path.open("rb") as handle:
            while block := handle.read(_BLOCK_BYTES):
                yield block
    except OSError as problem:
        raise InvalidRequestError(f"{str(path)!r} can't be read: {problem.strerror}") from problem


async def read_blocks_async(path: Path) -> AsyncIterator[bytes]:
    blocks = read_blocks(path)
    while block := await asyncio.to_thread(next, blocks, b""):
        yield block
