"""A stand-in for exllamav2.generator: its synchronous dynamic generator."""

from __future__ import annotations

import dataclasses
from typing import Any

from fake_engine import FakeGenerator, FakeJob

from exllamav2 import ExLlamaV2, ExLlamaV2Tokenizer

__all__ = ["ExLlamaV2DynamicGenerator", "ExLlamaV2DynamicJob", "ExLlamaV2Sampler"]


class ExLlamaV2Sampler:
    @dataclasses.dataclass
    class Settings:
        token_repetition_penalty: float = 1.025
        token_repetition_range: int = -1
        token_repetition_decay: int = 0
        token_frequency_penalty: float = 0.0
        token_presence_penalty: float = 0.0
        temperature: float = 0.8
        top_k: int = 50
        top_p: float = 0.8
        top_a: float = 0.0
        min_p: float = 0
        tfs: float = 0
        typical: float = 0
        mirostat: bool = False
        token_bias: Any = None
        dry_multiplier: float = 0.0
        xtc_probability: float = 0.0

        def told(self) -> dict[str, Any]:
            fields = dict(self.__dict__)
            bias = fields.pop("token_bias")
            if bias is not None:
                fields["token_bias"] = {n: value for n, value in enumerate(bias.tolist()) if value}
            return fields


class ExLlamaV2DynamicJob(FakeJob):
    def __init__(
        self,
        input_ids: Any,
        max_new_tokens: int,
        min_new_tokens: int = 0,
        max_skips: int | None = 4,
        gen_settings: ExLlamaV2Sampler.Settings | None = None,
        seed: int | None = None,
        stop_conditions: Any = None,
        decode_special_tokens: bool = False,
        return_top_tokens: int = 0,
        return_logits: bool = False,
        return_probs: bool = False,
        filters: Any = None,
        filter_prefer_eos: bool = False,
        token_healing: bool = False,
        identifier: Any = None,
        banned_strings: Any = None,
        embeddings: Any = None,
    ) -> None:
        assert gen_settings is not None
        super().__init__(
            input_ids=input_ids,
            max_new_tokens=max_new_tokens,
            seed=seed,
            stop_conditions=stop_conditions,
            decode_special_tokens=decode_special_tokens,
            return_logits=return_logits,
            identifier=identifier,
            filters=[_Filtered(one) for one in filters or ()],
            is_greedy=gen_settings.top_k == 1,
            settings=gen_settings.told(),
        )


class _Filtered:
    """Drives a filter as the real sampler does: `begin`, then `next` and `feed` for each token."""

    def __init__(self, one: Any) -> None:
        self.one = one
        one.begin("")

    def choice(self, place: int) -> int:
        allowed, _ = self.one.next()
        return min(allowed)

    def fed(self, token: int) -> None:
        self.one.feed([[token]])


class ExLlamaV2DynamicGenerator(FakeGenerator):
    def __init__(
        self,
        model: ExLlamaV2,
        cache: Any,
        tokenizer: ExLlamaV2Tokenizer,
        max_batch_size: int | None = None,
        max_seq_len: int | None = None,
        max_chunk_size: int | None = None,
        max_q_size: int = 8,
        draft_model: ExLlamaV2 | None = None,
        draft_cache: Any = None,
        num_draft_tokens: int = 4,
        use_ngram_draft: bool = False,
        max_ngram: int = 4,
        max_sampling_threads: int = 16,
        min_sampling_threads: int = 3,
        paged: bool = True,
        filter_background_eval: bool = True,
    ) -> None:
        if draft_model is not None:
            assert draft_cache is not None, "Must supply cache for draft model"
            assert draft_cache.max_seq_len == cache.max_seq_len, "Cache and draft cache must be same dimensions"
            assert draft_model.config.max_seq_len >= model.config.max_seq_len, (
                "Draft model seq len must be >= model seq len"
            )
        if paged:
            from exllamav2.attn import assert_paged_attn

            assert_paged_attn()
            assert not model.config.no_flash_attn, (
                "Paged mode requires flash-attn, but flash-attn is disabled in model config."
            )
        super().__init__(
            cache_tokens=cache.max_seq_len,
            page_size=256 if paged else cache.max_seq_len,
            max_batch_size=max_batch_size or 256,
            drafted=num_draft_tokens if draft_model is not None else 0,
            name="paged" if paged else "unpaged",
        )
