"""Regular expressions that an engine may be given: a subset whose matching work stays linear and small.

An engine turns a schema's `pattern` into a grammar and follows every way to match at once. Repeating what may be
empty, or nesting counted repeats, multiplies those ways until the engine stands still for all its clients, and a
construct that it doesn't know may switch the constraint off in silence. So a pattern is parsed here first.

Accepted: literals, escapes, classes, `.`, groups `(…)` and `(?:…)`, `|`, `^` first and `$` last, and the greedy
quantifiers `? * + {m} {m,} {m,n}`. Each pattern is a set of positions (characters to match, counted repeats written
out): at most 1,000, or 50 where two of them may compete for the same character.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["MAX_REPEATS", "PatternError", "pattern_repeats"]

MAX_REPEATS = 1000

_MAX_LENGTH = 1024
_MAX_GROUPS = 16
_MAX_BRANCHES = 64
_MAX_AMBIGUOUS = 50

_OTHER = "\uffff"  # stands for every character that isn't ASCII
_ASCII = frozenset(chr(code) for code in range(128))
_ANY = _ASCII | {_OTHER}
_DIGIT = frozenset("0123456789")
_WORD = frozenset(c for c in _ASCII if c.isalnum() or c == "_")
_SPACE = frozenset(" \t\n\r\f\v")
_CLASSES = {
    "d": _DIGIT,
    "D": _ANY - _DIGIT,
    "w": _WORD,
    "W": _ANY - _WORD,
    "s": _SPACE,
    "S": _ANY - _SPACE,
}
_CONTROLS = {"n": "\n", "t": "\t", "r": "\r", "f": "\f", "v": "\v"}
_HEX_DIGITS = {"x": 2, "u": 4}

Chars = frozenset[str]
_NONE: Chars = frozenset()


class PatternError(Exception):
    """Says what is wrong with a pattern, in words that follow "the pattern"."""


def pattern_repeats(pattern: str) -> int:
    """The largest product of nested repeat counts in the pattern (at least 1). Raises PatternError for a pattern
    outside the subset."""
    if len(pattern) > _MAX_LENGTH:
        raise PatternError(f"has {len(pattern)} characters, more than {_MAX_LENGTH}")
    found = _Parser(pattern).parse()
    if found.positions > MAX_REPEATS:
        raise PatternError(f"comes to {found.positions} repeated characters, more than {MAX_REPEATS}")
    if found.is_ambiguous and found.positions > _MAX_AMBIGUOUS:
        raise PatternError(
            f"can match the same text in several ways and comes to {found.positions} repeated characters, "
            f"more than {_MAX_AMBIGUOUS} in such a pattern: let what follows a repeat differ from what it repeats"
        )
    return found.repeats


@dataclass(frozen=True, slots=True)
class _Part:
    """A piece of a pattern: what it may begin with (`first`), what its last repeat would take more of (`loops`), the
    largest product of its nested repeat counts (`repeats`)."""

    positions: int
    is_nullable: bool
    first: Chars
    loops: Chars
    repeats: int = 1
    is_ambiguous: bool = False


_EMPTY = _Part(0, True, _NONE, _NONE)


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._groups = 0
        self._branches = 1

    def parse(self) -> _Part:
        if self._peek() == "^":
            self._at += 1
        found = self._alternatives()
        if self._at < len(self._text):
            raise PatternError(f"has an unmatched {self._peek()!r}")
        return found

    def _alternatives(self) -> _Part:
        found = self._sequence()
        while self._peek() == "|":
            self._at += 1
            self._branches += 1
            if self._branches > _MAX_BRANCHES:
                raise PatternError(f"has more than {_MAX_BRANCHES} alternatives")
            found = _either(found, self._sequence())
        return found

    def _sequence(self) -> _Part:
        found = _EMPTY
        while self._at < len(self._text) and self._peek() not in "|)":
            if self._peek() == "$" and self._at == len(self._text) - 1:
                self._at += 1
                break
            found = _then(found, self._quantified())
        return found

    def _quantified(self) -> _Part:
        found = self._atom()
        bounds = self._bounds()
        if bounds is None:
            return found
        if found.is_nullable:
            raise PatternError("repeats a group that may be empty")
        if self._peek() in tuple("?*+{"):
            raise PatternError("has a lazy, possessive or doubled quantifier")
        return _repeated(found, *bounds)

    def _bounds(self) -> tuple[int, int | None] | None:
        simple: dict[str, tuple[int, int | None]] = {"?": (0, 1), "*": (0, None), "+": (1, None)}
        mark = self._peek()
        if mark in simple:
            self._at += 1
            return simple[mark]
        return self._braces() if mark == "{" else None

    def _braces(self) -> tuple[int, int | None]:
        end = self._text.find("}", self._at)
        low, comma, high = self._text[self._at + 1 : end].partition(",")
        is_sound = end > 0 and _is_count(low) and (not high or _is_count(high))
        if not is_sound:
            raise PatternError("has a '{' that begins no repeat: write it as '\\{'")
        self._at = end + 1
        least = int(low)
        most = int(high) if high else None if comma else least
        if max(least, most or 0) > MAX_REPEATS:
            raise PatternError(f"repeats something {max(least, most or 0)} times, more than {MAX_REPEATS}")
        if most is not None and most < least:
            raise PatternError(f"has a repeat {{{least},{most}}} that ends before it begins")
        return least, most

    def _atom(self) -> _Part:
        mark = self._take()
        if mark == "(":
            return self._group()
        if mark == "[":
            return _character(self._class())
        if mark == ".":
            return _character(_ANY - {"\n"})
        if mark == "\\":
            return _character(self._escape())
        if mark in "^$":
            raise PatternError(f"has a {mark!r} that is not at its end")
        if mark in "?*+{}":
            raise PatternError(f"has a {mark!r} that repeats nothing")
        return _character(_literal(mark))

    def _group(self) -> _Part:
        if self._peek() == "?":
            if self._text[self._at : self._at + 2] != "?:":
                raise PatternError("has a group of a kind other than (…) and (?:…)")
            self._at += 2
        self._groups += 1
        if self._groups > _MAX_GROUPS:
            raise PatternError(f"has more than {_MAX_GROUPS} groups")
        found = self._alternatives()
        if self._take() != ")":
            raise PatternError("has a group that isn't closed")
        return found

    def _class(self) -> Chars:
        is_negated = self._peek() == "^"
        if is_negated:
            self._at += 1
        found = _NONE
        while self._peek() != "]":
            found |= self._class_item()
        self._at += 1
        if not found:
            raise PatternError("has an empty class []")
        return _ANY - (found - {_OTHER}) if is_negated else found

    def _class_item(self) -> Chars:
        low = self._class_char()
        if self._peek() != "-" or self._text[self._at + 1 : self._at + 2] == "]":
            return _chars(low)
        self._at += 1
        high = self._class_char()
        if not (isinstance(low, str) and isinstance(high, str)) or low > high:
            raise PatternError("has a range in a class that isn't from a lower to a higher character")
        ascii_part = frozenset(chr(code) for code in range(ord(low), min(ord(high), 127) + 1))
        return ascii_part | {_OTHER} if high > "\x7f" else ascii_part

    def _class_char(self) -> str | Chars:
        mark = self._take()
        if mark == "[":
            raise PatternError("has a '[' inside a class: write it as '\\['")
        if mark != "\\":
            return mark
        found = self._escape()
        return next(iter(found)) if len(found) == 1 and _OTHER not in found else found

    def _escape(self) -> Chars:
        mark = self._take()
        if mark in _CLASSES:
            return _CLASSES[mark]
        if mark in _CONTROLS:
            return frozenset(_CONTROLS[mark])
        if mark in _HEX_DIGITS:
            return self._hex(_HEX_DIGITS[mark])
        if mark.isalnum() or mark > "\x7f":
            raise PatternError(f"has the escape '\\{mark}', which is not supported")
        return frozenset(mark)

    def _hex(self, digits: int) -> Chars:
        written = self._text[self._at : self._at + digits]
        if len(written) < digits or not all(c in "0123456789abcdefABCDEF" for c in written):
            raise PatternError("has a '\\x' or '\\u' without its hexadecimal digits")
        self._at += digits
        return _literal(chr(int(written, 16)))

    def _peek(self) -> str:
        return self._text[self._at] if self._at < len(self._text) else ""

    def _take(self) -> str:
        if self._at >= len(self._text):
            raise PatternError("ends too early")
        self._at += 1
        return self._text[self._at - 1]


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 9


def _literal(char: str) -> Chars:
    return frozenset(char if char <= "\x7f" else _OTHER)


def _chars(found: str | Chars) -> Chars:
    return _literal(found) if isinstance(found, str) else found


def _character(chars: Chars) -> _Part:
    return _Part(1, False, chars, _NONE)


def _either(one: _Part, other: _Part) -> _Part:
    return _Part(
        positions=one.positions + other.positions,
        is_nullable=one.is_nullable or other.is_nullable,
        first=one.first | other.first,
        loops=one.loops | other.loops,
        repeats=max(one.repeats, other.repeats),
        is_ambiguous=one.is_ambiguous or other.is_ambiguous or bool(one.first & other.first),
    )


def _then(before: _Part, after: _Part) -> _Part:
    return _Part(
        positions=before.positions + after.positions,
        is_nullable=before.is_nullable and after.is_nullable,
        first=before.first | after.first if before.is_nullable else before.first,
        loops=before.loops | after.loops if after.is_nullable else after.loops,
        repeats=max(before.repeats, after.repeats),
        is_ambiguous=before.is_ambiguous or after.is_ambiguous or bool(before.loops & after.first),
    )


def _repeated(part: _Part, least: int, most: int | None) -> _Part:
    is_variable = most != least
    if (most is None or most > 1) and part.loops & part.first:
        raise PatternError("repeats a group whose end can go on as its beginning, as in '(a+)+'")
    count = max(least, 1) if most is None else most
    return _Part(
        positions=part.positions * count,
        is_nullable=least == 0,
        first=part.first,
        loops=part.loops | part.first if is_variable else part.loops,
        repeats=part.repeats * max(count, 1),
        is_ambiguous=part.is_ambiguous,
    )
