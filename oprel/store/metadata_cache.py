"""GGUF metadata, kept by digest in the state folder: a header is parsed once for each file, not once for each start."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

import msgspec

from oprel.store.gguf import GgufMetadata, read_gguf
from oprel.store.names import Digest

__all__ = ["MetadataCache"]

_FORMAT = 1  # rises with any change to what `GgufMetadata` holds
_MAX_BYTES = 64 << 20


class MetadataCache:
    """Losing it costs time only, so what can't be read or written here is passed over."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, digest: Digest, path: Path, *, model: str = "") -> GgufMetadata:
        """Of the blob at `path`. Raises what `read_gguf` raises."""
        kept = self._folder / f"{digest.hex}-{_FORMAT}.msgpack"
        metadata = self._load(kept)
        if metadata is not None and metadata.size_bytes == _size(path):
            return metadata
        metadata = read_gguf(path, model=model)
        self.keep(digest, metadata)
        return metadata

    def keep(self, digest: Digest, metadata: GgufMetadata) -> None:
        kept = self._folder / f"{digest.hex}-{_FORMAT}.msgpack"
        partial = kept.with_name(f"{kept.name}-{os.getpid()}-{secrets.token_hex(4)}")
        with contextlib.suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            try:
                partial.write_bytes(msgspec.msgpack.encode(metadata))
                partial.replace(kept)
            finally:
                partial.unlink(missing_ok=True)

    def _load(self, kept: Path) -> GgufMetadata | None:
        try:
            if kept.stat().st_size > _MAX_BYTES:
                return None
            return msgspec.msgpack.decode(kept.read_bytes(), type=GgufMetadata)
        except (OSError, msgspec.MsgspecError, ValueError):
            return None


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1
