"""How a model is loaded and sampled, by the names that Python programs use."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from oprel.errors import UnsupportedError
from oprel.schema import LoadOptions, Sampling

__all__ = ["Config"]

_OPTION_NAMES = {
    "ctx_size": "num_ctx",
    "batch_size": "num_batch",
    "n_threads": "num_thread",
    "n_gpu_layers": "num_gpu",
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "repeat_penalty": "repeat_penalty",
    "mmap": "use_mmap",
}
# What a request to a server has no words for; a server is told at its start.
_START_ONLY = {"kv_cache_type": "--kv-cache-type", "flash_attention": "use_server=False"}


class Config(BaseModel):
    """None: planned, or the model's own; where nothing else says: temperature 0.7, top_p 0.9, top_k 40,
    repeat_penalty 1.1, an f16 cache, mmap on."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    model_id: str | None = None
    quantization: str | None = None
    max_memory_mb: int | None = None
    ctx_size: int | None = None
    batch_size: int | None = None
    n_threads: int | None = None
    n_gpu_layers: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    repeat_penalty: float | None = None
    kv_cache_type: Literal["f16", "q8_0", "q4_0"] | None = None
    flash_attention: bool | None = None
    mmap: bool | None = None

    def as_options(self) -> dict[str, Any]:
        """A request's `options`. UnsupportedError for what only a server's start can set."""
        for name, instead in _START_ONLY.items():
            if getattr(self, name) is not None:
                raise UnsupportedError(
                    f"{name} can't be set by a request to a server: use {instead}", capability=name, param=name
                )
        return {theirs: value for ours, theirs in _OPTION_NAMES.items() if (value := getattr(self, ours)) is not None}

    def as_load_options(self) -> LoadOptions:
        return LoadOptions(
            context_tokens=self.ctx_size,
            batch_tokens=self.batch_size,
            threads=self.n_threads,
            gpu_layers=self.n_gpu_layers,
            kv_cache_type=self.kv_cache_type,
            flash_attention=self.flash_attention,
            mmap=self.mmap,
        )

    def as_sampling(self) -> Sampling:
        return Sampling(
            temperature=self.temperature, top_p=self.top_p, top_k=self.top_k, repeat_penalty=self.repeat_penalty
        )
