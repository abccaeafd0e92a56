"""A thousand damaged headers: each is read or refused, quickly, and with little memory."""

from __future__ import annotations

import random
import struct
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.tiny_gguf import CHAT_VALUES, gguf_bytes

from oprel.errors import ModelDamagedError
from oprel.store import GgufMetadata, read_gguf

_WHOLE = gguf_bytes({**CHAT_VALUES, "general.alignment": 32})
_HEADER = _WHOLE.index(b"blk.0.attn_q.weight") + 60
_SIZES = (0, 1, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**48, 2**63 - 1, 2**63, 2**64 - 1)
_LIMIT_S = 2.0
_LIMIT_BYTES = 80 << 20


def mutants(kind: str) -> Iterator[bytes]:
    source = random.Random(kind)  # noqa: S311  # the same ones each time
    if kind == "counts":
        yield from (_put(8 + 8 * field, size) for field in (0, 1) for size in _SIZES)
    elif kind == "lengths":
        for _ in range(400):
            yield _put(source.randrange(8, _HEADER - 8), source.choice(_SIZES))
    elif kind == "bytes":
        for _ in range(400):
            data = bytearray(_WHOLE)
            for _ in range(source.randint(1, 8)):
                data[source.randrange(_HEADER)] = source.randrange(256)
            yield bytes(data)
    elif kind == "alignments":
        at = _WHOLE.index(b"general.alignment") + len("general.alignment") + 4
        for size in (0, 3, 4096, 8192, 2**31, 2**32 - 1):
            yield _WHOLE[:at] + struct.pack("<I", size) + _WHOLE[at + 4 :]
    else:
        yield from (_WHOLE[: source.randrange(len(_WHOLE))] for _ in range(200))


def _put(at: int, size: int) -> bytes:
    return _WHOLE[:at] + struct.pack("<Q", size) + _WHOLE[at + 8 :]


@pytest.mark.parametrize("kind", ["counts", "lengths", "bytes", "alignments", "cuts"])
def test_no_mutant_does_harm(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "mutant.gguf"
    refused = count = 0
    tracemalloc.start()
    try:
        for data in mutants(kind):
            count += 1
            path.write_bytes(data)
            tracemalloc.reset_peak()
            began = time.process_time()
            try:
                assert isinstance(read_gguf(path), GgufMetadata)
            except ModelDamagedError:
                refused += 1
            assert time.process_time() - began < _LIMIT_S
            assert tracemalloc.get_traced_memory()[1] < _LIMIT_BYTES
    finally:
        tracemalloc.stop()
    assert refused >= count // 4
