"""Whatever bytes a wheel has: it is read, or refused with a sentence."""

from __future__ import annotations

import io
import zipfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.package_index import make_wheel

from oprel.errors import SourceError
from oprel.sources.wheel import Wheel
from oprel.store import Digest, PackageReference

MEMBERS = {
    "data/m.gguf": b"GGUF" * 50,
    "data/n.gguf.part01": b"x" * 30,
    "SHA256SUMS": b"a" * 64 + b"  m.gguf\n",
    "!x-1.0.dist-info/licenses/LICENSE": b"MIT",
}
WHEELS = [
    make_wheel("x", MEMBERS, requires=("x-part1==1.0",), compression=kind)
    for kind in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
]


def read_all(data: bytes) -> int:
    with Wheel.opened(io.BytesIO(data), "x.whl") as wheel:
        found = sum(len(block) for part in (*wheel.ggufs, *wheel.parts) for block in wheel.blocks(part))
        _ = (wheel.checksums, wheel.licenses, wheel.pinned)
        return found


@pytest.mark.parametrize("data", WHEELS, ids=["stored", "deflated"])
def test_what_is_in_a_wheel(data: bytes) -> None:
    with Wheel.opened(io.BytesIO(data), "x.whl") as wheel:
        assert [(part.file, part.number, part.size_bytes) for part in wheel.ggufs] == [("m.gguf", None, 200)]
        assert [(part.file, part.number, part.size_bytes) for part in wheel.parts] == [("n.gguf", 1, 30)]
        assert wheel.checksums == {"m.gguf": Digest("a" * 64)}
        assert wheel.licenses == ("MIT",)
        assert wheel.pinned == (PackageReference("x-part1", "1.0"),)
        assert b"".join(wheel.blocks(wheel.ggufs[0])) == b"GGUF" * 50


@pytest.mark.parametrize("kind", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_ways_of_packing_are_refused(kind: int) -> None:
    with pytest.raises(SourceError, match="packed in a way"):
        read_all(make_wheel("x", MEMBERS, compression=kind))


@settings(max_examples=400, deadline=2000)
@given(
    which=st.sampled_from(range(len(WHEELS))),
    changes=st.lists(st.tuples(st.integers(0, 1 << 30), st.integers(0, 255)), max_size=6),
    cut=st.integers(0, 200) | st.just(0),
)
def test_any_mutation_is_read_or_refused(which: int, changes: list[tuple[int, int]], cut: int) -> None:
    data = bytearray(WHEELS[which])
    for position, value in changes:
        data[position % len(data)] = value
    try:
        read_all(bytes(data[: len(data) - cut]))
    except SourceError as failure:
        assert "\n" not in failure.message


@given(st.binary(max_size=400))
def test_any_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(SourceError):
        read_all(data)
