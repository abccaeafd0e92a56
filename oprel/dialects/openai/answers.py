"""Answers from engines' events, whole and streamed.

A stream's chunks differ in little but their text, so the bytes around it are made once a stream, and for each event
only the text is encoded and set between them. What arrived together is one write.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Iterable

import msgspec
from msgspec import UNSET, Struct

from oprel.dialects.openai.wire import (
    AnswerMessage,
    ChatAnswer,
    ChatChoice,
    ChoiceLogprobs,
    CompletionAnswer,
    CompletionChoice,
    CompletionDetails,
    FunctionCall,
    FunctionPiece,
    LegacyLogprobs,
    PromptDetails,
    ToolCallAnswer,
    ToolCallPiece,
    UsageBody,
)
from oprel.schema import Event, Finish, Plan, Text, TokenLogprob, ToolCallDelta, Usage
from oprel.schema.events import Thinking

__all__ = [
    "ChatStream",
    "CompletionStream",
    "Label",
    "call_id",
    "chat_answer",
    "completion_answer",
    "label",
]

_encode = msgspec.json.Encoder().encode
_DONE = b"data: [DONE]\n\n"


class Label(Struct, frozen=True):
    """What all chunks of one answer share. `model` is what the client asked for."""

    id: str
    created: int
    model: str
    fingerprint: str


def label(prefix: str, model: str, plan: Plan) -> Label:
    """`fingerprint` is the same as long as the same weights run on the same engine, with the same plan."""
    made_of = f"{plan.driver}\n{plan.engine}\n{plan.model_digest}\n{plan.device}\n{plan.context_tokens}"
    fingerprint = "fp_" + hashlib.blake2s(made_of.encode(), digest_size=5).hexdigest()
    return Label(f"{prefix}-{secrets.token_hex(14)}", int(time.time()), model, fingerprint)


# Whole answers.


class _Collected:
    """What one choice came to."""

    def __init__(self) -> None:
        self.text: list[str] = []
        self.thinking: list[str] = []
        self.logprobs: list[TokenLogprob] = []
        self.calls: dict[int, ToolCallAnswer] = {}

    def add_call(self, event: ToolCallDelta) -> None:
        call = self.calls.get(event.call)
        if call is None:
            function = FunctionCall(event.name or "", event.arguments)
            self.calls[event.call] = ToolCallAnswer(event.id or call_id(), "function", function)
        else:
            call.function.arguments += event.arguments


def _collect(events: Iterable[Event], choices: int) -> tuple[list[_Collected], Finish]:
    collected = [_Collected() for _ in range(choices)]
    finish: Finish | None = None
    for event in events:
        match event:
            case Text():
                collected[event.index].text.append(event.text)
                collected[event.index].logprobs += event.logprobs or ()
            case Thinking():
                collected[event.index].thinking.append(event.text)
            case ToolCallDelta():
                collected[event.index].add_call(event)
            case Finish():
                finish = event
            case _:
                pass
    if finish is None:
        raise ValueError("the events of an answer have no Finish")
    return collected, finish


def chat_answer(events: Iterable[Event], label: Label, *, choices: int, has_logprobs: bool) -> bytes:
    collected, finish = _collect(events, choices)
    answer = ChatAnswer(
        id=label.id,
        object="chat.completion",
        created=label.created,
        model=label.model,
        system_fingerprint=label.fingerprint,
        choices=[
            ChatChoice(
                index=index,
                message=_message(choice),
                logprobs=ChoiceLogprobs(choice.logprobs) if has_logprobs else None,
                finish_reason=_reason(reason, has_calls=bool(choice.calls)),
            )
            for index, (choice, reason) in enumerate(zip(collected, finish.reasons, strict=True))
        ],
        usage=_usage(finish.usage),
    )
    return _encode(answer)


def _message(choice: _Collected) -> AnswerMessage:
    text = "".join(choice.text)
    message = AnswerMessage("assistant", None if choice.calls and not text else text)
    if choice.thinking:
        message.reasoning_content = message.reasoning = "".join(choice.thinking)
    if choice.calls:
        message.tool_calls = list(choice.calls.values())
    return message


def completion_answer(
    events: Iterable[Event], label: Label, *, choices: int, prefixes: tuple[str, ...], logprobs: int | None
) -> bytes:
    """`prefixes`: what goes before each choice's text (the prompt, with `echo`)."""
    collected, finish = _collect(events, choices)
    answer = CompletionAnswer(
        id=label.id,
        object="text_completion",
        created=label.created,
        model=label.model,
        system_fingerprint=label.fingerprint,
        choices=[
            CompletionChoice(
                index=index,
                text=prefix + "".join((*choice.thinking, *choice.text)),
                logprobs=None if logprobs is None else _legacy(choice.logprobs, logprobs, len(prefix)),
                finish_reason=reason,
            )
            for index, (choice, prefix, reason) in enumerate(zip(collected, prefixes, finish.reasons, strict=True))
        ],
        usage=_usage(finish.usage),
    )
    return _encode(answer)


def _legacy(logprobs: Iterable[TokenLogprob], top: int, offset: int) -> LegacyLogprobs:
    found = LegacyLogprobs([], [], [] if top else None, [])
    for entry in logprobs:
        found.tokens.append(entry.token)
        found.token_logprobs.append(entry.logprob)
        found.text_offset.append(offset)
        if found.top_logprobs is not None:
            found.top_logprobs.append({other.token: other.logprob for other in entry.top})
        offset += len(entry.token)
    return found


def _usage(usage: Usage) -> UsageBody:
    """What isn't known isn't told."""
    return UsageBody(
        prompt_tokens=usage.prompt,
        completion_tokens=usage.completion,
        total_tokens=usage.prompt + usage.completion,
        prompt_tokens_details=PromptDetails(usage.cached),
        completion_tokens_details=CompletionDetails(UNSET if usage.reasoning is None else usage.reasoning),
    )


def _reason(reason: str, *, has_calls: bool) -> str:
    return "tool_calls" if has_calls and reason == "stop" else reason


def call_id() -> str:
    return f"call_{secrets.token_hex(12)}"


# Streams.


def _envelope(label: Label, object_: str) -> bytes:
    """The start of every chunk of a stream, up to its choices."""
    fields = {
        "id": label.id,
        "object": object_,
        "created": label.created,
        "model": label.model,
        "system_fingerprint": label.fingerprint,
    }
    return b"data: " + _encode(fields)[:-1] + b',"choices":['


class ChatStream:
    """Encodes one streamed chat answer: `start`, then `encode` for each tuple of events; the one with the Finish
    ends the stream. `include_usage`: a last chunk tells the usage, and all others say `"usage":null`."""

    def __init__(self, label: Label, *, choices: int, include_usage: bool) -> None:
        self._envelope = _envelope(label, "chat.completion.chunk")
        self._include_usage = include_usage
        self._end = b'],"usage":null}\n\n' if include_usage else b"]}\n\n"
        self._openings = [self._envelope + b'{"index":%d,"delta":' % index for index in range(choices)]
        self._texts = [opening + b'{"content":' for opening in self._openings]
        self._text_end = b'},"logprobs":null,"finish_reason":null}' + self._end
        self._calls: set[tuple[int, int]] = set()

    def start(self) -> bytes:
        """The first delta of each choice, which says whose turn it is."""
        role = b'{"role":"assistant","content":"","refusal":null'
        return b"".join(opening + role + self._text_end for opening in self._openings)

    def encode(self, events: tuple[Event, ...]) -> bytes:
        parts: list[bytes] = []
        for event in events:
            if type(event) is Text:
                if event.logprobs is None:
                    if event.text:
                        parts += (self._texts[event.index], _encode(event.text), self._text_end)
                else:
                    parts.append(self._text_with_logprobs(event, event.logprobs))
            elif type(event) is Thinking:
                parts.append(self._thinking(event))
            elif type(event) is ToolCallDelta:
                parts.append(self._call(event))
            elif type(event) is Finish:
                parts.append(self._finish(event))
        return b"".join(parts)

    def _text_with_logprobs(self, event: Text, logprobs: tuple[TokenLogprob, ...]) -> bytes:
        told = _encode(logprobs)
        middle = b'},"logprobs":{"content":%s,"refusal":null},"finish_reason":null}' % told
        return self._texts[event.index] + _encode(event.text) + middle + self._end

    def _thinking(self, event: Thinking) -> bytes:
        text = _encode(event.text)
        opening = self._openings[event.index]
        return b'%s{"reasoning_content":%s,"reasoning":%s%s' % (opening, text, text, self._text_end)

    def _call(self, event: ToolCallDelta) -> bytes:
        key = (event.index, event.call)
        piece = ToolCallPiece(event.call, FunctionPiece(event.arguments))
        if key not in self._calls:
            self._calls.add(key)
            piece.id, piece.type = event.id or call_id(), "function"
            piece.function.name = event.name or ""
        return b'%s{"tool_calls":[%s]%s' % (self._openings[event.index], _encode(piece), self._text_end)

    def _finish(self, event: Finish) -> bytes:
        parts = []
        for index, reason in enumerate(event.reasons):
            has_calls = any(choice == index for choice, _ in self._calls)
            told = _encode(_reason(reason, has_calls=has_calls))
            parts.append(b'%s{},"logprobs":null,"finish_reason":%s}%s' % (self._openings[index], told, self._end))
        if self._include_usage:
            usage = _encode(_usage(event.usage))
            parts.append(b'%s],"usage":%s}\n\n' % (self._envelope, usage))
        parts.append(_DONE)
        return b"".join(parts)


class CompletionStream:
    """As ChatStream, for the older endpoint. `prefixes`: what goes before each choice's text."""

    def __init__(
        self, label: Label, *, choices: int, include_usage: bool, prefixes: tuple[str, ...], logprobs: int | None
    ) -> None:
        self._envelope = _envelope(label, "text_completion")
        self._include_usage = include_usage
        self._prefixes = prefixes
        self._logprobs = logprobs
        self._offsets = [len(prefix) for prefix in prefixes]
        self._end = b'],"usage":null}\n\n' if include_usage else b"]}\n\n"
        self._texts = [self._envelope + b'{"index":%d,"text":' % index for index in range(choices)]
        self._text_end = b',"logprobs":null,"finish_reason":null}' + self._end

    def start(self) -> bytes:
        """Empty without `echo`."""
        return b"".join(
            self._texts[index] + _encode(prefix) + self._text_end
            for index, prefix in enumerate(self._prefixes)
            if prefix
        )

    def encode(self, events: tuple[Event, ...]) -> bytes:
        parts: list[bytes] = []
        for event in events:
            if type(event) is Text:
                if event.logprobs is None:
                    if event.text:
                        parts += (self._texts[event.index], _encode(event.text), self._text_end)
                else:
                    parts.append(self._text_with_logprobs(event, event.logprobs))
            elif type(event) is Thinking:
                parts += (self._texts[event.index], _encode(event.text), self._text_end)
            elif type(event) is Finish:
                parts.append(self._finish(event))
        return b"".join(parts)

    def _text_with_logprobs(self, event: Text, logprobs: tuple[TokenLogprob, ...]) -> bytes:
        legacy = _legacy(logprobs, self._logprobs or 0, self._offsets[event.index])
        self._offsets[event.index] += sum(len(entry.token) for entry in logprobs)
        middle = b',"logprobs":%s,"finish_reason":null}' % _encode(legacy)
        return self._texts[event.index] + _encode(event.text) + middle + self._end

    def _finish(self, event: Finish) -> bytes:
        parts = [
            b'%s"","logprobs":null,"finish_reason":%s}%s' % (self._texts[index], _encode(reason), self._end)
            for index, reason in enumerate(event.reasons)
        ]
        if self._include_usage:
            parts.append(b'%s],"usage":%s}\n\n' % (self._envelope, _encode(_usage(event.usage))))
        parts.append(_DONE)
        return b"".join(parts)
