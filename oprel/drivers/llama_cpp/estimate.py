"""How much memory llama.cpp will take for a model, from its metadata alone; corrected by what the engine tells."""

from __future__ import annotations

import math
from dataclasses import dataclass

from oprel.schema import LoadOptions, Model

__all__ = ["CACHE_TYPES", "PROCESS_BYTES", "Estimate"]

_MIB = 1024 * 1024

# Bytes a value of the cache takes, against f16's two: blocks of 32 values with an f16 scale.
CACHE_TYPES = {"f16": 1.0, "q8_0": 34 / 64, "q4_0": 18 / 64}

# Program, tokenizer and HTTP server, beside all buffers.
PROCESS_BYTES = 64 * _MIB
# Floats of scratch per token of a batch, in widths of the model: measured 20 on small llamas, more with experts.
_SCRATCH_WIDTHS = 24
_SCRATCH_BYTES = 16 * _MIB
# Where a file says nothing of its shape: those of an 8B model, so that the estimate errs on the safe side.
_DEFAULT_WIDTH = 4096
_DEFAULT_KV_BYTES = 128 * 1024


@dataclass(frozen=True, slots=True)
class Estimate:
    """Bytes for one model with one set of load options; `layers` counts the output layer too, as llama.cpp does."""

    weights_bytes: int
    kv_bytes_per_token: float
    width: int
    layers: int

    @classmethod
    def of(cls, model: Model, options: LoadOptions) -> Estimate:
        width = model.embedding_length or _DEFAULT_WIDTH
        kv = model.kv_bytes_per_token
        if kv is None:
            # Every head with keys and values of its own is the most that a model can have.
            kv = model.layers * width * 4 if model.layers and model.embedding_length else _DEFAULT_KV_BYTES
        return cls(
            weights_bytes=sum(file.size_bytes for file in model.files),
            kv_bytes_per_token=kv * CACHE_TYPES[options.kv_cache_type or "f16"],
            width=width,
            layers=(model.layers or 32) + 1,
        )

    def scratch_bytes(self, batch_tokens: int) -> int:
        return _SCRATCH_BYTES + 4 * _SCRATCH_WIDTHS * self.width * batch_tokens

    def on_gpu(self, gpu_layers: int, *, tokens: int, batch_tokens: int) -> int:
        """Bytes on all GPUs together, with `tokens` of context in all slots."""
        if gpu_layers <= 0:
            return 0
        weights = self.weights_bytes * min(gpu_layers, self.layers) / self.layers
        cache = self._cache_bytes(tokens) * min(gpu_layers, self.layers - 1) / max(1, self.layers - 1)
        return math.ceil(weights + cache) + self.scratch_bytes(batch_tokens)

    def on_cpu(self, gpu_layers: int, *, tokens: int, batch_tokens: int) -> int:
        """Bytes in RAM."""
        left = max(0, self.layers - gpu_layers)
        weights = self.weights_bytes * left / self.layers
        cache = self._cache_bytes(tokens) * max(0, left - 1) / max(1, self.layers - 1) if gpu_layers > 0 else 0
        whole = self._cache_bytes(tokens) if gpu_layers <= 0 else cache
        return math.ceil(weights + whole) + PROCESS_BYTES + self.scratch_bytes(batch_tokens)

    def _cache_bytes(self, tokens: int) -> float:
        return self.kv_bytes_per_token * tokens
