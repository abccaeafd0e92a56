"""Whether a stream is one of the contract's, told batch by batch."""

from __future__ import annotations

from typing import Any, get_args

from oprel.drivers.checked.faults import Broken
from oprel.schema import Embeddings, Finish, FinishReason, Progress, Text, ToolCallDelta, Usage, events

__all__ = ["StreamCheck", "check_embeddings", "shown"]

_REASONS = frozenset(get_args(FinishReason))
_SHOWN = 60


class StreamCheck:
    """One for each stream. `is_finished` once the Finish came."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._calls: set[int] = set()
        self.is_finished = False

    def batch(self, batch: object) -> None:
        """Raises Broken."""
        if type(batch) is not tuple:
            raise self._broken(f"yielded {shown(batch)} and not a tuple of events")
        if not batch:
            raise self._broken("yielded an empty tuple")
        for event in batch:
            if self.is_finished:
                kind = "two Finish events" if isinstance(event, Finish) else f"{shown(event)} after the Finish"
                raise self._broken(f"yielded {kind}")
            self._event(event)

    def end(self) -> None:
        if not self.is_finished:
            raise self._broken("ended its answer without a Finish")

    def _event(self, event: object) -> None:
        kind = type(event)
        if kind is Text or kind is events.Thinking:
            self._text(event)
        elif kind is ToolCallDelta:
            self._call(event)
        elif kind is Finish:
            self._finish(event)
        elif kind is not events.Warning and kind is not Progress:
            raise self._broken(f"yielded {shown(event)}, which isn't an event")

    def _text(self, event: Any) -> None:
        self._index(event)
        self._whole(event.text)

    def _call(self, event: Any) -> None:
        self._index(event)
        self._whole(event.arguments)
        if event.call in self._calls:
            return
        if not (isinstance(event.call, int) and isinstance(event.id, str) and isinstance(event.name, str)):
            raise self._broken(f"began a tool call without id and name: {shown(event)}")
        self._calls.add(event.call)

    def _finish(self, event: Any) -> None:
        self.is_finished = True
        if not isinstance(event.reasons, tuple) or len(event.reasons) != 1 or event.reasons[0] not in _REASONS:
            raise self._broken(f"finished with the reasons {shown(event.reasons)}: one choice has one reason")
        usage = event.usage
        if not isinstance(usage, Usage) or not all(map(_is_count, (usage.prompt, usage.completion, usage.cached))):
            raise self._broken(f"finished with the usage {shown(usage)}")

    def _index(self, event: Any) -> None:
        if event.index != 0:
            raise self._broken(f"yielded the index {shown(event.index)}: an engine answers one choice, and it is 0")

    def _whole(self, text: object) -> None:
        if type(text) is not str:
            raise self._broken(f"yielded {shown(text)} as text")
        if text.isascii():
            return
        try:
            text.encode()
        except UnicodeEncodeError:
            raise self._broken(f"yielded half a code point: {shown(text)}") from None

    def _broken(self, did: str) -> Broken:
        return Broken(f"its {self._what}() {did}")


def check_embeddings(found: object, *, count: int) -> None:
    """Raises Broken."""
    what = "its embed()"
    if not isinstance(found, Embeddings):
        raise Broken(f"{what} returned {shown(found)} and not Embeddings")
    if len(found.vectors) != count:
        raise Broken(f"{what} returned {len(found.vectors)} vectors for {count} inputs")
    if not _is_count(found.prompt_tokens):
        raise Broken(f"{what} counted {shown(found.prompt_tokens)} tokens")
    if len({len(vector) for vector in found.vectors}) > 1:
        raise Broken(f"{what} returned vectors of different lengths")
    for vector in found.vectors:
        try:
            float(sum(vector))
        except (TypeError, ValueError) as error:
            raise Broken(f"{what} returned a vector that isn't of numbers: {error}") from None


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0


def shown(value: object) -> str:
    try:
        text = ascii(value)
    except Exception:
        text = f"a {type(value).__name__}"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
