"""The GGUF reader: right figures for real files, and only ever a result or our error for anything else."""

from __future__ import annotations

import contextlib
import os
import struct
import time
import tracemalloc
from pathlib import Path

import gguf
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.tiny_gguf import CHAT_VALUES, EMBED_VALUES, gguf_bytes, write_tiny_gguf

from oprel.errors import ModelDamagedError, OprelError, StoreError
from oprel.store.gguf import GgufMetadata, SkippedArray, parameter_size, read_gguf
from oprel.store.gguf_types import FILE_TYPES, TENSOR_TYPES

WHOLE = gguf_bytes()


def written(folder: Path, data: bytes) -> Path:
    path = folder / "model.gguf"
    path.write_bytes(data)
    return path


def test_a_real_chat_model(smollm2_path: Path) -> None:
    metadata = read_gguf(smollm2_path)
    assert metadata.architecture == "llama"
    assert parameter_size(metadata.parameter_count) == "134.52M"
    assert metadata.quantization == "Q4_1"
    assert (metadata.context_tokens, metadata.embedding_length, metadata.layers) == (8192, 576, 30)
    assert metadata.kv_bytes_per_token == 23040
    assert metadata.pooling is None
    assert not metadata.is_embedding
    assert metadata.chat_template is not None
    assert metadata.values["tokenizer.ggml.tokens"] == SkippedArray("string", 49152)
    assert metadata.values["llama.attention.layer_norm_rms_epsilon"] == 1e-05


def test_a_real_embedding_model(embed_path: Path) -> None:
    metadata = read_gguf(embed_path)
    assert metadata.is_embedding
    assert metadata.pooling == "mean"
    assert metadata.kv_bytes_per_token == 0
    assert metadata.chat_template is None
    assert (metadata.context_tokens, metadata.embedding_length) == (512, 384)


def test_it_agrees_with_the_reference_reader(embed_path: Path) -> None:
    """Of a small vocabulary: the reference takes seconds for a large one."""
    reference = gguf.GGUFReader(embed_path)
    metadata = read_gguf(embed_path, array_limit=1 << 20)
    assert {tensor.name: tensor.shape for tensor in metadata.tensors} == {
        tensor.name: tuple(int(length) for length in tensor.shape) for tensor in reference.tensors
    }
    assert [metadata.data_offset + t.offset for t in metadata.tensors] == [t.data_offset for t in reference.tensors]
    assert [t.size_bytes for t in metadata.tensors] == [t.n_bytes for t in reference.tensors]
    for key, field in reference.fields.items():
        if key.startswith("GGUF."):
            continue
        value, expected = metadata.values[key], field.contents()
        is_exact = isinstance(expected, str) or (isinstance(expected, list) and not isinstance(expected[0], float))
        assert value == (expected if is_exact else pytest.approx(expected, abs=1e-6)), key


def test_large_vocabularies_are_skipped_quickly(smollm2_path: Path) -> None:
    begin = time.perf_counter()
    read_gguf(smollm2_path)
    assert time.perf_counter() - begin < 1.0  # 0.02 s on a quiet machine


def test_the_type_tables_agree_with_the_published_ones() -> None:
    sizes = {int(kind): (kind.name, *size) for kind, size in gguf.constants.GGML_QUANT_SIZES.items()}
    assert {kind: row for kind, row in TENSOR_TYPES.items() if kind in sizes} == {
        kind: row for kind, row in sizes.items() if kind in TENSOR_TYPES
    }
    names = {int(kind): kind.name.removeprefix("MOSTLY_").removeprefix("ALL_") for kind in gguf.LlamaFileType}
    assert {number: names[number] for number in FILE_TYPES if number in names} == {
        number: name for number, name in FILE_TYPES.items() if number in names
    }


def test_metadata_survives_the_cache_format(tmp_path: Path) -> None:
    metadata = read_gguf(write_tiny_gguf(tmp_path / "m.gguf", salt="x", llama__scale=0.1, llama__whole=2.0))
    copy = msgspec.msgpack.decode(msgspec.msgpack.encode(metadata), type=GgufMetadata)
    assert copy == metadata
    assert isinstance(copy.values["llama.whole"], float)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (CHAT_VALUES, 2 * 2 * 2 * 16 * 2),
        (EMBED_VALUES, 0),
        ({**CHAT_VALUES, "llama.attention.head_count_kv": [2, 0]}, 2 * 2 * 16 * 2),
        ({**CHAT_VALUES, "llama.attention.key_length": 32, "llama.attention.value_length": 8}, 2 * 2 * 40 * 2),
        ({**CHAT_VALUES, "llama.attention.kv_lora_rank": 512, "llama.rope.dimension_count": 64}, 2 * 576 * 2),
        ({key: value for key, value in CHAT_VALUES.items() if key != "llama.block_count"}, None),
        ({**CHAT_VALUES, "llama.attention.head_count": 0}, None),
    ],
    ids=["grouped heads", "encoder", "a list by layer", "own head lengths", "latent", "no layers", "no heads"],
)
def test_what_a_token_of_context_costs(tmp_path: Path, values: dict[str, object], expected: int | None) -> None:
    assert read_gguf(write_tiny_gguf(tmp_path / "m.gguf", values)).kv_bytes_per_token == expected


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (7, "7"), (137_000, "137K"), (22_000_000, "22M"), (268_098_176, "268.10M"), (134_515_008, "134.52M"),
        (7_241_732_096, "7.2B"), (8_000_000_000, "8B"), (70_553_706_496, "70.6B"),
    ],
)  # fmt: skip
def test_parameter_counts_read_as_in_ollama(count: int, text: str) -> None:
    assert parameter_size(count) == text


def test_a_file_type_that_was_guessed_keeps_its_name(tmp_path: Path) -> None:
    assert read_gguf(write_tiny_gguf(tmp_path / "m.gguf", general__file_type=1024 + 15)).quantization == "Q4_K_M"
    assert read_gguf(write_tiny_gguf(tmp_path / "n.gguf", general__file_type=999)).quantization == "unknown"


def _patched(offset: int, layout: str, value: int) -> bytes:
    data = bytearray(WHOLE)
    struct.pack_into(layout, data, offset, value)
    return bytes(data)


def _one_tensor(**changes: object) -> bytes:
    shape = changes.get("shape", (32,))
    kind = changes.get("kind", 0)
    return gguf_bytes({"general.architecture": "x"}, [("t", shape, kind, b"\0" * 128)])  # type: ignore[list-item]


BROKEN = {
    "empty": (b"", "doesn't begin with 'GGUF'"),
    "not gguf": (b"PK\x03\x04" * 10, "doesn't begin with 'GGUF'"),
    "only the magic": (b"GGUF", "cut short"),
    "version 1": (_patched(4, "<I", 1), "version 1"),
    "big-endian": (_patched(4, ">I", 3), "big-endian"),
    "tensor count": (_patched(8, "<Q", 1 << 62), "tensors"),
    "key count": (_patched(16, "<Q", 1 << 62), "keys"),
    "key length": (_patched(24, "<Q", 1 << 62), "key of"),
    "a string beyond the file": (gguf_bytes({"a": "b"})[:33] + struct.pack("<IQ", 8, 1 << 20), "cut short"),
    "a value type that isn't": (gguf_bytes({"a": 1})[:33] + struct.pack("<IQ", 99, 1), "value type 99"),
    "an array in an array": (gguf_bytes({"a": 1})[:33] + struct.pack("<IIQ", 9, 9, 1) + bytes(99), "isn't supported"),
    "an endless array": (gguf_bytes({"a": 1})[:33] + struct.pack("<IIQ", 9, 4, 1 << 61) + bytes(99), "can hold"),
    "endless strings": (gguf_bytes({"a": 1})[:33] + struct.pack("<IIQ", 9, 8, 1 << 61) + bytes(99), "can hold"),
    "the same key twice": (b"GGUF" + struct.pack("<IQQ", 3, 0, 2) + gguf_bytes({"a": 1}, [])[24:41] * 2, "twice"),
    "alignment 0": (gguf_bytes({"general.alignment": 0}), "alignment"),
    "alignment 2^31": (gguf_bytes({"general.alignment": 1 << 31}), "alignment"),
    "alignment 24": (gguf_bytes({"general.alignment": 24}), "alignment"),
    "alignment as text": (gguf_bytes({"general.alignment": "32"}), "alignment"),
    "five dimensions": (_one_tensor(shape=(1, 1, 1, 1, 1)), "dimensions"),
    "no dimensions": (_one_tensor(shape=()), "dimensions"),
    "a product that overflows": (_one_tensor(shape=(1 << 33, 1 << 33)), "elements"),
    "an empty tensor": (_one_tensor(shape=(32, 0)), "elements"),
    "rows that don't fit blocks": (_one_tensor(shape=(33,), kind=8), "rows of 33"),
    "a tensor beyond the file": (_one_tensor(shape=(1 << 20,)), "cut short"),
    "the same tensor twice": (gguf_bytes({}, [("t", (1,), 0, b"1234")] * 2), "same name"),
    "the last byte is missing": (WHOLE[:-1], "cut short"),
}


@pytest.mark.parametrize(("data", "why"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_file_is_told_in_one_sentence(tmp_path: Path, data: bytes, why: str) -> None:
    with pytest.raises(ModelDamagedError, match=why) as failure:
        read_gguf(written(tmp_path, data), model="mine:latest")
    assert failure.value.model == "mine:latest"
    assert "\n" not in failure.value.message


@pytest.mark.parametrize("kind", ["missing", "folder", "pipe"])
def test_what_is_not_a_file_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "model.gguf"
    if kind == "folder":
        path.mkdir()
    if kind == "pipe":
        os.mkfifo(path)
    with pytest.raises(StoreError):
        read_gguf(path)


def test_a_tensor_type_from_the_future_is_accepted(tmp_path: Path) -> None:
    (tensor,) = read_gguf(written(tmp_path, _one_tensor(kind=77))).tensors
    assert (tensor.type, tensor.size_bytes) == ("type 77", None)


def test_bytes_that_are_not_utf8_do_not_matter(tmp_path: Path) -> None:
    data = gguf_bytes({"general.name": "xx"}).replace(b"xx", b"\xff\xfe")
    assert read_gguf(written(tmp_path, data)).text("general.name") == "��"


def test_every_truncation_is_noticed(tmp_path: Path) -> None:
    small = gguf_bytes({"general.architecture": "x", "x.list": ["a", "b"]})
    for length in range(len(small)):
        with pytest.raises(ModelDamagedError):
            read_gguf(written(tmp_path, small[:length]))


def test_a_hostile_header_costs_little_memory(tmp_path: Path) -> None:
    """Claims of gigabytes are refused before anything is allocated."""
    claims = [
        _patched(8, "<Q", 1 << 16),
        _patched(16, "<Q", 1 << 12),
        gguf_bytes({"a": 1})[:33] + struct.pack("<IIQ", 9, 8, 1 << 18) + bytes(2 << 20),
        gguf_bytes({"a": 1})[:33] + struct.pack("<IIQ", 9, 0, 1 << 40) + bytes(1 << 20),
    ]
    for data in claims:
        path = written(tmp_path, data)
        tracemalloc.start()
        with contextlib.suppress(ModelDamagedError):
            read_gguf(path)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 4 << 20


@settings(max_examples=400, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.lists(
        st.tuples(st.integers(0, len(WHOLE) - 1), st.one_of(st.integers(0, 255), st.sampled_from([0, 1, 0x7F, 0xFF]))),
        max_size=8,
    ),
    length=st.integers(0, len(WHOLE)) | st.just(len(WHOLE)),
)
def test_any_mutation_gives_a_result_or_our_error(tmp_path: Path, changes: list[tuple[int, int]], length: int) -> None:
    data = bytearray(WHOLE)
    for position, value in changes:
        data[position] = value
    _read_anything(written(tmp_path, bytes(data[:length])))


@settings(max_examples=300, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    tail=st.lists(
        st.one_of(
            st.binary(max_size=24),
            st.integers(0, (1 << 64) - 1).map(lambda n: struct.pack("<Q", n)),
            st.integers(0, 14).map(lambda n: struct.pack("<I", n)),
        ),
        max_size=30,
    )
)
def test_any_bytes_after_the_counts_give_a_result_or_our_error(tmp_path: Path, tail: list[bytes]) -> None:
    _read_anything(written(tmp_path, b"GGUF" + struct.pack("<IQQ", 3, 1, 2) + b"".join(tail)))


def _read_anything(path: Path) -> None:
    try:
        metadata = read_gguf(path)
    except OprelError:
        return
    _ = (metadata.kv_bytes_per_token, metadata.pooling, metadata.quantization, metadata.parameter_count)
    _ = (metadata.context_tokens, metadata.chat_template, metadata.is_embedding, metadata.kind)
    msgspec.msgpack.encode(metadata)
