"""A small reranker out of an embedding model: the same encoder, with a head that makes one score of its first vector.

The head says nothing about relevance; it makes scores that differ, so that the way of a ranking can be tested.
"""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

__all__ = ["write_reranker"]

_SKIPPED = ("GGUF.", "general.architecture")


def write_reranker(encoder: Path, target: Path) -> Path:
    """`encoder`: the GGUF file of a BERT."""
    reader = gguf.GGUFReader(encoder)
    writer = gguf.GGUFWriter(target, "bert")
    for field in reader.fields.values():
        if field.name.startswith(_SKIPPED) or field.name == "bert.pooling_type":
            continue
        kind, *inner = field.types
        writer.add_key_value(field.name, field.contents(), kind, sub_type=inner[0] if inner else None)
    writer.add_pooling_type(gguf.PoolingType.RANK)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    width = int(reader.fields["bert.embedding_length"].contents())
    weights = np.random.default_rng(1).normal(size=(1, width)).astype(np.float32)
    writer.add_tensor("cls.weight", np.eye(width, dtype=np.float32))
    writer.add_tensor("cls.bias", np.zeros(width, dtype=np.float32))
    writer.add_tensor("cls.output.weight", weights)
    writer.add_tensor("cls.output.bias", np.zeros(1, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target
