"""Small GGUF files, written byte by byte, so that tests can have any model's metadata and break any length."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

__all__ = ["CHAT_VALUES", "EMBED_VALUES", "TinyTensor", "gguf_bytes", "write_tiny_gguf"]

TinyTensor = tuple[str, tuple[int, ...], int, bytes]
"""Name, shape, type number, data."""

CHAT_VALUES: dict[str, object] = {
    "general.architecture": "llama",
    "general.type": "model",
    "general.file_type": 3,
    "llama.block_count": 2,
    "llama.context_length": 2048,
    "llama.embedding_length": 64,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "tokenizer.ggml.tokens": [f"t{number}" for number in range(2000)],
    "tokenizer.chat_template": "{% for m in messages %}{{ m['content'] }}{% endfor %}",
}
EMBED_VALUES: dict[str, object] = {
    "general.architecture": "bert",
    "general.file_type": 7,
    "bert.block_count": 2,
    "bert.context_length": 512,
    "bert.embedding_length": 64,
    "bert.attention.head_count": 4,
    "bert.attention.causal": False,
    "bert.pooling_type": 1,
}
_TENSORS: tuple[TinyTensor, ...] = (
    ("token_embd.weight", (32, 4), 0, bytes(range(256)) * 2),
    ("blk.0.attn_q.weight", (32, 2), 8, b"\x01" * 68),
)


def write_tiny_gguf(path: Path, values: Mapping[str, object] = CHAT_VALUES, *, salt: str = "", **more: object) -> Path:
    """`salt` makes files differ; `more` adds keys, with `__` for a dot."""
    extra = {key.replace("__", "."): value for key, value in more.items()}
    content = {**values, **extra}
    if salt:
        content["general.name"] = salt
    path.write_bytes(gguf_bytes(content))
    return path


def gguf_bytes(
    values: Mapping[str, object] = CHAT_VALUES,
    tensors: Sequence[TinyTensor] = _TENSORS,
    *,
    version: int = 3,
    alignment: int = 32,
) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(values))
    for key, value in values.items():
        head += _text(key) + _value(value)
    data = b""
    for name, shape, kind, content in tensors:
        data += bytes(-len(data) % alignment)
        head += _text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, len(data))
        data += content
    return head + bytes(-len(head) % alignment) + data


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(value: object) -> bytes:
    kind, data = _typed(value)
    if isinstance(value, list):
        return struct.pack("<I", 9) + data
    return struct.pack("<I", kind) + data


def _typed(value: object) -> tuple[int, bytes]:
    if isinstance(value, bool):
        return 7, struct.pack("<B", value)
    if isinstance(value, int):
        return (4, struct.pack("<I", value)) if 0 <= value < 1 << 32 else (11, struct.pack("<q", value))
    if isinstance(value, float):
        return 6, struct.pack("<f", value)
    if isinstance(value, str):
        return 8, _text(value)
    if isinstance(value, list):
        typed = [_typed(item) for item in value]
        kind = typed[0][0] if typed else 4
        return 9, struct.pack("<IQ", kind, len(value)) + b"".join(data for _, data in typed)
    raise TypeError(f"no GGUF value for {value!r}")
