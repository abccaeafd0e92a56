"""From an engine's events to the items of a response's output, and to the events of its stream.

    response.created, response.in_progress
      response.output_item.added
        response.content_part.added, response.output_text.delta …, response.output_text.done, response.content_part.done
        or response.function_call_arguments.delta …, response.function_call_arguments.done
        or response.reasoning_text.delta …, response.reasoning_text.done
      response.output_item.done
    response.completed, response.incomplete or response.failed

Text and thinking follow one another: one ends where the other begins. Calls stay open until the end, because engines
may write several at a time.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Raw, Struct

from oprel.dialects.openai.answers import call_id
from oprel.dialects.openai.responses.items import opaque_thinking
from oprel.dialects.openai.responses.keeping import Ids
from oprel.dialects.openai.responses.wire import (
    OutputCall,
    OutputItem,
    OutputMessage,
    OutputReasoning,
    OutputText,
    ReasoningText,
    SummaryText,
)
from oprel.schema import Event, Finish, Text, TokenLogprob, ToolCallDelta
from oprel.schema.events import Thinking

__all__ = ["Output", "Writer"]

_encode = msgspec.json.Encoder().encode


class Writer:
    """The stream's events as bytes, numbered; `taken` gives what was added since it was last asked."""

    def __init__(self) -> None:
        self._number = 0
        self._parts: list[bytes] = []

    def add(self, type_: str, **fields: Any) -> None:
        body = _encode({"type": type_, "sequence_number": self._number, **fields})
        self._parts += (b"event: ", type_.encode(), b"\ndata: ", body, b"\n\n")
        self._number += 1

    def add_delta(self, opening: bytes, delta: str, closing: bytes) -> None:
        """The events that there are many of: all but the number and the text is made once."""
        self._parts += (opening, b"%d" % self._number, b',"delta":', _encode(delta), closing)
        self._number += 1

    def taken(self) -> bytes:
        parts, self._parts = self._parts, []
        return b"".join(parts)


class Output:
    """`items` are whole once `close` was called. `writer` None: nobody reads along."""

    def __init__(self, ids: Ids, writer: Writer | None, *, has_summary: bool, has_opaque: bool) -> None:
        self.items: list[OutputItem] = []
        self.finish: Finish | None = None
        self._ids = ids
        self._writer = writer
        self._has_summary = has_summary
        self._has_opaque = has_opaque
        self._open: _OpenText | _OpenThinking | None = None
        self._calls: dict[int, _OpenCall] = {}

    def add(self, events: tuple[Event, ...]) -> None:
        for event in events:
            if type(event) is Text:
                self._text(event)
            elif type(event) is Thinking:
                self._thinking(event)
            elif type(event) is ToolCallDelta:
                self._call(event)
            elif type(event) is Finish:
                self.finish = event

    def close(self, *, is_whole: bool) -> None:
        """Ends all items: "completed", or "incomplete" for the last one where the answer was cut short. A response has
        at least a message, if an empty one."""
        if not self.items and is_whole:
            self._begin(_OpenText(self, len(self.items), self._ids.item("msg")))
        last = self.items[-1] if self.items else None
        self._end_open(is_whole=is_whole or self._open is None or self._open.item is not last)
        for call in self._calls.values():
            call.end(is_whole=is_whole or call.item is not last)
        self._calls = {}

    def _text(self, event: Text) -> None:
        if not event.text and not event.logprobs:
            return
        if not isinstance(self._open, _OpenText):
            self._begin(_OpenText(self, len(self.items), self._ids.item("msg")))
        assert isinstance(self._open, _OpenText)  # noqa: S101 - begun above
        self._open.add(event.text, event.logprobs or ())

    def _thinking(self, event: Thinking) -> None:
        if not isinstance(self._open, _OpenThinking):
            self._begin(_OpenThinking(self, len(self.items), self._ids.item("rs")))
        assert isinstance(self._open, _OpenThinking)  # noqa: S101 - begun above
        self._open.add(event.text)

    def _call(self, event: ToolCallDelta) -> None:
        call = self._calls.get(event.call)
        if call is None:
            self._end_open(is_whole=True)
            call = _OpenCall(self, len(self.items), self._ids.item("fc"), event)
            self._calls[event.call] = call
            self.items.append(call.item)
            call.begin()
        if event.arguments:
            call.add(event.arguments)

    def _begin(self, opened: _OpenText | _OpenThinking) -> None:
        self._end_open(is_whole=True)
        self._open = opened
        self.items.append(opened.item)
        opened.begin()

    def _end_open(self, *, is_whole: bool) -> None:
        if self._open is not None:
            self._open.end(is_whole=is_whole)
            self._open = None


class _Opened:
    """What the three kinds of items share. Events about an item carry its place and its id."""

    item: OutputItem

    def __init__(self, output: Output, index: int) -> None:
        self._writer = output._writer
        self._index = index

    def _write(self, type_: str, **fields: Any) -> None:
        if self._writer is not None:
            self._writer.add(type_, item_id=self.item.id, output_index=self._index, **fields)

    def _write_item(self, type_: str) -> None:
        if self._writer is not None:
            self._writer.add(type_, output_index=self._index, item=self.item)

    def _delta_opening(self, type_: str, **fields: Any) -> bytes:
        body = _encode({"type": type_, "item_id": self.item.id, "output_index": self._index, **fields})
        return b'event: %s\ndata: %s,"sequence_number":' % (type_.encode(), body[:-1])


class _BriefTop(Struct, gc=False):
    token: str
    logprob: float


class _Brief(Struct, gc=False):
    """A token with its logprobs as events tell it."""

    token: str
    logprob: float
    top_logprobs: list[_BriefTop]


class _OpenText(_Opened):
    """Logprobs are written as they come, and once more at the end for the four events that tell all of them."""

    def __init__(self, output: Output, index: int, item_id: str) -> None:
        super().__init__(output, index)
        self._part = OutputText("output_text", "", [], Raw(b"[]"))
        self.item: OutputMessage = OutputMessage("message", item_id, "in_progress", "assistant", [])
        self._pieces: list[str] = []
        self._logprobs: list[TokenLogprob] = []
        self._brief: list[bytes] = []
        self._opening = self._delta_opening("response.output_text.delta", content_index=0)

    def begin(self) -> None:
        self._write_item("response.output_item.added")
        self._write("response.content_part.added", content_index=0, part=self._part)

    def add(self, text: str, logprobs: tuple[TokenLogprob, ...]) -> None:
        self._pieces.append(text)
        self._logprobs += logprobs
        if self._writer is None:
            return
        brief = b",".join([_encode(_without_bytes(entry)) for entry in logprobs])
        if brief:
            self._brief.append(brief)
        self._writer.add_delta(self._opening, text, b',"logprobs":[%s]}\n\n' % brief)

    def end(self, *, is_whole: bool) -> None:
        self._part.text, self._part.logprobs = "".join(self._pieces), Raw(_encode(self._logprobs))
        self.item.content = [self._part]
        self.item.status = "completed" if is_whole else "incomplete"
        if self._writer is not None:
            brief = Raw(b"[%s]" % b",".join(self._brief))
            self._write("response.output_text.done", content_index=0, text=self._part.text, logprobs=brief)
            self._write("response.content_part.done", content_index=0, part=self._part)
            self._write_item("response.output_item.done")


class _OpenThinking(_Opened):
    """As `reasoning_text`, or as a summary where one was asked for."""

    def __init__(self, output: Output, index: int, item_id: str) -> None:
        super().__init__(output, index)
        self.item: OutputReasoning = OutputReasoning("reasoning", item_id, "in_progress", [])
        self._has_summary = output._has_summary
        self._has_opaque = output._has_opaque
        self._pieces: list[str] = []
        self._kind = "response.reasoning_summary_text" if self._has_summary else "response.reasoning_text"
        self._place = {"summary_index" if self._has_summary else "content_index": 0}
        self._opening = self._delta_opening(f"{self._kind}.delta", **self._place)

    def begin(self) -> None:
        self._write_item("response.output_item.added")
        if self._has_summary:
            self._write("response.reasoning_summary_part.added", summary_index=0, part=SummaryText("summary_text", ""))

    def add(self, text: str) -> None:
        self._pieces.append(text)
        if self._writer is not None:
            self._writer.add_delta(self._opening, text, b"}\n\n")

    def end(self, *, is_whole: bool) -> None:
        text = "".join(self._pieces)
        if self._has_summary:
            self.item.summary = [SummaryText("summary_text", text)]
        else:
            self.item.content = [ReasoningText("reasoning_text", text)]
        if self._has_opaque:
            self.item.encrypted_content = opaque_thinking(text)
        self.item.status = "completed" if is_whole else "incomplete"
        self._write(f"{self._kind}.done", text=text, **self._place)
        if self._has_summary:
            self._write("response.reasoning_summary_part.done", summary_index=0, part=self.item.summary[0])
        self._write_item("response.output_item.done")


class _OpenCall(_Opened):
    def __init__(self, output: Output, index: int, item_id: str, first: ToolCallDelta) -> None:
        super().__init__(output, index)
        self.item: OutputCall = OutputCall(
            "function_call", item_id, "in_progress", first.id or call_id(), first.name or "", ""
        )
        self._pieces: list[str] = []
        self._opening = self._delta_opening("response.function_call_arguments.delta")

    def begin(self) -> None:
        self._write_item("response.output_item.added")

    def add(self, arguments: str) -> None:
        self._pieces.append(arguments)
        if self._writer is not None:
            self._writer.add_delta(self._opening, arguments, b"}\n\n")

    def end(self, *, is_whole: bool) -> None:
        self.item.arguments = "".join(self._pieces)
        self.item.status = "completed" if is_whole else "incomplete"
        self._write("response.function_call_arguments.done", name=self.item.name, arguments=self.item.arguments)
        self._write_item("response.output_item.done")


def _without_bytes(entry: TokenLogprob) -> _Brief:
    return _Brief(entry.token, entry.logprob, [_BriefTop(other.token, other.logprob) for other in entry.top])
