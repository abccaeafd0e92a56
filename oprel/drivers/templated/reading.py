"""A raw answer read as the template writes one: thinking, text and calls as events."""

from __future__ import annotations

import secrets
import string
from collections.abc import Iterable, Set

import msgspec

from oprel.drivers.templated.calls import CallFinder, FoundCall
from oprel.drivers.templated.thoughts import ThoughtSplitter
from oprel.schema import Event, Finish, Text, TokenLogprob, ToolCallDelta, events
from oprel.templates.marks import Marks

__all__ = ["AnswerReader", "new_call_id"]

_ALPHABET = string.ascii_lowercase + string.digits


def new_call_id() -> str:
    return "call_" + "".join(secrets.choice(_ALPHABET) for _ in range(8))


class AnswerReader:
    """For one answer. `tools` are those that may be called; `prompt` is what the answer goes on from."""

    def __init__(self, marks: Marks, *, tools: Set[str], prompt: str) -> None:
        self._thoughts: ThoughtSplitter | None = None
        if marks.thinking is not None:
            is_inside = prompt.rstrip().endswith(marks.thinking[0])
            self._thoughts = ThoughtSplitter(marks.thinking, is_inside=is_inside)
        self._finder = CallFinder(tools, mark=marks.call, end_mark=marks.call_end) if tools else None
        self._calls = 0

    @property
    def has_answer(self) -> bool:
        """Whether thinking is over, and something is being said."""
        return self._thoughts is None or self._thoughts.has_answer

    @property
    def consumed(self) -> int:
        """How many characters of the answer were thinking, and the white space around it."""
        return 0 if self._thoughts is None else self._thoughts.consumed

    def read(self, batch: Iterable[Event]) -> tuple[Event, ...]:
        """What a batch of an engine's raw answer comes to; may be nothing yet."""
        found: list[Event] = []
        for event in batch:
            if isinstance(event, Text):
                found += self._read(event)
            elif isinstance(event, Finish):
                found += self.end()
                found.append(self._finished(event))
            else:
                found.append(event)
        return tuple(found)

    def end(self) -> list[Event]:
        """What was held back."""
        pieces = self._thoughts.end() if self._thoughts is not None else []
        found = self._pieces(pieces)
        if self._finder is not None:
            found += self._said(self._finder.end())
        return found

    def _read(self, event: Text) -> list[Event]:
        pieces = self._thoughts.feed(event.text) if self._thoughts is not None else [(False, event.text)]
        found = self._pieces(pieces)
        if event.logprobs and self.has_answer:
            _attach(event.logprobs, found)
        return found

    def _pieces(self, pieces: list[tuple[bool, str]]) -> list[Event]:
        found: list[Event] = []
        for is_thought, text in pieces:
            if is_thought:
                found.append(events.Thinking(text))
            elif self._finder is None:
                found.append(Text(text))
            else:
                found += self._said(self._finder.feed(text))
        return found

    def _said(self, said: Iterable[str | FoundCall]) -> list[Event]:
        return [self._call(each) if isinstance(each, FoundCall) else Text(each) for each in said]

    def _call(self, call: FoundCall) -> ToolCallDelta:
        self._calls += 1
        return ToolCallDelta(self._calls - 1, call.arguments, new_call_id(), call.name)

    def _finished(self, finish: Finish) -> Finish:
        if self._calls and finish.reasons == ("stop",):
            return msgspec.structs.replace(finish, reasons=("tool_calls",))
        return finish


def _attach(logprobs: tuple[TokenLogprob, ...], found: list[Event]) -> None:
    """To the text that they came with, or to none, while that is held back."""
    for at, event in enumerate(found):
        if isinstance(event, Text):
            found[at] = msgspec.structs.replace(event, logprobs=logprobs)
            return
    found.append(Text("", 0, logprobs))
