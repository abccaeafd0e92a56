"""What a model on an engine can do, as data: shown in listings and enforced before an engine is asked."""

from __future__ import annotations

from msgspec import Struct

__all__ = ["ALL_SAMPLING", "Capabilities"]

ALL_SAMPLING = frozenset(
    {
        "max_tokens", "temperature", "top_p", "top_k", "min_p", "typical_p", "repeat_penalty", "repeat_last_n",
        "presence_penalty", "frequency_penalty", "seed", "stop", "logit_bias", "time_limit_s",
    }
)  # fmt: skip


class Capabilities(Struct, frozen=True):
    """`sampling` names the fields of `schema.Sampling` that the engine honours; `context_tokens` is for one request.
    `tokenize` covers tokenize, detokenize and render."""

    chat: bool = False
    complete: bool = False
    embed: bool = False
    rerank: bool = False
    vision: bool = False
    audio: bool = False
    tools: bool = False
    thinking: bool = False
    json_schema: bool = False
    grammar: bool = False
    logprobs: bool = False
    infill: bool = False
    lora: bool = False
    tokenize: bool = False
    sampling: frozenset[str] = frozenset()
    context_tokens: int | None = None
