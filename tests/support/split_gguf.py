"""Split a GGUF file as `llama-gguf-split` does: the first part has the model's metadata, each part some tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np

__all__ = ["split_gguf"]


def split_gguf(
    source: Path, folder: Path, *, parts: int, stem: str = "model", tensors_in_first: bool = True
) -> list[Path]:
    """The parts, in order, named `STEM-00001-of-0000N.gguf`; without `tensors_in_first` the first has only metadata."""
    reader = gguf.GGUFReader(source)
    tensors = list(reader.tensors)
    groups = _groups(tensors, parts if tensors_in_first else parts - 1)
    if not tensors_in_first:
        groups = [[], *groups]
    paths = []
    for number, group in enumerate(groups):
        path = folder / f"{stem}-{number + 1:05}-of-{parts:05}.gguf"
        _write(path, reader, group, number=number, count=parts, tensors=len(tensors))
        paths.append(path)
    return paths


def _groups(tensors: list[Any], count: int) -> list[list[Any]]:
    size = -(-len(tensors) // count)
    return [tensors[at : at + size] for at in range(0, len(tensors), size)]


def _write(path: Path, reader: gguf.GGUFReader, group: list[Any], *, number: int, count: int, tensors: int) -> None:
    writer = gguf.GGUFWriter(path, arch="", use_temp_file=False)
    writer.kv_data[0].clear()  # the architecture is copied, and only into the first part
    if number == 0:
        for field in reader.fields.values():
            if not field.name.startswith("GGUF."):
                kind = field.types[0]
                inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
                writer.add_key_value(field.name, field.contents(), kind, inner)
    writer.add_uint16("split.no", number)
    writer.add_uint16("split.count", count)
    writer.add_int32("split.tensors.count", tensors)
    for tensor in group:
        writer.add_tensor(tensor.name, np.asarray(tensor.data), raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
