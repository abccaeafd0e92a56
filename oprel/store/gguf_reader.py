"""Read the header of a GGUF file without trusting a single length in it.

Everything that the file claims is checked against a limit or against the bytes that are left, before anything is
allocated or walked. A header costs at most `MAX_KEPT_BYTES` of memory and `MAX_WALKED_STRINGS` steps, whatever it
says. Layout: magic, version, tensor count, key count, typed keys, tensor infos, padding, data (GGUF versions 2 and 3).
"""

from __future__ import annotations

import struct
from typing import BinaryIO, TypeAlias

from msgspec import Struct

from oprel.store.gguf_types import TENSOR_TYPES

__all__ = ["MAGIC", "GgufTensor", "GgufValue", "HeaderError", "RawHeader", "SkippedArray", "read_header"]

MAX_TENSORS = 1 << 16
MAX_KEYS = 1 << 12
MAX_KEY_BYTES = 1 << 10
MAX_TENSOR_NAME_BYTES = 256
MAX_STRING_BYTES = 16 << 20
MAX_KEPT_BYTES = 64 << 20
MAX_WALKED_STRINGS = 1 << 22
MAX_DIMENSIONS = 4
MAX_ELEMENTS = 1 << 62
MAX_ALIGNMENT = 4096
DEFAULT_ALIGNMENT = 32
MAGIC = b"GGUF"

_READ_BYTES = 1 << 20
_KEPT_ELEMENT_BYTES = 32  # what a kept number costs, for the limit on what is kept

_STRING, _ARRAY, _BOOL, _FLOAT32 = 8, 9, 7, 6
_SCALARS: dict[int, tuple[str, struct.Struct]] = {
    0: ("uint8", struct.Struct("<B")),
    1: ("int8", struct.Struct("<b")),
    2: ("uint16", struct.Struct("<H")),
    3: ("int16", struct.Struct("<h")),
    4: ("uint32", struct.Struct("<I")),
    5: ("int32", struct.Struct("<i")),
    _FLOAT32: ("float32", struct.Struct("<f")),
    _BOOL: ("bool", struct.Struct("<B")),
    10: ("uint64", struct.Struct("<Q")),
    11: ("int64", struct.Struct("<q")),
    12: ("float64", struct.Struct("<d")),
}
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")


class SkippedArray(Struct, frozen=True):
    """An array that was too long to keep: what it holds and how many."""

    type: str
    length: int


Scalar: TypeAlias = bool | int | float | str
GgufValue: TypeAlias = bool | int | float | str | SkippedArray | list[Scalar]


class GgufTensor(Struct, frozen=True):
    """`offset` counts from the beginning of the data; `size_bytes` is None for a type newer than this reader."""

    name: str
    type: str
    shape: tuple[int, ...]
    offset: int
    size_bytes: int | None


class RawHeader(Struct, frozen=True):
    version: int
    data_offset: int
    values: dict[str, GgufValue]
    tensors: tuple[GgufTensor, ...]


class HeaderError(Exception):
    """What is wrong with the header, as the end of a sentence that begins with the file's name."""


def read_header(handle: BinaryIO, size_bytes: int, *, array_limit: int) -> RawHeader:
    """Arrays longer than `array_limit` are skipped. Raises HeaderError, and OSError as the file does."""
    cursor = _Cursor(handle, size_bytes)
    version = _read_version(cursor)
    tensor_count = cursor.number(_U64)
    key_count = cursor.number(_U64)
    if tensor_count > MAX_TENSORS:
        raise HeaderError(f"claims {tensor_count} tensors, more than {MAX_TENSORS}")
    if key_count > MAX_KEYS:
        raise HeaderError(f"claims {key_count} keys, more than {MAX_KEYS}")
    values = _read_values(cursor, key_count, array_limit)
    alignment = _alignment(values)
    tensors = tuple(_read_tensor(cursor) for _ in range(tensor_count))
    data_offset = -(-cursor.position // alignment) * alignment
    _check_tensors(tensors, data_offset, size_bytes, alignment)
    return RawHeader(version=version, data_offset=data_offset, values=values, tensors=tensors)


class _Cursor:
    """Forward reading through a small window; `budget` is what may still be kept, in bytes."""

    def __init__(self, handle: BinaryIO, size_bytes: int) -> None:
        self._handle = handle
        self._size = size_bytes
        self._window = b""
        self._base = 0  # where in the file the window begins
        self._at = 0  # where in the window the cursor is
        self._walked = 0
        self.budget = MAX_KEPT_BYTES

    @property
    def position(self) -> int:
        return self._base + self._at

    @property
    def remaining(self) -> int:
        return self._size - self.position

    def number(self, layout: struct.Struct) -> int:
        self._need(layout.size)
        (value,) = layout.unpack_from(self._window, self._at)
        self._at += layout.size
        return int(value)

    def scalar(self, kind: int) -> Scalar:
        _, layout = _SCALARS[kind]
        self._need(layout.size)
        (value,) = layout.unpack_from(self._window, self._at)
        self._at += layout.size
        return _as_scalar(kind, value)

    def text(self, limit: int, what: str) -> str:
        """`what` it is, for errors. Bytes that aren't UTF-8 become U+FFFD."""
        length = self.number(_U64)
        if length > limit:
            raise HeaderError(f"has a {what} of {length} bytes, more than {limit}")
        self.keep(length)
        self._need(length)
        data = self._window[self._at : self._at + length]
        self._at += length
        return data.decode("utf-8", errors="replace")

    def keep(self, size_bytes: int) -> None:
        self.budget -= size_bytes
        if self.budget < 0:
            raise HeaderError(f"has a header that holds more than {MAX_KEPT_BYTES >> 20} MiB")

    def skip(self, count: int) -> None:
        if count > self.remaining:
            raise _cut_short(self.position + count, self._size)
        self._at += count

    def skip_strings(self, count: int) -> None:
        self._walked += count
        if self._walked > MAX_WALKED_STRINGS:
            raise HeaderError(f"has arrays of more than {MAX_WALKED_STRINGS} strings")
        unpack = _U64.unpack_from
        while count:
            self._need(8)
            window, at, last = self._window, self._at, len(self._window) - 8
            for done in range(count):  # noqa: B007  # a vocabulary has 100,000 and more; it is looked at below
                if at > last:
                    break
                at += unpack(window, at)[0] + 8
            else:
                done = count
            count -= done
            self._at = at
            if self.remaining < 0:
                raise _cut_short(self.position, self._size)

    def _need(self, count: int) -> None:
        """Have `count` more bytes in the window."""
        if self._at + count <= len(self._window):
            return
        if count > self.remaining:
            raise _cut_short(self.position + count, self._size)
        position = self.position
        self._handle.seek(position)
        self._window = self._handle.read(min(max(count, _READ_BYTES), self._size - position))
        self._base, self._at = position, 0
        if len(self._window) < count:
            raise _cut_short(position + count, position + len(self._window))


def _read_version(cursor: _Cursor) -> int:
    if cursor.remaining < 4 or cursor.number(_U32) != int.from_bytes(MAGIC, "little"):
        raise HeaderError("doesn't begin with 'GGUF'")
    version = cursor.number(_U32)
    if version in (2, 3):
        return version
    if version > 0xFFFF:
        raise HeaderError("is a big-endian GGUF file; convert it to little-endian")
    raise HeaderError(f"has GGUF version {version}; versions 2 and 3 can be read")


def _read_values(cursor: _Cursor, count: int, array_limit: int) -> dict[str, GgufValue]:
    values: dict[str, GgufValue] = {}
    for _ in range(count):
        key = cursor.text(MAX_KEY_BYTES, "key")
        if key in values:
            raise HeaderError(f"has the key {key[:60]!r} twice")
        kind = cursor.number(_U32)
        if kind == _STRING:
            values[key] = cursor.text(MAX_STRING_BYTES, "string")
        elif kind == _ARRAY:
            values[key] = _read_array(cursor, array_limit)
        elif kind in _SCALARS:
            cursor.keep(_KEPT_ELEMENT_BYTES)
            values[key] = cursor.scalar(kind)
        else:
            raise HeaderError(f"has the value type {kind} at the key {key[:60]!r}, which doesn't exist")
    return values


def _read_array(cursor: _Cursor, array_limit: int) -> SkippedArray | list[Scalar]:
    kind = cursor.number(_U32)
    length = cursor.number(_U64)
    if kind == _STRING:
        if length > cursor.remaining // 8:
            raise HeaderError(f"claims an array of {length} strings, more than the file can hold")
        if length > array_limit:
            cursor.skip_strings(length)
            return SkippedArray("string", length)
        cursor.keep(length * _KEPT_ELEMENT_BYTES)
        return [cursor.text(MAX_STRING_BYTES, "string") for _ in range(length)]
    if kind not in _SCALARS:
        raise HeaderError(f"has an array of value type {kind}, which isn't supported")
    name, layout = _SCALARS[kind]
    if length > cursor.remaining // layout.size:
        raise HeaderError(f"claims an array of {length} numbers, more than the file can hold")
    if length > array_limit:
        cursor.skip(length * layout.size)
        return SkippedArray(name, length)
    cursor.keep(length * _KEPT_ELEMENT_BYTES)
    return [cursor.scalar(kind) for _ in range(length)]


def _as_scalar(kind: int, value: int | float) -> Scalar:
    if kind == _BOOL:
        return bool(value)
    if kind == _FLOAT32:
        return _shortest_float32(value)
    return value


def _shortest_float32(value: float) -> float:
    """The float with the fewest digits that is this float32: 1e-05 rather than 9.999999747378752e-06."""
    layout = _SCALARS[_FLOAT32][1]
    for digits in (6, 7, 8):
        candidate = float(f"{value:.{digits}g}")
        try:
            if layout.unpack(layout.pack(candidate))[0] == value:
                return candidate
        except OverflowError:  # rounded up past the largest float32
            continue
    return value


def _alignment(values: dict[str, GgufValue]) -> int:
    alignment = values.get("general.alignment", DEFAULT_ALIGNMENT)
    if isinstance(alignment, bool) or not isinstance(alignment, int):
        raise HeaderError("has an alignment that isn't a number")
    if not 1 <= alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
        raise HeaderError(f"has the alignment {alignment}, not a power of two up to {MAX_ALIGNMENT}")
    return alignment


def _read_tensor(cursor: _Cursor) -> GgufTensor:
    name = cursor.text(MAX_TENSOR_NAME_BYTES, "tensor name")
    cursor.keep(8 * _KEPT_ELEMENT_BYTES)
    dimensions = cursor.number(_U32)
    if not 1 <= dimensions <= MAX_DIMENSIONS:
        raise HeaderError(f"has the tensor {name!r} with {dimensions} dimensions, not 1 to {MAX_DIMENSIONS}")
    shape = tuple(cursor.number(_U64) for _ in range(dimensions))
    kind = cursor.number(_U32)
    offset = cursor.number(_U64)
    elements = 1
    for length in shape:
        elements *= length
    if not 1 <= elements <= MAX_ELEMENTS:
        raise HeaderError(f"has the tensor {name!r} with {elements} elements")
    type_name, size_bytes = _tensor_size(name, kind, shape, elements)
    return GgufTensor(name=name, type=type_name, shape=shape, offset=offset, size_bytes=size_bytes)


def _tensor_size(name: str, kind: int, shape: tuple[int, ...], elements: int) -> tuple[str, int | None]:
    known = TENSOR_TYPES.get(kind)
    if known is None:
        return f"type {kind}", None
    type_name, block_elements, block_bytes = known
    if shape[0] % block_elements:
        raise HeaderError(f"has the tensor {name!r} with rows of {shape[0]} elements, which {type_name} can't hold")
    return type_name, elements // block_elements * block_bytes


def _check_tensors(tensors: tuple[GgufTensor, ...], data_offset: int, size_bytes: int, alignment: int) -> None:
    if len({tensor.name for tensor in tensors}) != len(tensors):
        raise HeaderError("has two tensors of the same name")
    for tensor in tensors:
        if tensor.offset % alignment:
            raise HeaderError(f"has the tensor {tensor.name!r} at an offset that isn't aligned")
        end = data_offset + tensor.offset + (tensor.size_bytes or 0)
        if end > size_bytes:
            raise HeaderError(f"ends at byte {size_bytes}, but its tensor {tensor.name!r} needs {end}: it is cut short")


def _cut_short(needed: int, size_bytes: int) -> HeaderError:
    return HeaderError(f"ends at byte {size_bytes}, but its header needs {min(needed, 1 << 63)}: it is cut short")
