"""The one normalized request: all that any dialect can say and an engine may honour.

In every type here None means "not given". Dialects fill in their defaults by `sampling.filled` (see there for the
order) before a driver sees the request, so that drivers get explicit values.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from oprel.schema.messages import ImagePart, Message, Tool

__all__ = [
    "ChatRequest",
    "CompletionRequest",
    "EmbedRequest",
    "Grammar",
    "JsonObject",
    "JsonSchema",
    "LoadOptions",
    "NamedTool",
    "OutputFormat",
    "RerankRequest",
    "Sampling",
    "Thinking",
    "ToolChoice",
    "must_call",
]


class Sampling(Struct, frozen=True):
    """Units are llama.cpp's, where it has the parameter. `max_tokens` None: what is left of the context, and then
    `time_limit_s` (seconds of wall clock from the first token) ends a generation with reason "length".
    `logit_bias` holds (token id, bias) pairs. `stop` holds no empty string."""

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repeat_penalty: float | None = None
    repeat_last_n: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logit_bias: tuple[tuple[int, float], ...] = ()
    time_limit_s: float | None = None


class LoadOptions(Struct, frozen=True):
    """How a model is loaded; None: planned. Two requests whose options lead to the same plan share an engine.

    `context_tokens` is for each slot; `gpu_layers` counts layers on the GPU (0: none); `kv_cache_type` is one of f16,
    q8_0, q4_0; `chat_template` names a template known to the engine, or is Jinja text, for a model that has none.
    """

    context_tokens: int | None = None
    slots: int | None = None
    gpu_layers: int | None = None
    main_gpu: int | None = None
    threads: int | None = None
    batch_tokens: int | None = None
    kv_cache_type: str | None = None
    flash_attention: bool | None = None
    mmap: bool | None = None
    chat_template: str | None = None


class NamedTool(Struct, frozen=True):
    name: str


ToolChoice = Literal["auto", "none", "required"] | NamedTool


def must_call(choice: ToolChoice | None) -> bool:
    """Whether a call has to come, of any function or of the one that is named."""
    return choice == "required" or isinstance(choice, NamedTool)


class JsonObject(Struct, frozen=True, tag="json_object"):
    """Any JSON object."""


class JsonSchema(Struct, frozen=True, tag="json_schema"):
    """`schema` is JSON text, already checked to be within bounds."""

    schema: str
    name: str | None = None
    strict: bool = False


class Grammar(Struct, frozen=True, tag="grammar"):
    """GBNF text."""

    text: str


OutputFormat = JsonObject | JsonSchema | Grammar


class Thinking(Struct, frozen=True):
    enabled: bool
    effort: Literal["minimal", "low", "medium", "high", "max"] | None = None


class ChatRequest(Struct, frozen=True):
    """`logprobs`: None off, 0 the chosen token's only, n the n likeliest as well.

    `tool_choice` None: the engine's default ("auto" with tools). `truncate`: whether oldest turns may be dropped
    when the prompt is too long (else ContextLengthError).
    """

    messages: tuple[Message, ...]
    sampling: Sampling = Sampling()
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    format: OutputFormat | None = None
    thinking: Thinking | None = None
    logprobs: int | None = None
    truncate: bool = False


class CompletionRequest(Struct, frozen=True):
    """`prompt` is text or token ids and goes to the model as it is: no template. `suffix` asks for infill."""

    prompt: str | tuple[int, ...]
    sampling: Sampling = Sampling()
    suffix: str | None = None
    images: tuple[ImagePart, ...] = ()
    format: OutputFormat | None = None
    logprobs: int | None = None


class EmbedRequest(Struct, frozen=True):
    """One vector is answered for each input, in order. `normalize`: to unit length (L2)."""

    inputs: tuple[str | tuple[int, ...], ...]
    normalize: bool = True


class RerankRequest(Struct, frozen=True):
    """How well does each document answer the query? One score is told for each, in their order."""

    query: str
    documents: tuple[str, ...]
