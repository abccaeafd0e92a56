"""What a GGUF file says of itself: keys, tensors, and the figures that planning and listings need."""

from __future__ import annotations

import os
from pathlib import Path

from msgspec import Struct

from oprel.errors import ModelDamagedError, StoreError
from oprel.schema import Pooling
from oprel.store.gguf_reader import MAGIC, GgufTensor, GgufValue, HeaderError, SkippedArray, read_header
from oprel.store.gguf_types import FILE_TYPES, GUESSED_FILE_TYPE, POOLINGS, UNKNOWN_QUANTIZATION

__all__ = [
    "GgufMetadata", "GgufTensor", "GgufValue", "SkippedArray", "check_beginning", "parameter_size", "read_gguf",
]  # fmt: skip

ARRAY_LIMIT = 1024
_F16_BYTES = 2
_MAX_FIGURE = 1 << 40  # anything larger in a header is nonsense, and is treated as absent


class GgufMetadata(Struct, frozen=True):
    """`values` hold short arrays as lists and long ones (vocabularies) as `SkippedArray`."""

    version: int
    size_bytes: int
    data_offset: int
    values: dict[str, GgufValue]
    tensors: tuple[GgufTensor, ...]

    @property
    def architecture(self) -> str:
        return self.text("general.architecture") or ""

    @property
    def kind(self) -> str:
        """`model`, `adapter`, `mmproj`, `imatrix`; `model` where the file doesn't say."""
        if self.architecture == "clip":
            return "mmproj"
        return self.text("general.type") or "model"

    @property
    def parameter_count(self) -> int:
        total = 0
        for tensor in self.tensors:
            elements = 1
            for length in tensor.shape:
                elements *= length
            total += elements
        return total

    @property
    def quantization(self) -> str:
        """The name of the file type as Ollama shows it; `unknown` where the file has none."""
        number = self.number("general.file_type")
        if number is None:
            return UNKNOWN_QUANTIZATION
        return FILE_TYPES.get(number & ~GUESSED_FILE_TYPE, UNKNOWN_QUANTIZATION)

    @property
    def context_tokens(self) -> int | None:
        return self.own_number("context_length")

    @property
    def embedding_length(self) -> int | None:
        return self.own_number("embedding_length")

    @property
    def layers(self) -> int | None:
        return self.own_number("block_count")

    @property
    def chat_template(self) -> str | None:
        return self.text("tokenizer.chat_template")

    @property
    def pooling(self) -> Pooling | None:
        number = self.own_number("pooling_type")
        return None if number is None else POOLINGS.get(number)

    @property
    def is_causal(self) -> bool:
        return self.values.get(f"{self.architecture}.attention.causal") is not False

    @property
    def is_embedding(self) -> bool:
        """It has a pooling (Ollama's sign), or it is an encoder, which can't do anything else."""
        return f"{self.architecture}.pooling_type" in self.values or not self.is_causal

    @property
    def has_vision(self) -> bool:
        return f"{self.architecture}.vision.block_count" in self.values

    @property
    def has_audio(self) -> bool:
        return f"{self.architecture}.audio.block_count" in self.values

    @property
    def kv_bytes_per_token(self) -> int | None:
        """One token of context with an f16 cache, without what a sliding window saves; 0 for an encoder, which
        keeps none; None where the file doesn't say enough."""
        if not self.is_causal:
            return 0
        layers = self.layers
        if layers is None:
            return None
        rank = self.own_number("attention.kv_lora_rank")
        if rank is not None:  # latent attention keeps one compressed vector and the rotary part
            return layers * (rank + (self.own_number("rope.dimension_count") or 0)) * _F16_BYTES
        heads = self._kv_heads(layers)
        key_length, value_length = self._head_lengths()
        if heads is None or key_length is None or value_length is None:
            return None
        return heads * (key_length + value_length) * _F16_BYTES

    def text(self, key: str) -> str | None:
        value = self.values.get(key)
        return value if isinstance(value, str) else None

    def number(self, key: str) -> int | None:
        """A whole number that makes sense as a size or a count; else None."""
        value = self.values.get(key)
        if isinstance(value, bool) or not isinstance(value, int):
            return None
        return value if 0 <= value <= _MAX_FIGURE else None

    def own_number(self, key: str) -> int | None:
        """`number` of a key below the architecture's name."""
        return self.number(f"{self.architecture}.{key}")

    def _kv_heads(self, layers: int) -> int | None:
        """Summed over layers; hybrid models give one figure for each layer, 0 where there is no attention."""
        each = self.values.get(f"{self.architecture}.attention.head_count_kv")
        if isinstance(each, list):
            return sum(heads for heads in each if isinstance(heads, int) and 0 <= heads <= _MAX_FIGURE)
        heads = self.own_number("attention.head_count_kv")
        if heads is None:
            heads = self.own_number("attention.head_count")
        return None if heads is None else heads * layers

    def _head_lengths(self) -> tuple[int | None, int | None]:
        width, heads = self.embedding_length, self.own_number("attention.head_count")
        usual = width // heads if width is not None and heads else None
        key_length = self.own_number("attention.key_length")
        value_length = self.own_number("attention.value_length")
        return (usual if key_length is None else key_length, usual if value_length is None else value_length)


def read_gguf(path: Path, *, model: str = "", array_limit: int = ARRAY_LIMIT) -> GgufMetadata:
    """Read and check the header of the file at `path`, and that all its tensors lie within the file.

    `model` is the name that errors carry. Raises ModelDamagedError for a file that isn't a whole GGUF file, StoreError
    for one that can't be read. Takes tens of milliseconds for large vocabularies: call it in a thread.
    """
    shown = model or path.name
    try:
        if not path.is_file():  # opening a pipe or a device could wait for ever
            raise StoreError(f"The file of {shown!r} can't be read: it isn't there, or isn't a regular file.")
        with path.open("rb", buffering=0) as handle:
            size_bytes = os.fstat(handle.fileno()).st_size
            header = read_header(handle, size_bytes, array_limit=array_limit)
    except HeaderError as problem:
        raise ModelDamagedError(f"The file of {shown!r} {problem}.", model=shown) from None
    except OSError as problem:
        raise StoreError(f"The file of {shown!r} can't be read: {problem.strerror}.") from problem
    return GgufMetadata(
        version=header.version,
        size_bytes=size_bytes,
        data_offset=header.data_offset,
        values=header.values,
        tensors=header.tensors,
    )


def check_beginning(path: Path, *, model: str) -> None:
    """As little as a listing of many models can afford: that the file begins as a GGUF file does. Raises as
    `read_gguf`."""
    try:
        with path.open("rb", buffering=0) as handle:
            if handle.read(len(MAGIC)) == MAGIC:
                return
    except OSError as problem:
        raise StoreError(f"The file of {model!r} can't be read: {problem.strerror}.") from problem
    raise ModelDamagedError(f"The file of {model!r} doesn't begin with 'GGUF'.", model=model)


def parameter_size(count: int) -> str:
    """A parameter count as Ollama writes it: `7.2B`, `8B`, `134.52M`, `137K`."""
    for unit, letter, digits in ((10**9, "B", 1), (10**6, "M", 2)):
        if count >= unit:
            return f"{count // unit}{letter}" if count % unit == 0 else f"{count / unit:.{digits}f}{letter}"
    return f"{count / 1000:.0f}K" if count >= 1000 else str(count)
