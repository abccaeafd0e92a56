"""What a scripted engine is told to do, and the answer that comes of it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Literal

from msgspec import Struct

from oprel.schema import (
    Capabilities,
    ChatRequest,
    CompletionRequest,
    Event,
    Finish,
    FinishReason,
    Text,
    TokenLogprob,
    ToolCall,
    ToolCallDelta,
    TopLogprob,
    Usage,
    events,
)

__all__ = ["Answer", "Broken", "GenerateRequest", "Script", "ending", "vector"]

GenerateRequest = ChatRequest | CompletionRequest
Broken = Literal["empty", "not_events", "no_finish", "two_finishes", "raises"]


class Script(Struct, frozen=True):
    """How an engine behaves. Times in seconds, on the driver's clock.

    `text`: the tokens of every answer, or a function of the request; `endless` repeats them until something stops
    them; `batch` tokens arrive together. `thinking` comes first, `tool_calls` (or a function of the request, too) last
    (finish reason "tool_calls"). `usage` None: words of the prompt, tokens of the answer. `warnings` come before the
    first token, `late_warnings` with the end.
    `silent`: no token ever comes; the engine gives up after the driver's stall limit. `broken`: what comes breaks the
    contract in the way named. `dies_at`: the engine dies before its n-th token (counted from 0) of a request.
    `refusals`: the causes with which the first starts fail ("gpu", "memory", "model", "engine"), one for each start.
    `capabilities` None: chat or embedding, as the model is. `bytes_by_device` None: the model's size on the CPU;
    `fallbacks`: the bytes by device of each fallback plan. `memory_bytes`: what the engine says it holds.
    """

    text: tuple[str, ...] | Callable[[GenerateRequest], Iterable[str]] = ("Hello", ",", " world", "!")
    thinking: tuple[str, ...] = ()
    tool_calls: tuple[ToolCall, ...] | Callable[[GenerateRequest], Iterable[ToolCall]] = ()
    warnings: tuple[events.Warning, ...] = ()
    late_warnings: tuple[events.Warning, ...] = ()
    endless: bool = False
    batch: int = 1
    finish: FinishReason = "stop"
    usage: Usage | None = None
    cached_tokens: int = 0
    start_delay_s: float = 0.0
    prompt_delay_s: float = 0.0
    token_delay_s: float = 0.0
    embed_delay_s: float = 0.0
    stop_delay_s: float = 0.0
    silent: bool = False
    broken: Broken | None = None
    dies_at: int | None = None
    refusals: tuple[str, ...] = ()
    slots: int = 4
    context_tokens: int = 4096
    capabilities: Capabilities | None = None
    dimensions: int = 8
    bytes_by_device: tuple[tuple[str, int], ...] | None = None
    fallbacks: tuple[tuple[tuple[str, int], ...], ...] = ()
    memory_bytes: int | None = None


class Answer:
    """The events of one answer, cut by `max_tokens` and stop strings; `reason` and `stop_sequence` once it ended."""

    def __init__(self, request: GenerateRequest, script: Script) -> None:
        self.reason: FinishReason = script.finish
        self.stop_sequence: str | None = None
        self._request = request
        self._script = script

    def events(self) -> Iterator[Event]:
        top = self._request.logprobs
        for text in self._until_stop(self._limited(self._tokens())):
            yield Text(text, logprobs=None if top is None else (_logprob(text, top),))
        if self.stop_sequence is None and self.reason != "length":
            yield from self._calls()

    def _tokens(self) -> Iterator[str]:
        text = self._script.text
        tokens = tuple(text(self._request) if callable(text) else text)
        while True:
            yield from tokens
            if not self._script.endless or not tokens:
                return

    def _limited(self, tokens: Iterator[str]) -> Iterator[str]:
        limit = self._request.sampling.max_tokens
        for count, token in enumerate(tokens):
            if limit is not None and count >= limit:
                self.reason = "length"
                return
            yield token

    def _until_stop(self, tokens: Iterator[str]) -> Iterator[str]:
        """Holds back what may become a stop string."""
        stops = self._request.sampling.stop
        held = ""
        for token in tokens:
            held += token
            found = min(((at, stop) for stop in stops if (at := held.find(stop)) >= 0), default=None)
            if found is not None:
                at, self.stop_sequence = found
                self.reason = "stop"
                if at:
                    yield held[:at]
                return
            keep = _longest_prefix_at_end(held, stops)
            if safe := held[: len(held) - keep]:
                yield safe
            held = held[len(held) - keep :]
        if held:
            yield held

    def _calls(self) -> Iterator[Event]:
        calls = self._script.tool_calls
        for number, call in enumerate(calls(self._request) if callable(calls) else calls):
            self.reason = "tool_calls"
            half = len(call.arguments) // 2
            identity = call.id or f"call_{number}"
            yield ToolCallDelta(number, arguments=call.arguments[:half], id=identity, name=call.name)
            yield ToolCallDelta(number, arguments=call.arguments[half:])


def ending(last: tuple[Event, ...], finish: Finish, broken: Broken | None) -> Iterator[tuple[Event, ...]]:
    match broken:
        case "empty":
            yield ()
            yield (*last, finish)
        case "not_events":
            yield ("rubbish", 7)  # type: ignore[misc]  # this is what the script asks for
            yield (*last, finish)
        case "no_finish":
            if last:
                yield last
        case "two_finishes":
            yield (*last, finish)
            yield (finish,)
        case _:
            yield (*last, finish)


def _logprob(text: str, top: int) -> TokenLogprob:
    likeliest = TopLogprob(text, -0.1, tuple(text.encode()))
    others = (TopLogprob(f"<{rank}>", -1.0 - rank, tuple(f"<{rank}>".encode())) for rank in range(1, top))
    return TokenLogprob(text, -0.1, tuple(text.encode()), (likeliest, *others) if top else ())


def _longest_prefix_at_end(text: str, stops: tuple[str, ...]) -> int:
    """How many of `text`'s last characters begin a stop string."""
    longest = max((len(stop) - 1 for stop in stops), default=0)
    for length in range(min(longest, len(text)), 0, -1):
        if any(stop.startswith(text[-length:]) for stop in stops):
            return length
    return 0


def vector(text: str | tuple[int, ...], dimensions: int, normalize: bool) -> tuple[float, ...]:
    """Values made from the text, so that equal inputs give equal vectors and others don't."""
    values = [hashlib.sha256(f"{number}:{text}".encode()).digest()[0] / 128 - 0.996 for number in range(dimensions)]
    length = math.sqrt(sum(value * value for value in values)) if normalize else 1.0
    return tuple(value / length for value in values)
