"""Calls of tools, found in an answer's text as it arrives: JSON objects behind a mark, or from its beginning on."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Set
from typing import Any

import msgspec
from msgspec import Struct

from oprel.drivers.templated.thoughts import held_back

__all__ = ["CallFinder", "FoundCall", "calls_in"]

_NAMES = ("name", "tool_name", "function")
_ARGUMENTS = ("arguments", "parameters", "args")
_FILLING = " \t\r\n,;[]`"


class FoundCall(Struct, frozen=True):
    """`arguments` is JSON text of one object."""

    name: str
    arguments: str


class CallFinder:
    """`names` are the tools that may be called; `mark` stands before calls ("": nothing does), `end_mark` behind one.

    Text that turns out to be no call comes out as it was; calls come whole; the same comes out, however the text was
    cut. What is said behind a call waits for the end, since more calls may follow.
    """

    def __init__(self, names: Set[str], *, mark: str = "", end_mark: str = "") -> None:
        self._names = names
        self._mark = mark
        self._end_mark = end_mark
        self._left = ""
        self._scan = _ObjectScan()
        self._is_start = True
        self._is_calling = False
        self.has_calls = False

    def feed(self, text: str) -> list[str | FoundCall]:
        self._left += text
        found: list[str | FoundCall] = []
        while self._calls(found) if self._is_calling else self._text(found):
            pass
        return found

    def end(self) -> list[str | FoundCall]:
        left, self._left = self._left, ""
        if self.has_calls:
            left = self._behind_calls(left)
        return [left] if left else []

    # Each returns whether there may be more to do.

    def _text(self, found: list[str | FoundCall]) -> bool:
        begun = self._left.lstrip()
        if self._is_start:
            if not begun or self._mark.startswith(begun):
                return False
            if begun[0] in "{[" and not (self._mark and begun.startswith(self._mark)):
                return self._begin_calls()  # marks that are tokens of their own don't always show in the text
        if self._mark:
            at = self._left.find(self._mark)
            if at >= 0:
                self._say(self._left[:at], found)
                self._left = self._left[at:]
                return self._begin_calls()
        sure = len(self._left) - held_back(self._left, self._mark)
        if self._is_start and not self._left[:sure].strip():
            return False
        self._say(self._left[:sure], found)
        self._left = self._left[sure:]
        return False

    def _say(self, text: str, found: list[str | FoundCall]) -> None:
        if self._is_start and not text.strip():
            return  # white space before a call
        self._is_start = False
        found.append(text)

    def _begin_calls(self) -> bool:
        self._is_calling = True
        self._scan = _ObjectScan()
        return True

    def _calls(self, found: list[str | FoundCall]) -> bool:
        bounds = self._scan.read(self._left)
        if bounds is None:
            return False
        start, end = bounds
        calls = list(self._meant(self._left[:start], self._left[start:end]))
        self._scan = _ObjectScan()
        if calls:
            self.has_calls = True
            found += calls
            self._left = self._left[end:]
            return True
        self._is_start = self._is_calling = False
        found.append(self._left[:end])
        self._left = self._left[end:]
        return True

    def _meant(self, before: str, text: str) -> Iterator[FoundCall]:
        """The calls that an object says; where it has no name, one that stands before it counts."""
        try:
            value = msgspec.json.decode(text)
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            return
        found = list(calls_in(value, self._names))
        if not found and isinstance(value, dict) and (name := _last_name(before, self._names)) is not None:
            found = [FoundCall(name, msgspec.json.encode(value).decode())]
        yield from found

    def _behind_calls(self, text: str) -> str:
        """What is said after the marks and brackets that belong to calls."""
        while True:
            rest = text.lstrip(_FILLING)
            for mark in (self._end_mark, self._mark):
                rest = rest.removeprefix(mark) if mark else rest
            if rest == text:
                return text
            text = rest


def calls_in(value: Any, names: Set[str], *, depth: int = 3) -> Iterator[FoundCall]:
    """From JSON as models write it: one call, several, or either inside something that is called a function."""
    if depth == 0:
        return
    if isinstance(value, list):
        for each in value:
            yield from calls_in(each, names, depth=depth - 1)
    if not isinstance(value, dict):
        return
    name: str = next((value[key] for key in _NAMES if isinstance(value.get(key), str)), "")
    if name in names:
        if (arguments := _arguments(value)) is not None:
            yield FoundCall(name, msgspec.json.encode(arguments).decode())
        return
    for key in ("function", "tool_calls"):
        yield from calls_in(value.get(key), names, depth=depth - 1)


def _arguments(value: dict[str, Any]) -> dict[str, Any] | None:
    """Some models write them as a text that holds JSON."""
    given = next((value[key] for key in _ARGUMENTS if key in value), None)
    if isinstance(given, str):
        try:
            given = msgspec.json.decode(given)
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            return None
    return given if isinstance(given, dict) else None


def _last_name(text: str, names: Iterable[str]) -> str | None:
    """The name of a tool that stands last in `text`, as a word."""
    best: tuple[int, int, str] | None = None
    for name in names:
        for found in re.finditer(rf"(?<![\w-]){re.escape(name)}(?![\w-])", text):
            best = max(best or (-1, 0, ""), (found.start(), len(name), name))
    return None if best is None else best[2]


class _ObjectScan:
    """The first JSON object in a text that grows; nothing is looked at twice."""

    def __init__(self) -> None:
        self._at = 0
        self._start: int | None = None
        self._depth = 0
        self._is_quoted = False
        self._is_escaped = False

    def read(self, text: str) -> tuple[int, int] | None:
        """Where it stands, once it is whole."""
        if self._start is None:
            found = text.find("{", self._at)
            if found < 0:
                self._at = len(text)
                return None
            self._start = self._at = found
        for at in range(self._at, len(text)):
            if self._ends(text[at]):
                return self._start, at + 1
        self._at = len(text)
        return None

    def _ends(self, character: str) -> bool:
        if self._is_quoted:
            if self._is_escaped:
                self._is_escaped = False
            elif character == "\\":
                self._is_escaped = True
            elif character == '"':
                self._is_quoted = False
        elif character == '"':
            self._is_quoted = True
        elif character == "{":
            self._depth += 1
        elif character == "}":
            self._depth -= 1
            return self._depth == 0
        return False
