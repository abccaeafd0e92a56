"""A BERT out of a GGUF file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np

from oprel_driver_numpy_bert.bert import Bert, Floats
from oprel_driver_numpy_bert.words import WordPieces

__all__ = ["read_model"]

_MEAN = 1


def read_model(path: Path) -> tuple[Bert, WordPieces]:
    """Takes about a second. Raises in many ways for a file that isn't as it should be."""
    reader = gguf.GGUFReader(path)
    keys = {name: field for name, field in reader.fields.items() if not name.startswith("general.")}

    def value(name: str, default: Any = None) -> Any:
        field = keys.get(name)
        if field is None and default is None:
            raise ValueError(f"the file has no {name}")
        return default if field is None else field.contents()

    bert = Bert(
        weights={tensor.name: _floats(tensor) for tensor in reader.tensors},
        layers=value("bert.block_count"),
        heads=value("bert.attention.head_count"),
        epsilon=value("bert.attention.layer_norm_epsilon"),
        pools_mean=value("bert.pooling_type", _MEAN) == _MEAN,
    )
    words = WordPieces(
        value("tokenizer.ggml.tokens"),
        begin=value("tokenizer.ggml.cls_token_id", value("tokenizer.ggml.bos_token_id", 101)),
        end=value("tokenizer.ggml.seperator_token_id", 102),  # the key is misspelt in the format itself
        unknown=value("tokenizer.ggml.unknown_token_id", 100),
        lowercase=value("tokenizer.ggml.normalizer.lowercase", True),
    )
    return bert, words


def _floats(tensor: Any) -> Floats:
    """Unpacked, and copied: the file isn't needed any more."""
    values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    return np.array(values, dtype=np.float32)
