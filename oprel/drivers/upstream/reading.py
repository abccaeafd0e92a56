"""An engine's stream of bytes, read into events. One reader for one answer.

All events of one read are decoded in one call (the blocks of `sse.EventBlocks` become one JSON array), and a plain
piece of text takes the shortest way; everything else (comments, half characters, errors, ends) takes the longer one,
event by event, with the same result however the bytes were cut.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Generic, TypeGuard, TypeVar

import msgspec

from oprel.drivers.upstream.failures import Failures, garbage
from oprel.drivers.upstream.repair import TextRepair, lenient_json, without_surrogates
from oprel.drivers.upstream.sse import EventBlocks, payloads
from oprel.drivers.upstream.wire import (
    ChatChunk,
    Choice,
    ChoiceLogprobs,
    NativeChunk,
    PromptProgress,
    TokenRow,
    ToolCallRow,
    TopRow,
    WireTimings,
    WireUsage,
)
from oprel.errors import EngineFailedError
from oprel.schema import (
    Event,
    Finish,
    FinishReason,
    Progress,
    Text,
    Timings,
    TokenLogprob,
    ToolCallDelta,
    TopLogprob,
    Usage,
    events,
)

__all__ = ["AnswerReader", "ChatReader", "NativeReader"]

_DONE = b"[DONE]"
# OpenAI's own way to say "very unlikely": JSON has no minus infinity.
_UNLIKELY = -9999.0
_REASONS: dict[str, FinishReason] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "content_filter",
}
_UNDECODABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

AnyChat = ChatChunk[TokenRow] | ChatChunk[TokenLogprob]
Rows = tuple[TokenRow, ...] | tuple[TokenLogprob, ...]
ChunkT = TypeVar("ChunkT", AnyChat, NativeChunk)


class AnswerReader(ABC, Generic[ChunkT]):
    """`feed` what arrives, `end` at the clean end of the body; both append events to `out` and raise one of
    `oprel.errors` (what they appended before still counts). After `is_finished` nothing more is appended.

    `tokens` counts events that carried something: llama-server sends one for a token, where it is a whole character.
    `has_begun` is true from the first of them; `prompt_left` is what remains of the prompt, where the engine tells.
    `is_done_enough`: `[DONE]` ends an answer that told no reason. `keep_top`: how many of the likeliest tokens are kept
    (None: all that are told).
    """

    def __init__(self, failures: Failures, *, keep_top: int | None = None, is_done_enough: bool = False) -> None:
        self.is_finished = False
        self.tokens = 0
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.prompt_left: int | None = None
        self._failures = failures
        self._keep_top = keep_top
        self._blocks = EventBlocks()
        self._repairs: dict[tuple[str, int], TextRepair] = {}
        self._has_halves = False
        self._reason: FinishReason | None = None
        self._usage: WireUsage | None = None
        self._timings: WireTimings | None = None
        self._stop_sequence: str | None = None
        self._is_done = False
        self._is_done_enough = is_done_enough

    @property
    def has_begun(self) -> bool:
        return self.tokens > 0

    def feed(self, data: bytes, out: list[Event]) -> None:
        if self.is_finished:
            return
        try:
            block = self._blocks.feed(data)
        except ValueError as error:
            raise self._garbage(data, str(error)) from None
        if not block:
            return
        chunks = None if self._has_halves else self._together(block)
        if chunks is not None:
            self._read_all(chunks, out)
            if self._is_done:
                self._finish_done(out)
            return
        for payload in payloads(block):
            self._read_payload(payload, out)

    def end(self, out: list[Event]) -> None:
        """The body ended as it should. An answer without a finish is a failure."""
        if self.is_finished:
            return
        if (rest := self._blocks.rest.strip()) and not rest.startswith(b":"):
            self.feed(b"\n\n", out)  # a last event whose blank line is missing still counts
        if not self.is_finished:
            self._finish_known(out)

    def cut_short(self) -> Finish:
        """The Finish for a generation that was ended from this side, with what the stream told so far."""
        self.is_finished = True
        return Finish(("length",), self._counted(), self._times())

    def _together(self, block: bytes) -> Sequence[ChunkT] | None:
        """All chunks of a block, or None when it isn't made of plain `data: {…}` events alone."""
        if not block.startswith(b"data: "):
            return None
        body = block[6:]
        self._is_done = body.endswith(b"\n\ndata: [DONE]")
        if self._is_done:
            body = body[: -len(b"\n\ndata: [DONE]")]
        # JSON has no raw line feeds inside strings, so that this pattern only ever stands between events.
        try:
            return self._decode_many(b"[" + body.replace(b"\n\ndata: ", b",") + b"]")
        except _UNDECODABLE:
            self._is_done = False
            return None

    def _read_payload(self, payload: bytes, out: list[Event]) -> None:
        if self.is_finished:
            return
        if payload == _DONE:
            self._finish_done(out)
            return
        self._read_all((self._chunk(payload),), out)

    def _chunk(self, payload: bytes) -> ChunkT:
        try:
            return self._decode_one(payload)
        except _UNDECODABLE:
            pass
        try:
            chunk = self._convert(lenient_json(payload))
        except (ValueError, msgspec.ValidationError):
            raise self._garbage(payload, "not a completion event") from None
        self._has_halves = True
        return chunk

    def _whole(self, part: str, text: str, call: int = 0) -> str:
        """`text` in whole code points; only used once an event had half of one."""
        if not self._has_halves:
            return text
        repair = self._repairs.get((part, call))
        if repair is None:
            repair = self._repairs[(part, call)] = TextRepair()
        return repair.feed(text)

    def _flush(self, out: list[Event]) -> None:
        for (part, call), repair in self._repairs.items():
            if not (left := repair.flush()):
                continue
            if part == "text":
                out.append(Text(left))
            elif part == "thinking":
                out.append(events.Thinking(left))
            else:
                out.append(ToolCallDelta(call, arguments=left))

    def _report_progress(self, progress: PromptProgress, out: list[Event]) -> None:
        self.prompt_tokens = progress.total
        self.cached_tokens = progress.cache
        self.prompt_left = max(0, progress.total - progress.processed)
        out.append(Progress("prompt", progress.processed, progress.total))

    def _finish_done(self, out: list[Event]) -> None:
        if self._is_done_enough and self._reason is None and self.has_begun:
            self._reason = "stop"
        self._finish_known(out)

    def _finish_known(self, out: list[Event]) -> None:
        if self.is_finished:
            return
        if self._reason is None:
            raise self._failures.incomplete()
        self._flush(out)
        self.is_finished = True
        out.append(Finish((self._reason,), self._counted(), self._times(), self._stop_sequence))

    def _counted(self) -> Usage:
        if (usage := self._usage) is not None:
            details = usage.prompt_tokens_details
            cached = details.cached_tokens if details is not None and details.cached_tokens is not None else 0
            thought = usage.completion_tokens_details
            # Servers that don't count them say 0.
            reasoning = (thought.reasoning_tokens or None) if thought is not None else None
            return Usage(usage.prompt_tokens, usage.completion_tokens, cached, reasoning)
        if (timings := self._timings) is not None:
            return Usage(timings.cache_n + timings.prompt_n, timings.predicted_n, timings.cache_n)
        return Usage(self.prompt_tokens, self.tokens, self.cached_tokens)

    def _times(self) -> Timings:
        timings = self._timings
        if timings is None:
            return Timings()
        return Timings(_seconds(timings.prompt_ms), _seconds(timings.predicted_ms))

    def _logprobs(self, rows: Rows) -> tuple[TokenLogprob, ...]:
        """Of those without gaps nothing is copied, where they are as they should be."""
        keep = self._keep_top
        return rows if _are_whole(rows, keep) else tuple([_logprob(row, keep) for row in rows])

    def _garbage(self, data: bytes, why: str) -> EngineFailedError:
        return self._failures.nonsense(data, why)

    @abstractmethod
    def _read_all(self, chunks: Sequence[ChunkT], out: list[Event]) -> None: ...

    @abstractmethod
    def _decode_many(self, array: bytes) -> Sequence[ChunkT]: ...

    @abstractmethod
    def _decode_one(self, payload: bytes) -> ChunkT: ...

    @abstractmethod
    def _convert(self, value: Any) -> ChunkT: ...


# What has gaps in its logprobs is no such list, and is taken event by event.
_CHAT_MANY = msgspec.json.Decoder(list[ChatChunk[TokenLogprob]])
_CHAT_ONE = msgspec.json.Decoder(ChatChunk[TokenRow])


class ChatReader(AnswerReader[AnyChat]):
    """Chunks of chat completions, and of completions in OpenAI's shape. One choice (`n` is fanned out above)."""

    def __init__(self, failures: Failures, *, keep_top: int | None = None, is_done_enough: bool = False) -> None:
        super().__init__(failures, keep_top=keep_top, is_done_enough=is_done_enough)
        self._has_calls = False

    def _decode_many(self, array: bytes) -> Sequence[AnyChat]:
        return _CHAT_MANY.decode(array)

    def _decode_one(self, payload: bytes) -> AnyChat:
        return _CHAT_ONE.decode(payload)

    def _convert(self, value: Any) -> AnyChat:
        return msgspec.convert(value, ChatChunk[TokenRow])

    def _read_all(self, chunks: Sequence[AnyChat], out: list[Event]) -> None:
        append = out.append
        is_plain = not self._has_halves
        tokens = 0
        try:
            for chunk in chunks:
                if is_plain and chunk.choices:
                    choice = chunk.choices[0]
                    delta = choice.delta
                    text = delta.content
                    if (
                        text
                        and choice.finish_reason is None
                        and delta.reasoning_content is None
                        and delta.reasoning is None
                        and delta.tool_calls is None
                    ):
                        tokens += 1
                        if choice.logprobs is None:
                            append(Text(text))
                        else:
                            append(Text(text, 0, self._logprobs(_rows(choice.logprobs) or ()) or None))
                        continue
                self._read(chunk, out)
                if self.is_finished:
                    return
        finally:
            self.tokens += tokens

    def _read(self, chunk: AnyChat, out: list[Event]) -> None:
        if chunk.error is not None:
            raise self._failures.told(500, chunk.error)
        is_known = False
        if chunk.prompt_progress is not None:
            is_known = True
            self._report_progress(chunk.prompt_progress, out)
        if chunk.usage is not None or chunk.timings is not None:
            is_known = True
            self._usage = chunk.usage or self._usage
            self._timings = chunk.timings or self._timings
        if chunk.choices is None and not is_known:
            if chunk.message is not None:
                raise self._failures.told(500, chunk.message)
            raise garbage(self._failures.driver, "an object without choices", "not a completion event")
        if chunk.verbose is not None:
            self._stop_sequence = chunk.verbose.stopping_word or None
        for choice in (chunk.choices or ())[:1]:
            self._read_choice(choice, out)
        if self._reason is not None and self._usage is not None:
            self._finish_known(out)

    def _read_choice(self, choice: Choice[TokenRow] | Choice[TokenLogprob], out: list[Event]) -> None:
        delta = choice.delta
        thought = delta.reasoning_content or delta.reasoning
        if thought and (thinking := self._whole("thinking", thought)):
            out.append(events.Thinking(thinking))
        text = delta.content or choice.text or ""
        rows = _rows(choice.logprobs) if choice.logprobs is not None else None
        whole = self._whole("text", text) if text else ""
        if whole or rows:
            out.append(Text(whole, 0, self._logprobs(rows) if rows else None))
        for call in delta.tool_calls or ():
            self._read_call(call, out)
        if text or thought or delta.tool_calls:
            self.tokens += 1
        if choice.finish_reason is not None:
            if isinstance(choice.stop_reason, str):
                self._stop_sequence = choice.stop_reason
            self._reason = _REASONS.get(choice.finish_reason, "stop")
            if self._has_calls and self._reason == "stop":  # vLLM, for a function that was named
                self._reason = "tool_calls"

    def _read_call(self, call: ToolCallRow, out: list[Event]) -> None:
        function = call.function
        name = function.name if function is not None else None
        arguments = function.arguments if function is not None else None
        if arguments:
            arguments = self._whole("call", arguments, call.index)
        if call.id is None and name is None and not arguments:
            return
        self._has_calls = True
        out.append(ToolCallDelta(call.index, arguments or "", call.id, name))


_NATIVE_MANY = msgspec.json.Decoder(list[NativeChunk])
_NATIVE_ONE = msgspec.json.Decoder(NativeChunk)


class NativeReader(AnswerReader[NativeChunk]):
    """Chunks of llama-server's `/completion` and `/infill`: every one has exact counts."""

    def _decode_many(self, array: bytes) -> Sequence[NativeChunk]:
        return _NATIVE_MANY.decode(array)

    def _decode_one(self, payload: bytes) -> NativeChunk:
        return _NATIVE_ONE.decode(payload)

    def _convert(self, value: Any) -> NativeChunk:
        return msgspec.convert(value, NativeChunk)

    def _read_all(self, chunks: Sequence[NativeChunk], out: list[Event]) -> None:
        append = out.append
        is_plain = not self._has_halves
        for chunk in chunks:
            text = chunk.content
            if text and is_plain and not chunk.stop and chunk.completion_probabilities is None:
                self.tokens = chunk.tokens_predicted
                append(Text(text))
                continue
            self._read(chunk, out)
            if self.is_finished:
                return

    def _read(self, chunk: NativeChunk, out: list[Event]) -> None:
        if chunk.error is not None:
            raise self._failures.told(500, chunk.error)
        if chunk.content is None:
            raise garbage(self._failures.driver, "an object without content", "not a completion event")
        self.tokens = max(self.tokens, chunk.tokens_predicted)
        self.prompt_tokens = max(self.prompt_tokens, chunk.tokens_evaluated)
        self._timings = chunk.timings or self._timings
        if chunk.prompt_progress is not None:
            self._report_progress(chunk.prompt_progress, out)
        text = self._whole("text", chunk.content) if chunk.content else ""
        if text or chunk.completion_probabilities:
            out.append(Text(text, 0, self._logprobs(chunk.completion_probabilities or ()) or None))
        if chunk.stop:
            self._reason = "length" if chunk.stop_type == "limit" else "stop"
            self._stop_sequence = chunk.stopping_word or None
            self._finish_known(out)

    def _counted(self) -> Usage:
        # Some events carry timings before the end; the counts beside them are the newer ones.
        cached = self._timings.cache_n if self._timings is not None else self.cached_tokens
        return Usage(self.prompt_tokens, self.tokens, cached)


def _seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000.0


def _are_whole(rows: Rows, keep: int | None) -> TypeGuard[tuple[TokenLogprob, ...]]:
    """All is told, in order, and no more than is kept."""
    for row in rows:
        if type(row) is not TokenLogprob or (keep is not None and len(row.top) > keep):
            return False
        previous = math.inf
        for top in row.top:
            if top.logprob > previous:
                return False
            previous = top.logprob
    return True


def _logprob(row: TokenRow | TokenLogprob, keep: int | None) -> TokenLogprob:
    if isinstance(row, TokenLogprob):
        return TokenLogprob(row.token, row.logprob, row.bytes, _likeliest(row.top, keep))
    tops = tuple([TopLogprob(*_filled(top)) for top in row.top_logprobs])
    return TokenLogprob(*_filled(row), _likeliest(tops, keep))


def _likeliest(tops: tuple[TopLogprob, ...], keep: int | None) -> tuple[TopLogprob, ...]:
    """vLLM puts the token that was chosen first, likely or not."""
    return tuple(sorted(tops, key=_likeliness, reverse=True)[:keep])


def _filled(row: TokenRow | TopRow) -> tuple[str, float, tuple[int, ...]]:
    told = row.bytes if row.bytes is not None else tuple(row.token.encode("utf-8", "replace"))
    return without_surrogates(row.token), _UNLIKELY if row.logprob is None else row.logprob, told


def _rows(logprobs: ChoiceLogprobs[TokenRow] | ChoiceLogprobs[TokenLogprob]) -> Rows | None:
    """In chat's shape, whichever it came in."""
    if logprobs.content is not None or logprobs.tokens is None:
        return logprobs.content
    told, tops = logprobs.token_logprobs or (), logprobs.top_logprobs or ()
    return tuple(
        TokenRow(
            token,
            told[at] if at < len(told) else None,
            None,
            _top_rows(tops[at]) if at < len(tops) else (),
        )
        for at, token in enumerate(logprobs.tokens)
    )


def _top_rows(top: dict[str, float | None] | None) -> tuple[TopRow, ...]:
    return tuple(TopRow(token, logprob) for token, logprob in (top or {}).items())


def _likeliness(row: TopLogprob) -> float:
    return row.logprob
