"""Answers from engines' events, whole and streamed.

An answer is a list of blocks: thinking, text and calls of tools, in the order in which the model made them. A stream
opens, fills and closes one block after another; the bytes around a text are made once, and for each event only the text
is encoded and set between them. What arrived together is one write.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
from collections.abc import Iterable
from typing import Any

import msgspec
from msgspec import Struct

from oprel.dialects.anthropic.wire import Answer, TextAnswer, ThinkingAnswer, ToolUseAnswer, UsageBody
from oprel.errors import EngineFailedError
from oprel.schema import Event, Finish, Plan, Progress, Text, ToolCallDelta, Usage
from oprel.schema.events import Thinking

__all__ = ["Label", "MessageStream", "label", "message_answer"]

_encode = msgspec.json.Encoder().encode
_PING = b'event: ping\ndata: {"type":"ping"}\n\n'
_STOP = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'


class Label(Struct, frozen=True):
    """What an answer is known by, and what tells why it ended. `model` is what the client asked for."""

    id: str
    model: str
    driver: str
    max_tokens: int
    context_tokens: int
    shows_thinking: bool


def label(model: str, plan: Plan, *, max_tokens: int, shows_thinking: bool) -> Label:
    return Label(f"msg_{secrets.token_hex(12)}", model, plan.driver, max_tokens, plan.context_tokens, shows_thinking)


# Whole answers.


class _Call(Struct):
    id: str
    name: str
    arguments: list[str]


def message_answer(events: Iterable[Event], label: Label) -> bytes:
    """Raises EngineFailedError for a call whose arguments aren't an object, unless `max_tokens` cut it off: then it is
    left out, for nobody should act on it."""
    blocks: list[_Joined | _Call] = []
    calls: dict[int, _Call] = {}
    finish: Finish | None = None
    for event in events:
        match event:
            case Text(text=text) if text:
                _joined(blocks, "text").texts.append(text)
            case Thinking(text=text) if text:
                _joined(blocks, "thinking").texts.append(text)
            case ToolCallDelta():
                call = calls.get(event.call)
                if call is None:
                    call = calls[event.call] = _Call(event.id or _call_id(), event.name or "", [])
                    blocks.append(call)
                call.arguments.append(event.arguments)
            case Finish():
                finish = event
            case _:
                pass
    if finish is None:
        raise ValueError("the events of an answer have no Finish")
    content = [block for made in blocks if (block := _block(made, finish, label)) is not None]
    reason = _reason(finish, label, has_calls=bool(calls))
    answer = Answer(label.id, label.model, _usage(finish.usage), content, reason, finish.stop_sequence)
    return _encode(answer)


class _Joined(Struct):
    kind: str
    texts: list[str]


def _joined(blocks: list[_Joined | _Call], kind: str) -> _Joined:
    last = blocks[-1] if blocks else None
    if isinstance(last, _Joined) and last.kind == kind:
        return last
    made = _Joined(kind, [])
    blocks.append(made)
    return made


def _block(made: _Joined | _Call, finish: Finish, label: Label) -> TextAnswer | ThinkingAnswer | ToolUseAnswer | None:
    if isinstance(made, _Call):
        arguments = _arguments("".join(made.arguments), made.name, finish, label)
        return None if arguments is None else ToolUseAnswer(made.id, made.name, arguments)
    text = "".join(made.texts)
    if made.kind == "text":
        return TextAnswer(text)
    return ThinkingAnswer(text if label.shows_thinking else "", _signature(text))


def _arguments(text: str, name: str, finish: Finish, label: Label) -> dict[str, Any] | None:
    try:
        return msgspec.json.decode(text or "{}", type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError) as error:
        if finish.reasons[0] == "length":
            return None
        raise EngineFailedError(
            f"the model called {name!r} with arguments that are no JSON object: ask again", driver=label.driver
        ) from error


def _signature(thinking: str) -> str:
    """Clients want one to send back; nobody checks it here."""
    return base64.b64encode(hashlib.blake2s(thinking.encode("utf-8", "surrogatepass")).digest()).decode()


def _usage(usage: Usage) -> UsageBody:
    """Anthropic counts what came from the cache apart."""
    return UsageBody(usage.prompt - usage.cached, usage.completion, 0, usage.cached)


def _reason(finish: Finish, label: Label, *, has_calls: bool) -> str:
    if finish.stop_sequence is not None:
        return "stop_sequence"
    match finish.reasons[0]:
        case "length":
            used = finish.usage.prompt + finish.usage.completion
            is_full = finish.usage.completion < label.max_tokens and used >= label.context_tokens
            return "model_context_window_exceeded" if is_full else "max_tokens"
        case "content_filter":
            return "refusal"
        case "tool_calls":
            return "tool_use"
        case _:
            return "tool_use" if has_calls else "end_turn"


def _call_id() -> str:
    return f"toolu_{secrets.token_hex(12)}"


# Streams.


class MessageStream:
    """Encodes one streamed answer: `encode` for each tuple of events; the one with the Finish ends the stream. The
    first tuple begins it, for it may tell how long the prompt is."""

    def __init__(self, label: Label) -> None:
        self._label = label
        self._has_begun = False
        self._index = -1
        self._open = ""  # "text", "thinking", a call's "call N", or "" between blocks
        self._delta = b""
        self._calls: set[int] = set()
        self._digest = hashlib.blake2s()

    def start(self) -> bytes:
        return b""

    def encode(self, events: tuple[Event, ...]) -> bytes:
        parts: list[bytes] = []
        if not self._has_begun:
            self._has_begun = True
            parts.append(self._begin(events))
        for event in events:
            if type(event) is Text:
                if event.text:
                    self._enter("text", b'{"type":"text","text":""}', b'"text_delta","text":', parts)
                    parts += (self._delta, _encode(event.text), b"}}\n\n")
            elif type(event) is Thinking:
                self._think(event, parts)
            elif type(event) is ToolCallDelta:
                self._call(event, parts)
            elif type(event) is Finish:
                self._finish(event, parts)
        return b"".join(parts)

    def _begin(self, events: tuple[Event, ...]) -> bytes:
        """The prompt's length, where the engine has told it by now; the last event tells it in any case."""
        told = max((event.total for event in events if isinstance(event, Progress)), default=0)
        message = Answer(self._label.id, self._label.model, UsageBody(told, 0), [])
        return b'event: message_start\ndata: {"type":"message_start","message":%s}\n\n%s' % (_encode(message), _PING)

    def _enter(self, kind: str, block: bytes, delta: bytes, parts: list[bytes]) -> None:
        """Opens a block of this kind, unless it is the open one. `delta` begins each of its deltas."""
        if self._open == kind:
            return
        self._leave(parts)
        self._open = kind
        self._index += 1
        parts.append(
            b'event: content_block_start\ndata: {"type":"content_block_start","index":%d,"content_block":%s}\n\n'
            % (self._index, block)
        )
        self._delta = _delta(self._index) + delta

    def _leave(self, parts: list[bytes]) -> None:
        if not self._open:
            return
        if self._open == "thinking":
            signature = base64.b64encode(self._digest.digest()).decode()
            parts.append(b'%s"signature_delta","signature":%s}}\n\n' % (_delta(self._index), _encode(signature)))
            self._digest = hashlib.blake2s()
        parts.append(b'event: content_block_stop\ndata: {"type":"content_block_stop","index":%d}\n\n' % self._index)
        self._open = ""

    def _think(self, event: Thinking, parts: list[bytes]) -> None:
        if not event.text:
            return
        block = b'{"type":"thinking","thinking":"","signature":""}'
        self._enter("thinking", block, b'"thinking_delta","thinking":', parts)
        self._digest.update(event.text.encode("utf-8", "surrogatepass"))
        if self._label.shows_thinking:
            parts += (self._delta, _encode(event.text), b"}}\n\n")

    def _call(self, event: ToolCallDelta, parts: list[bytes]) -> None:
        kind = f"call {event.call}"
        if self._open != kind:
            if event.call in self._calls:
                raise EngineFailedError(
                    "the engine went on with a call of a tool after it had begun another", driver=self._label.driver
                )
            self._calls.add(event.call)
            block = _encode(ToolUseAnswer(event.id or _call_id(), event.name or "", {}))
            self._enter(kind, block, b'"input_json_delta","partial_json":', parts)
        if event.arguments:
            parts += (self._delta, _encode(event.arguments), b"}}\n\n")

    def _finish(self, event: Finish, parts: list[bytes]) -> None:
        self._leave(parts)
        reason = _reason(event, self._label, has_calls=bool(self._calls))
        delta = {"stop_reason": reason, "stop_sequence": event.stop_sequence}
        parts.append(
            b'event: message_delta\ndata: {"type":"message_delta","delta":%s,"usage":%s}\n\n'
            % (_encode(delta), _encode(_usage(event.usage)))
        )
        parts.append(_STOP)


def _delta(index: int) -> bytes:
    return b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,"delta":{"type":' % index
