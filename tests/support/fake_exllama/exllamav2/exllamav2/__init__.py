"""A stand-in for exllamav2 0.3.2."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fake_engine import SCRIPT, FakeTokenizer, load_modules, note

time.sleep(SCRIPT["build_s"])
if SCRIPT["import_error"]:
    raise OSError(SCRIPT["import_error"])

__all__ = [
    "ExLlamaV2",
    "ExLlamaV2Cache",
    "ExLlamaV2Cache_Q4",
    "ExLlamaV2Cache_Q6",
    "ExLlamaV2Cache_Q8",
    "ExLlamaV2Config",
    "ExLlamaV2Tokenizer",
]
__version__ = "0.3.2"


class ExLlamaV2Config:
    def __init__(self, model_dir: str | None = None) -> None:
        assert model_dir is not None
        assert (Path(model_dir) / "config.json").exists(), "Can't find " + model_dir
        self.model_dir = model_dir
        self.config = json.loads((Path(model_dir) / "config.json").read_text())
        assert len(self.config["architectures"]) == 1, "Multiple architectures defined in config.json"
        self.max_seq_len = self.config.get("max_position_embeddings", 2048)
        self.vocab_size = 260
        self.eos_token_id = 257
        self.no_flash_attn = False

    def arch_compat_overrides(self, quiet: bool = False, warn_only: bool = False) -> None:
        if SCRIPT["no_flash_attn"]:
            self.no_flash_attn = True


class ExLlamaV2:
    def __init__(self, config: ExLlamaV2Config, lazy_load: bool = False) -> None:
        self.config = config
        self.is_loaded = False

    def load(
        self,
        gpu_split: list[float] | None = None,
        lazy: bool = False,
        stats: bool = False,
        callback: Callable[[int, int], None] | None = None,
        callback_gen: Callable[[int, int], None] | None = None,
        progress: bool = False,
    ) -> None:
        note("load", model=self.config.model_dir, gpu_split=gpu_split, max_seq_len=self.config.max_seq_len)
        load_modules(callback, tokens=0)
        self.is_loaded = True

    def load_autosplit(
        self,
        cache: Any,
        reserve_vram: int | list[int] | None = None,
        last_id_only: bool = False,
        callback: Callable[[int, int], None] | None = None,
        callback_gen: Callable[[int, int], None] | None = None,
        progress: bool = False,
    ) -> None:
        assert cache.lazy, "the cache must be lazy"
        note("load", model=self.config.model_dir, gpu_split="auto", max_seq_len=self.config.max_seq_len)
        load_modules(callback, tokens=cache.max_seq_len)
        self.is_loaded = True


class ExLlamaV2Cache:
    def __init__(
        self,
        model: ExLlamaV2,
        batch_size: int = 1,
        max_seq_len: int = -1,
        copy_from: Any = None,
        lazy: bool = False,
        num_key_value_heads: int | None = None,
        fixed_device: int | None = None,
    ) -> None:
        assert lazy or model.is_loaded, "tensors are allocated at once, so the model must be there"
        assert max_seq_len % 256 == 0
        self.model, self.max_seq_len, self.batch_size, self.lazy = model, max_seq_len, batch_size, lazy
        note("cache", kind=type(self).__name__, tokens=max_seq_len)


class ExLlamaV2Cache_Q4(ExLlamaV2Cache):
    pass


class ExLlamaV2Cache_Q6(ExLlamaV2Cache):
    pass


class ExLlamaV2Cache_Q8(ExLlamaV2Cache):
    pass


class _TokenizerModel:
    def __init__(self, vocabulary: Any) -> None:
        self.hf_tokenizer = vocabulary


class ExLlamaV2Tokenizer(FakeTokenizer):
    def __init__(
        self, config: ExLlamaV2Config, lazy_init: bool = True, force_json: bool = False, force_spm: bool = False
    ) -> None:
        super().__init__()
        self.config = config
        self.tokenizer_model = _TokenizerModel(self.vocabulary)
