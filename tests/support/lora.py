"""A LoRA adapter for SmolLM2-135M as a GGUF file, small and strong: its greedy answers are others for certain."""

from __future__ import annotations

from pathlib import Path

__all__ = ["write_lora"]

_LAYERS = 30
_WIDTH = 576
_RANK = 2


def write_lora(path: Path, *, architecture: str = "llama", seed: int = 1, strength: float = 0.6) -> Path:
    """Query projections of every layer get a random update of rank 2; `strength` 0 changes nothing."""
    import numpy as np
    from gguf import GGUFWriter

    random = np.random.default_rng(seed)
    writer = GGUFWriter(str(path), architecture)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(_RANK))
    for layer in range(_LAYERS):
        down = random.standard_normal((_RANK, _WIDTH)).astype(np.float32)
        up = (strength * random.standard_normal((_WIDTH, _RANK))).astype(np.float16)
        writer.add_tensor(f"blk.{layer}.attn_q.weight.lora_a", down)
        writer.add_tensor(f"blk.{layer}.attn_q.weight.lora_b", up)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
