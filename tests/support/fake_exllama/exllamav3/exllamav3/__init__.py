"""A stand-in for exllamav3 1.6.5."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fake_engine import SCRIPT, TURN_END, FakeGenerator, FakeJob, FakeTokenizer, held_text, load_modules, note

time.sleep(SCRIPT["build_s"])
if SCRIPT["import_error"]:
    raise OSError(SCRIPT["import_error"])

__all__ = [
    "Cache",
    "CacheLayer_fp16",
    "CacheLayer_quant",
    "ComboSampler",
    "Config",
    "Generator",
    "Job",
    "LLGuidanceFilter",
    "Model",
    "Tokenizer",
]
__version__ = "1.6.5"


class Config:
    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.config_dict = json.loads((Path(directory) / "config.json").read_text())
        assert "architectures" in self.config_dict, "No architecture defined"
        (arch,) = self.config_dict["architectures"]
        assert arch != "UnknownForCausalLM", f"Unknown architecture {arch} in {directory}/config.json"
        self.vocab_size = 260
        self.eos_token_id = 257
        self.eos_token_id_list = [257]

    @staticmethod
    def from_directory(directory: str) -> Config:
        return Config(directory)


class Model:
    def __init__(self, config: Config) -> None:
        self.config = config
        self.caches: list[Cache] = []

    @staticmethod
    def from_config(config: Config, component: str = "text") -> Model:
        return Model(config)

    def load(
        self,
        *,
        use_per_device: list[float] | float | None = None,
        reserve_per_device: list[float] | float | None = None,
        tensor_p: bool = False,
        progressbar: bool = False,
        max_chunk_size: int = 2048,
        callback: Callable[[int, int], None] | None = None,
        max_batch_size: int = 1,
        draft_model: Model | None = None,
    ) -> None:
        note("load", model=self.config.directory, gpu_split=use_per_device, max_batch_size=max_batch_size)
        load_modules(callback, tokens=sum(cache.max_num_tokens for cache in self.caches))
        for cache in self.caches:
            cache.initialized = True

    def warmup(
        self,
        cache: Any = None,
        max_chunk_size: int = 2048,
        max_batch_size: int = 8,
        max_q_len: int = 16,
        long_context: bool = True,
        progressbar: bool = False,
        callback: Callable[[int, int], None] | None = None,
        verbose: bool = False,
    ) -> list[str]:
        if callback is not None:
            callback(1, 1)
        return []


class CacheLayer_fp16:
    pass


class CacheLayer_quant:
    pass


class Cache:
    def __init__(
        self,
        model: Model,
        max_num_tokens: int,
        layer_type: type | None = None,
        max_batch_size: int = 16,
        max_history: int = 0,
        k_bits: int | None = None,
        v_bits: int | None = None,
    ) -> None:
        assert max_num_tokens % 256 == 0
        assert (layer_type is CacheLayer_quant) == (k_bits is not None)
        self.max_num_tokens = max_num_tokens
        self.initialized = False
        model.caches.append(self)
        note("cache", kind=layer_type.__name__ if layer_type else "", bits=k_bits, tokens=max_num_tokens)


class Tokenizer(FakeTokenizer):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.tokenizer = self.vocabulary

    @staticmethod
    def from_config(config: Config) -> Tokenizer:
        return Tokenizer(config)


class ComboSampler:
    def __init__(
        self,
        rep_p: float = 1.0,
        freq_p: float = 0.0,
        pres_p: float = 0.0,
        rep_sustain_range: int = 10**8,
        rep_decay_range: int = 0,
        dry_multiplier: float = 0.0,
        temperature: float = 1.0,
        min_p: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        temp_last: bool = False,
        logit_bias: dict[int, float] | None = None,
    ) -> None:
        self.settings = {name: value for name, value in locals().items() if name != "self"}
        self.is_greedy = temperature == 0.0 or top_k == 1


class LLGuidanceFilter:
    """Holds the model to the one text that the script has for it."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        trigger_token: int | None = None,
        prefix_str: str | None = None,
        eos_after_completed: bool = False,
        json_schema: dict[str, Any] | str | None = None,
        regex: str | None = None,
        lark_grammar: str | None = None,
        gbnf_grammar: str | None = None,
        llg_grammar: str | None = None,
        consume_prefix: bool = False,
    ) -> None:
        source = json_schema if json_schema is not None else gbnf_grammar
        assert source is not None, "Specify exactly one of json_schema, regex, …"
        if "objekt" in str(source):
            raise ValueError("Invalid grammar: unknown type objekt")
        note("filter", json_schema=json_schema, gbnf_grammar=gbnf_grammar)
        self.text = held_text(json_schema)

    def choice(self, place: int) -> int:
        return self.text[place] if place < len(self.text) else TURN_END

    def fed(self, token: int) -> None:
        pass


class Job(FakeJob):
    def __init__(
        self,
        input_ids: Any,
        max_new_tokens: int | None = None,
        min_new_tokens: int = 0,
        max_skips: int | None = 4,
        sampler: ComboSampler | None = None,
        seed: int | None = None,
        stop_conditions: Any = None,
        decode_special_tokens: bool = False,
        return_top_tokens: int = 0,
        return_logits: bool = False,
        return_probs: bool = False,
        filters: Any = None,
        token_healing: bool = False,
        identifier: Any = None,
        banned_strings: Any = None,
        embeddings: Any = None,
        max_rq_tokens: int | None = None,
    ) -> None:
        assert sampler is not None
        assert max_new_tokens is not None
        assert max_new_tokens >= 1, "max_new_tokens must be >= 1, or None for no limit"
        super().__init__(
            input_ids=input_ids,
            max_new_tokens=max_new_tokens,
            seed=seed,
            stop_conditions=stop_conditions,
            decode_special_tokens=decode_special_tokens,
            return_logits=return_logits,
            identifier=identifier,
            filters=filters,
            is_greedy=sampler.is_greedy,
            settings=sampler.settings,
        )


class Generator(FakeGenerator):
    def __init__(
        self,
        model: Model,
        cache: Cache,
        tokenizer: Tokenizer,
        max_batch_size: int = 256,
        max_chunk_size: int = 2048,
        draft_model: Model | None = None,
        draft_cache: Cache | None = None,
        num_draft_tokens: int | None = None,
    ) -> None:
        assert cache.initialized, "Cache tensors were never allocated. Construct the Cache BEFORE calling model.load()"
        if draft_model is not None:
            assert draft_cache is not None, "Must supply cache for draft model"
            assert draft_cache.max_num_tokens == cache.max_num_tokens, "Cache and draft cache must be same size"
        super().__init__(
            cache_tokens=cache.max_num_tokens,
            page_size=256,
            max_batch_size=max_batch_size,
            drafted=0,
            name="v3",
        )
        self.margin = 1 + (num_draft_tokens or 0 if draft_model is not None else 0)

    def enqueue(self, job: FakeJob) -> int:
        room = self.cache_tokens - len(job.prompt) - self.margin
        if room >= 1:
            job.max_new_tokens = min(job.max_new_tokens, room)
        return super().enqueue(job)
