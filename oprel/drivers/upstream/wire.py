"""The JSON that engines stream, as typed structs with only the fields that are used.

`RowT` is what a token with its logprobs becomes: a `TokenLogprob` where all of it is told, which is passed on as it is,
else a `TokenRow` with gaps.
"""

from __future__ import annotations

from typing import Generic, TypeVar

from msgspec import Struct

from oprel.schema import TokenLogprob

__all__ = [
    "ChatChunk",
    "Choice",
    "ChoiceLogprobs",
    "Delta",
    "EmbeddingRow",
    "EmbeddingsAnswer",
    "ErrorBody",
    "NativeChunk",
    "PromptProgress",
    "RankRow",
    "RanksAnswer",
    "TokenRow",
    "ToolCallRow",
    "TopRow",
    "WireError",
    "WireTimings",
    "WireUsage",
]


class TopRow(Struct, gc=False):
    token: str
    logprob: float | None = None
    bytes: tuple[int, ...] | None = None


class TokenRow(Struct, gc=False):
    """`logprob` null is minus infinity, which JSON can't say."""

    token: str
    logprob: float | None = None
    bytes: tuple[int, ...] | None = None
    top_logprobs: tuple[TopRow, ...] = ()


RowT = TypeVar("RowT", TokenRow, TokenLogprob)


class ChoiceLogprobs(Struct, Generic[RowT], gc=False):
    """`content` is chat's shape; the others are legacy completions', a list for each (OpenAI tells no bytes there)."""

    content: tuple[RowT, ...] | None = None
    tokens: tuple[str, ...] | None = None
    token_logprobs: tuple[float | None, ...] | None = None
    top_logprobs: tuple[dict[str, float | None] | None, ...] | None = None


class Function(Struct, gc=False):
    name: str | None = None
    arguments: str | None = None


class ToolCallRow(Struct, gc=False):
    index: int = 0
    id: str | None = None
    function: Function | None = None


class Delta(Struct, frozen=True, gc=False):
    """`reasoning_content` and `reasoning` are two names for one thing; who sends both sends it twice."""

    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: tuple[ToolCallRow, ...] | None = None


_EMPTY_DELTA = Delta()


class Choice(Struct, Generic[RowT], gc=False):
    """`delta` in chat, `text` in completions. `stop_reason`: vLLM's word for the stop string (or the token's id)."""

    delta: Delta = _EMPTY_DELTA
    finish_reason: str | None = None
    logprobs: ChoiceLogprobs[RowT] | None = None
    text: str | None = None
    stop_reason: int | str | None = None


class CachedTokens(Struct, gc=False):
    cached_tokens: int | None = None


class ThoughtTokens(Struct, gc=False):
    reasoning_tokens: int | None = None


class WireUsage(Struct, gc=False):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: CachedTokens | None = None
    completion_tokens_details: ThoughtTokens | None = None


class WireTimings(Struct, gc=False):
    """llama-server's: the prompt's size is `cache_n + prompt_n`."""

    cache_n: int = 0
    prompt_n: int = 0
    prompt_ms: float | None = None
    predicted_n: int = 0
    predicted_ms: float | None = None


class PromptProgress(Struct, gc=False):
    """Tokens; `processed` includes `cache`."""

    total: int
    cache: int = 0
    processed: int = 0


class WireError(Struct):
    message: str | None = None
    code: int | str | None = None
    type: str | None = None
    n_prompt_tokens: int | None = None
    n_ctx: int | None = None


class DetailRow(Struct):
    msg: str = ""
    loc: tuple[str | int, ...] = ()


class ErrorBody(Struct):
    """The body of an answer that isn't 200; some engines write the text where others write an object. `detail` is
    FastAPI's (a list for a body that doesn't validate); `message` beside `code` and `type` what vLLM and SGLang wrote
    before they had an `error`."""

    error: WireError | str | None = None
    detail: str | tuple[DetailRow, ...] | None = None
    message: str | None = None
    code: int | str | None = None
    type: str | None = None


class Verbose(Struct, gc=False):
    """What llama-server tells beside OpenAI's fields, as far as it was asked for."""

    stopping_word: str | None = None


class ChatChunk(Struct, Generic[RowT], gc=False, rename={"verbose": "__verbose"}):
    """A chunk of `/v1/chat/completions` or `/v1/completions`."""

    choices: tuple[Choice[RowT], ...] | None = None
    usage: WireUsage | None = None
    timings: WireTimings | None = None
    prompt_progress: PromptProgress | None = None
    error: WireError | str | None = None
    message: str | None = None
    verbose: Verbose | None = None


class NativeChunk(Struct, gc=False):
    """A chunk of llama-server's `/completion` and `/infill`."""

    content: str | None = None
    stop: bool = False
    stop_type: str | None = None
    stopping_word: str | None = None
    tokens_predicted: int = 0
    tokens_evaluated: int = 0
    timings: WireTimings | None = None
    completion_probabilities: tuple[TokenRow, ...] | None = None
    prompt_progress: PromptProgress | None = None
    error: WireError | str | None = None


class EmbeddingRow(Struct):
    """`embedding` is base64 of little-endian float32, or numbers where an engine ignores `encoding_format`."""

    index: int
    embedding: str | tuple[float, ...]


class EmbeddingsAnswer(Struct):
    data: tuple[EmbeddingRow, ...]
    usage: WireUsage | None = None


class RankRow(Struct):
    index: int
    relevance_score: float


class RanksAnswer(Struct):
    results: list[RankRow]
    usage: WireUsage | None = None
