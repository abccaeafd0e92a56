"""How much memory vLLM takes for a model, from its metadata alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

from oprel.drivers.vllm.options import VllmOptions
from oprel.schema import Model

__all__ = ["GIB", "PROCESS_BYTES", "Needs"]

GIB = 1024**3

# Server, engine and worker each import PyTorch: measured 2.0 GiB together with 0.32 on a CPU, model and cache aside.
PROCESS_BYTES = 2 * GIB
# PyTorch's and the driver's own share of a GPU, and scratch for a batch.
_GPU_OVERHEAD_BYTES = 3 * GIB // 2
# Where a folder says nothing of its shape: those of an 8B model, so that the estimate errs on the safe side.
_DEFAULT_KV_BYTES = 128 * 1024
_SMALL_CACHES = ("fp8", "int8", "nvfp4", "int4", "turboquant", "ultraquant")


@dataclass(frozen=True, slots=True)
class Needs:
    """`kv_bytes_per_token` 0: an encoder, which keeps nothing between tokens."""

    weights_bytes: int
    kv_bytes_per_token: float

    @classmethod
    def of(cls, model: Model, options: VllmOptions, *, dtype: str) -> Needs:
        weights = sum(file.size_bytes for file in model.files if file.role == "weights")
        if dtype == "float32" and model.quantization in ("BF16", "F16"):
            weights *= 2
        kv = float(model.kv_bytes_per_token or _DEFAULT_KV_BYTES)
        if dtype == "float32":
            kv *= 2
        if (options.kv_cache_dtype or "").startswith(_SMALL_CACHES):
            kv /= 2
        return cls(weights, 0.0 if _is_encoder(model) else kv)

    def cache_bytes(self, tokens: int) -> int:
        return math.ceil(self.kv_bytes_per_token * tokens)

    def tokens_in(self, size_bytes: float) -> int:
        """How much context a cache of that size holds."""
        if self.kv_bytes_per_token == 0:
            return 1 << 40
        return max(0, int(size_bytes / self.kv_bytes_per_token))

    def on_each_gpu(self, ranks: int, *, offload_bytes: int = 0) -> int:
        """Without any cache."""
        return max(0, self.weights_bytes - offload_bytes * ranks) // ranks + _GPU_OVERHEAD_BYTES


def _is_encoder(model: Model) -> bool:
    name = model.architecture.lower()
    return model.is_embedding and any(kind in name for kind in ("bert", "mpnet", "gte", "xlm"))
