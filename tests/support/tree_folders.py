"""Small folders of safetensors, as a model's publisher would lay them out."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

__all__ = ["CONFIG", "write_folder", "write_safetensors"]

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "torch_dtype": "bfloat16",
}
TOOLS_TEMPLATE = "{% for tool in tools %}{{ tool }}{% endfor %}<tool_call>{{ messages }}"


def write_safetensors(path: Path, tensors: dict[str, tuple[str, tuple[int, ...]]] | None = None) -> Path:
    """Zeros of the types and shapes given."""
    sizes = {"BF16": 2, "F16": 2, "F32": 4, "I32": 4, "I8": 1}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape) in (tensors or {"model.weight": ("BF16", (16, 64))}).items():
        size = sizes[dtype]
        for length in shape:
            size *= length
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    encoded = json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + bytes(end))
    return path


def write_folder(folder: Path, *, template: str | None = TOOLS_TEMPLATE, **config: Any) -> Path:
    """A whole model; `config` changes its config.json (None removes a key)."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = {key: value for key, value in {**CONFIG, **config}.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(kept))
    (folder / "tokenizer.json").write_text("{}")
    tokenizer = {"model_max_length": 2048} | ({"chat_template": template} if template else {})
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    write_safetensors(folder / "model.safetensors")
    return folder
