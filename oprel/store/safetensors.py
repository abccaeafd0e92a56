"""The header of a safetensors file: names, types and shapes of its tensors, and whether the file is whole.

A header is JSON behind its own length (8 bytes, little-endian); the tensors follow without gaps. Nothing else is read.
"""

from __future__ import annotations

import math
from pathlib import Path

import msgspec
from msgspec import Struct

from oprel.errors import InvalidRequestError
from oprel.store.disk import translated

__all__ = ["MAX_HEADER_BYTES", "SafetensorsHeader", "SafetensorsTensor", "read_safetensors"]

MAX_HEADER_BYTES = 100_000_000  # the format's own limit
_MAX_TENSORS = 1_000_000
_MAX_DIMENSIONS = 16


class SafetensorsTensor(Struct, frozen=True, gc=False):
    """`data_offsets` count from the end of the header. An entry without a type is the file's `__metadata__`."""

    dtype: str = ""
    shape: tuple[int, ...] = ()
    data_offsets: tuple[int, int] = (0, 0)

    @property
    def values(self) -> int:
        return math.prod(self.shape)


class SafetensorsHeader(Struct, frozen=True):
    tensors: dict[str, SafetensorsTensor]

    @property
    def dtypes(self) -> dict[str, int]:
        """Bytes by type, the type that takes most first."""
        sums: dict[str, int] = {}
        for tensor in self.tensors.values():
            start, end = tensor.data_offsets
            sums[tensor.dtype] = sums.get(tensor.dtype, 0) + end - start
        return dict(sorted(sums.items(), key=lambda entry: -entry[1]))


_HEADER = msgspec.json.Decoder(dict[str, SafetensorsTensor])


def read_safetensors(path: Path) -> SafetensorsHeader:
    """Raises InvalidRequestError for a file that isn't one, or isn't whole; StoreError where it can't be read."""
    with translated(f"read {path.name}"), path.open("rb") as handle:
        size = path.stat().st_size
        length = int.from_bytes(handle.read(8), "little")
        if size < 8 or not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
            raise _unusable(path, "its header's length can't be right")
        header = handle.read(length)
    try:
        entries = _HEADER.decode(header)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as problem:
        raise _unusable(path, f"its header can't be read: {problem}") from None
    tensors = {name: tensor for name, tensor in entries.items() if tensor.dtype}
    _check(path, tensors, data_bytes=size - 8 - length)
    return SafetensorsHeader(tensors)


def _check(path: Path, tensors: dict[str, SafetensorsTensor], *, data_bytes: int) -> None:
    if not tensors or len(tensors) > _MAX_TENSORS:
        raise _unusable(path, f"it has {len(tensors)} tensors")
    needed = 0
    for tensor in tensors.values():
        start, end = tensor.data_offsets
        if not 0 <= start <= end or len(tensor.shape) > _MAX_DIMENSIONS or any(size < 0 for size in tensor.shape):
            raise _unusable(path, "a tensor's place or shape can't be right")
        needed = max(needed, end)
    if needed != data_bytes:
        raise _unusable(path, f"it has {data_bytes} bytes of tensors instead of {needed}: it isn't complete")


def _unusable(path: Path, why: str) -> InvalidRequestError:
    return InvalidRequestError(f"{path.name!r} isn't a safetensors file that can be used: {why}.")
