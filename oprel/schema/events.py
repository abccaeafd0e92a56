"""What an engine answers with. A stream is a sequence of tuples of these; the last event is the only `Finish`."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

__all__ = [
    "Embeddings",
    "Event",
    "Finish",
    "FinishReason",
    "Progress",
    "Ranking",
    "Text",
    "Thinking",
    "Timings",
    "TokenLogprob",
    "ToolCallDelta",
    "TopLogprob",
    "Usage",
    "Warning",
]

FinishReason = Literal["stop", "length", "tool_calls", "content_filter"]


class TopLogprob(Struct, frozen=True, gc=False):
    token: str
    logprob: float
    bytes: tuple[int, ...]


class TokenLogprob(Struct, frozen=True, gc=False, rename={"top": "top_logprobs"}):
    """Natural logarithm, ≤ 0; `bytes` are the token's own UTF-8 bytes (a token may be part of a code point);
    `top` is sorted, likeliest first. In JSON it has the names of OpenAI's API, so that it goes from an engine's
    answer to ours as it is."""

    token: str
    logprob: float
    bytes: tuple[int, ...]
    top: tuple[TopLogprob, ...] = ()


class Text(Struct, frozen=True, tag="text", gc=False):
    """`index` is the choice; `text` is whole code points, and may be empty when only logprobs are told."""

    text: str
    index: int = 0
    logprobs: tuple[TokenLogprob, ...] | None = None


class Thinking(Struct, frozen=True, tag="thinking", gc=False):
    text: str
    index: int = 0


class ToolCallDelta(Struct, frozen=True, tag="tool_call", gc=False):
    """The first delta of a call carries `id` and `name`; `arguments` is the next piece of its JSON text."""

    call: int
    arguments: str = ""
    id: str | None = None
    name: str | None = None
    index: int = 0


class Warning(Struct, frozen=True, tag="warning", gc=False):
    """`code` is a short machine word (`gpu_fallback`, `prompt_truncated`, `parameter_ignored`), `text` a sentence."""

    code: str
    text: str


class Progress(Struct, frozen=True, tag="progress", gc=False):
    """Work before the first token: `stage` is "queued", "loading" or "prompt"; the counts are tokens for "prompt"."""

    stage: Literal["queued", "loading", "prompt"]
    completed: int = 0
    total: int = 0


class Usage(Struct, frozen=True, gc=False):
    """Tokens. `prompt` includes `cached`, which the engine didn't have to read again; `completion` includes
    `reasoning`, the thinking's own (None: not counted apart)."""

    prompt: int
    completion: int
    cached: int = 0
    reasoning: int | None = None


class Timings(Struct, frozen=True, gc=False):
    """Seconds as the engine measured them; None where it doesn't tell."""

    prompt_s: float | None = None
    completion_s: float | None = None


class Finish(Struct, frozen=True, tag="finish"):
    """`reasons` holds one for each choice, in order. Exactly one Finish ends a stream; an error is raised instead.
    `stop_sequence` is the stop string that ended the text, where the engine tells."""

    reasons: tuple[FinishReason, ...]
    usage: Usage
    timings: Timings = Timings()
    stop_sequence: str | None = None


Event = Text | Thinking | ToolCallDelta | Warning | Progress | Finish


class Embeddings(Struct, frozen=True):
    """`vectors`: one per input, float32 values, all of one length. `prompt_tokens` is the sum over inputs."""

    vectors: tuple[tuple[float, ...], ...]
    prompt_tokens: int


class Ranking(Struct, frozen=True):
    """`scores`: one per document, higher is better; their scale is the model's own. `prompt_tokens` is the sum."""

    scores: tuple[float, ...]
    prompt_tokens: int
