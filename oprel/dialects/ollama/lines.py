"""The wire form of generated text: NDJSON lines while it streams, one object when it doesn't.

The constant parts of a stream's lines are encoded once; for each event only its text is encoded, and the time is
written once for all events that arrived together.
"""

from __future__ import annotations

import secrets
import string
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import msgspec
from msgspec import Struct

from oprel.dialects.ollama.durations import created_at
from oprel.dialects.ollama.gojson import dumps, escaped
from oprel.schema import Event, Finish, Text, TokenLogprob, ToolCallDelta, events

__all__ = ["CHAT", "GENERATE", "Collected", "DebugInfo", "Final", "Lines", "Metrics", "Shape", "ToolCallOut"]

_encode: Callable[[object], bytes] = msgspec.json.Encoder().encode


class Shape(Struct, frozen=True):
    """What stands around a piece of text, and around tool calls: the two endpoints differ in nothing else while they
    stream."""

    name: Literal["generate", "chat"]
    text_open: bytes
    thinking_open: bytes
    close: bytes
    calls_open: bytes
    calls_close: bytes


GENERATE = Shape(
    "generate",
    b'","response":',
    b'","response":"","thinking":',
    b',"done":false',
    b'","response":"","done":false,"tool_calls":',
    b"",
)
CHAT = Shape(
    "chat",
    b'","message":{"role":"assistant","content":',
    b'","message":{"role":"assistant","content":"","thinking":',
    b'},"done":false',
    b'","message":{"role":"assistant","content":"","tool_calls":',
    b'},"done":false',
)


class FunctionOut(Struct, frozen=True):
    index: int
    name: str
    arguments: dict[str, Any]


class ToolCallOut(Struct, frozen=True):
    id: str
    function: FunctionOut


class LogprobOut(Struct, frozen=True, omit_defaults=True):
    token: str
    logprob: float
    bytes: Sequence[int] = ()
    top_logprobs: Sequence[LogprobOut] = ()


class Metrics(Struct, frozen=True, kw_only=True):
    """Nanoseconds and tokens."""

    total_duration: int = 0
    load_duration: int = 0
    prompt_eval_count: int = 0
    prompt_eval_duration: int = 0
    eval_count: int = 0
    eval_duration: int = 0


class DebugInfo(Struct, frozen=True, omit_defaults=True):
    rendered_template: str
    image_count: int = 0


class Final(Struct, frozen=True, kw_only=True):
    """What a whole answer, or the last line of a stream, says; each endpoint orders it its own way.

    Empty sequences are left out, which is why they become tuples: the one empty tuple is the default itself.
    """

    model: str
    text: str = ""
    thinking: str = ""
    done: bool = True
    done_reason: str = ""
    context: Sequence[int] = ()
    metrics: Metrics = Metrics()
    tool_calls: Sequence[ToolCallOut] = ()
    debug: DebugInfo | None = None
    logprobs: Sequence[LogprobOut | TokenLogprob] = ()
    warnings: Sequence[events.Warning] = ()

    def encode(self, shape: Shape) -> bytes:
        return dumps(self._generate() if shape.name == "generate" else self._chat())

    def _generate(self) -> GenerateOut:
        return GenerateOut(
            model=self.model,
            created_at=created_at(),
            response=self.text,
            thinking=self.thinking,
            done=self.done,
            done_reason=self.done_reason,
            context=tuple(self.context),
            tool_calls=tuple(self.tool_calls),
            debug_info=self.debug,
            logprobs=tuple(self.logprobs),
            oprel=_told(self.warnings),
            **msgspec.structs.asdict(self.metrics),
        )

    def _chat(self) -> ChatOut:
        return ChatOut(
            model=self.model,
            created_at=created_at(),
            message=MessageOut("assistant", self.text, self.thinking, tuple(self.tool_calls)),
            done=self.done,
            done_reason=self.done_reason,
            debug_info=self.debug,
            logprobs=tuple(self.logprobs),
            oprel=_told(self.warnings),
            **msgspec.structs.asdict(self.metrics),
        )


class Told(Struct, frozen=True):
    """What Oprel tells beside Ollama's fields, where there is anything: what the request lost."""

    warnings: Sequence[str]


def _told(warnings: Sequence[events.Warning]) -> Told | None:
    unique = dict.fromkeys(f"{warning.code}; {warning.text}" for warning in warnings)
    return Told(tuple(unique)) if unique else None


class GenerateOut(Struct, frozen=True, kw_only=True, omit_defaults=True):
    model: str
    created_at: str
    response: str
    thinking: str = ""
    done: bool
    done_reason: str = ""
    context: Sequence[int] = ()
    total_duration: int = 0
    load_duration: int = 0
    prompt_eval_count: int = 0
    prompt_eval_duration: int = 0
    eval_count: int = 0
    eval_duration: int = 0
    tool_calls: Sequence[ToolCallOut] = ()
    debug_info: DebugInfo | None = msgspec.field(default=None, name="_debug_info")
    logprobs: Sequence[LogprobOut | TokenLogprob] = ()
    oprel: Told | None = None


class MessageOut(Struct, frozen=True, omit_defaults=True):
    role: str
    content: str
    thinking: str = ""
    tool_calls: Sequence[ToolCallOut] = ()


class ChatOut(Struct, frozen=True, kw_only=True, omit_defaults=True):
    model: str
    created_at: str
    message: MessageOut
    done: bool
    done_reason: str = ""
    debug_info: DebugInfo | None = msgspec.field(default=None, name="_debug_info")
    logprobs: Sequence[LogprobOut | TokenLogprob] = ()
    total_duration: int = 0
    load_duration: int = 0
    prompt_eval_count: int = 0
    prompt_eval_duration: int = 0
    eval_count: int = 0
    eval_duration: int = 0
    oprel: Told | None = None


class _Call:
    def __init__(self) -> None:
        self.id: str | None = None
        self.name = ""
        self.arguments: list[str] = []


class ToolCalls:
    """Puts the pieces of calls together: `/api` sends each call whole."""

    def __init__(self) -> None:
        self._calls: dict[int, _Call] = {}

    def add(self, delta: ToolCallDelta) -> None:
        call = self._calls.setdefault(delta.call, _Call())
        call.id = call.id or delta.id
        call.name = call.name or delta.name or ""
        call.arguments.append(delta.arguments)

    def finished(self) -> tuple[tuple[ToolCallOut, ...], str]:
        """The whole calls, and the text of those that never became one (cut off, or not a JSON object), which is
        answered as text so that nothing of what the model wrote is lost."""
        whole: list[ToolCallOut] = []
        broken: list[str] = []
        for call in self._calls.values():
            written = "".join(call.arguments)
            arguments = _object(written or "{}")
            if arguments is None or not call.name:
                broken.append(written)
                continue
            whole.append(ToolCallOut(_call_id(call.id), FunctionOut(len(whole), call.name, arguments)))
        return tuple(whole), "".join(broken)


def _object(written: str) -> dict[str, Any] | None:
    try:
        return msgspec.json.decode(written, type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError):
        return None


_ID_LETTERS = string.ascii_lowercase + string.digits


def _call_id(given: str | None) -> str:
    if given and given.startswith("call_"):
        return given
    return "call_" + "".join(secrets.choice(_ID_LETTERS) for _ in range(8))


class Lines:
    """One stream's encoder. `finish` is set once the last event came; `text` holds all text when it is kept."""

    def __init__(self, shape: Shape, model: str, *, hide_thinking: bool = False, keep_text: bool = False) -> None:
        self.finish: Finish | None = None
        self.calls = ToolCalls()
        self.text: list[str] = []
        self._hide_thinking = hide_thinking
        self.warnings: list[events.Warning] = []
        self._keep_text = keep_text
        self._open = b'{"model":' + dumps(model) + b',"created_at":"'
        self._text_open = shape.text_open
        self._thinking_open = shape.thinking_open
        self._close = shape.close
        self._tail = shape.close + b"}\n"
        self._shape = shape

    def encode(self, batch: Iterable[Event]) -> bytes:
        """The lines of what arrived together, one for each event that has something to say."""
        opening = self._open + created_at().encode()
        text_open = opening + self._text_open
        tail = self._tail
        lines: list[bytes] = []
        for event in batch:
            kind = type(event)
            if kind is Text:
                if event.logprobs is not None:  # type: ignore[union-attr]  # `kind` says which it is, here and below
                    lines.append(self._with_logprobs(text_open, event))  # type: ignore[arg-type]
                elif event.text:  # type: ignore[union-attr]
                    lines.append(text_open + _encode(event.text) + tail)  # type: ignore[union-attr]
                if self._keep_text:
                    self.text.append(event.text)  # type: ignore[union-attr]
            elif kind is events.Thinking:
                if event.text and not self._hide_thinking:  # type: ignore[union-attr]
                    lines.append(opening + self._thinking_open + _encode(event.text) + tail)  # type: ignore[union-attr]
            elif kind is ToolCallDelta:
                self.calls.add(event)  # type: ignore[arg-type]
            elif kind is Finish:
                self.finish = event  # type: ignore[assignment]
                break
            elif kind is events.Warning:
                self.warnings.append(event)  # type: ignore[arg-type]
        return escaped(b"".join(lines))

    def tool_calls(self) -> bytes:
        """The line of the tool calls, and of text that was meant to be one; empty without any."""
        whole, broken = self.calls.finished()
        opening = self._open + created_at().encode()
        line = b""
        if broken:
            line += opening + self._text_open + _encode(broken) + self._tail
        if whole:
            line += opening + self._shape.calls_open + _encode(whole) + self._shape.calls_close + b"}\n"
        return escaped(line)

    def _with_logprobs(self, text_open: bytes, event: Text) -> bytes:
        told = _encode(logprobs_out(event.logprobs or ()))
        return text_open + _encode(event.text) + self._close + b',"logprobs":' + told + b"}\n"


class Collected:
    """All events of an answer that isn't streamed, put together."""

    def __init__(self, *, hide_thinking: bool = False) -> None:
        self.finish: Finish | None = None
        self.calls = ToolCalls()
        self.text: list[str] = []
        self.thinking: list[str] = []
        self.logprobs: list[LogprobOut | TokenLogprob] = []
        self.warnings: list[events.Warning] = []
        self._hide_thinking = hide_thinking

    def add(self, batch: Iterable[Event]) -> None:
        for event in batch:
            match event:
                case Text():
                    self.text.append(event.text)
                    self.logprobs += logprobs_out(event.logprobs or ())
                case events.Thinking() if not self._hide_thinking:
                    self.thinking.append(event.text)
                case events.Warning():
                    self.warnings.append(event)
                case ToolCallDelta():
                    self.calls.add(event)
                case Finish():
                    self.finish = event
                    return


def logprobs_out(given: Iterable[TokenLogprob]) -> list[LogprobOut | TokenLogprob]:
    """Ours are written as Ollama writes them, where none is above 0 or without bytes: nothing is copied then."""
    return [token if _is_as_ollama_writes(token) else _logprob_out(token) for token in given]


def _is_as_ollama_writes(token: TokenLogprob) -> bool:
    if token.logprob > 0.0 or not token.bytes or not token.top:
        return False
    for top in token.top:  # noqa: SIM110 - for every token: a generator takes twice as long
        if top.logprob > 0.0 or not top.bytes:
            return False
    return True


def _logprob_out(token: TokenLogprob) -> LogprobOut:
    tops = tuple([LogprobOut(top.token, min(0.0, top.logprob), top.bytes) for top in token.top])
    return LogprobOut(token.token, min(0.0, token.logprob), token.bytes, tops)
