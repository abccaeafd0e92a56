"""What a model on an engine can do, as data: shown in listings and enforced before an engine is asked."""

from __future__ import annotations

import msgspec
from msgspec import Struct

from oprel.schema.models import Model
from oprel.schema.requests import ToolChoice, must_call

__all__ = ["ALL_SAMPLING", "Capabilities", "promised"]

ALL_SAMPLING = frozenset(
    {
        "max_tokens", "temperature", "top_p", "top_k", "min_p", "typical_p", "repeat_penalty", "repeat_last_n",
        "presence_penalty", "frequency_penalty", "seed", "stop", "logit_bias", "time_limit_s",
    }
)  # fmt: skip


class Capabilities(Struct, frozen=True):
    """`sampling` names the fields of `schema.Sampling` that the engine honours; `context_tokens` is for one request.
    `tokenize` covers tokenize, detokenize and render; `prefill`: an assistant's message that ends a conversation is
    continued, and the answer is what comes after it."""

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
    prefill: bool = False
    sampling: frozenset[str] = frozenset()
    context_tokens: int | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """What can be done, by name, in the order of the fields."""
        return tuple(name for name in self.__struct_fields__ if getattr(self, name) is True)

    def can_call(self, choice: ToolChoice | None) -> bool:
        """Whether tools may be asked for with that choice: a call that must come can be forced by its schema, even
        where the model's template knows no tools."""
        return self.tools or (self.json_schema and must_call(choice))


# A capability, and the word that a model has for it. What has no word here is the engine's own to give.
_WORDS = {
    "complete": "completion",
    "embed": "embedding",
    "vision": "vision",
    "audio": "audio",
    "tools": "tools",
    "thinking": "thinking",
    "infill": "insert",
}
_ALL_WORDS = msgspec.structs.replace(Capabilities(chat=True), **dict.fromkeys(_WORDS, True))


def promised(model: Model, most: Capabilities | None = None) -> Capabilities:
    """What `model` says of itself, as far as an engine that can do `most` can do it.

    Without `most`, only the model's own words count. A model of which nothing is known (a remote one) has no words: it
    is promised all of `most`. `context_tokens` is the trained length.
    """
    if not model.capabilities:
        return msgspec.structs.replace(most or Capabilities(), context_tokens=model.context_tokens)
    limits = most or _ALL_WORDS
    said = {name: word in model.capabilities and getattr(limits, name) for name, word in _WORDS.items()}
    makes_text = said["complete"] or ("completion" in model.capabilities and limits.chat)
    has_template = model.remote is not None or model.chat_form is not None
    return msgspec.structs.replace(
        limits if makes_text else Capabilities(tokenize=limits.tokenize),
        **{**said, "embed": said["embed"] and model.pooling != "rank"},
        chat=makes_text and limits.chat and has_template,
        rerank=limits.rerank and model.pooling == "rank",
        lora=limits.lora and any(file.role == "adapter" for file in model.files),
        context_tokens=model.context_tokens,
    )
