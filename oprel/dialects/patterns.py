"""Regular expressions that an engine may be given: a subset whose matching work stays linear and small, written in the
plainest form.

An engine turns a schema's `pattern` into a grammar and follows every way to match at once. Repeating what may be
empty, or nesting counted repeats, multiplies those ways until the engine stands still for all its clients, and a
construct that it doesn't know (llama.cpp: `\\d`, `\\.`, a pattern without anchors) switches the constraint off in
silence. So a pattern is parsed here, measured, and written anew with nothing but classes, groups, quantifiers and
both anchors.

Accepted: literals, escapes, classes, `.`, groups `(…)` and `(?:…)`, `|`, `^` first and `$` last in an alternative, and
the greedy quantifiers `? * + {m} {m,} {m,n}`. Each pattern is a set of positions (characters to match, counted repeats
written out): at most 1,000, or 50 where two of them may compete for the same character.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

__all__ = ["MAX_REPEATS", "Pattern", "PatternError", "checked_pattern"]

MAX_REPEATS = 1000

_MAX_LENGTH = 1024
_MAX_GROUPS = 16
_MAX_BRANCHES = 64
_MAX_AMBIGUOUS = 50

# Sets of characters are sorted ranges of code points, both ends inclusive.
Chars = tuple[tuple[int, int], ...]

_LAST = 0x10FFFF
_SURROGATES = (0xD800, 0xDFFF)


class PatternError(Exception):
    """Says what is wrong with a pattern, in words that follow "the pattern"."""


@dataclass(frozen=True, slots=True)
class Pattern:
    """`text` matches whole JSON strings (it has both anchors); `repeats` is the largest product of its nested repeat
    counts, at least 1."""

    text: str
    repeats: int


def checked_pattern(pattern: str) -> Pattern:
    """Raises PatternError for a pattern outside the subset.

    The new text matches no more than the old one. It may match less: characters that JSON writes as escapes (`"`, `\\`
    and control characters) are left out of classes that also hold others, because engines match the written form.
    """
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
    return Pattern(f"^{found.text}$", found.repeats)


# Sets of characters.


def _joined(ranges: Iterable[tuple[int, int]]) -> Chars:
    merged: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        else:
            merged.append((low, high))
    return tuple(merged)


def _negated(chars: Chars) -> Chars:
    found = []
    begin = 0
    for low, high in chars:
        if low > begin:
            found.append((begin, low - 1))
        begin = high + 1
    if begin <= _LAST:
        found.append((begin, _LAST))
    return tuple(found)


def _meet(one: Chars, other: Chars) -> bool:
    return any(low <= high2 and low2 <= high for low, high in one for low2, high2 in other)


def _without(chars: Chars, others: Chars) -> Chars:
    return _negated(_joined((*_negated(chars), *others)))


def _of(text: str) -> Chars:
    return _joined((ord(char), ord(char)) for char in text)


_DIGIT: Chars = ((0x30, 0x39),)
_WORD = _joined(((0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A)))
_SPACE = _of(" \t\n\r\f\v")
# What ECMA-262 calls white space beyond ASCII: `\S` leaves it out, and `\s` needn't let it in.
_WIDE_SPACE = _joined(
    ((160, 160), (5760, 5760), (8192, 8202), (8232, 8233), (8239, 8239), (8287, 8287), (12288, 12288), (65279, 65279))
)
_CLASSES = {
    "d": _DIGIT,
    "D": _negated(_DIGIT),
    "w": _WORD,
    "W": _negated(_WORD),
    "s": _SPACE,
    "S": _negated(_joined((*_SPACE, *_WIDE_SPACE))),
}
_CONTROLS = {"n": "\n", "t": "\t", "r": "\r", "f": "\f", "v": "\v"}
_HEX_DIGITS = {"x": 2, "u": 4}
_ESCAPED = _joined(((0, 0x1F), (0x22, 0x22), (0x5C, 0x5C), _SURROGATES))
_PLAIN = _negated(_ESCAPED)


def _written(chars: Chars) -> str:
    """As a class. What reaches up to the last character is written as what it leaves out."""
    if chars[-1][1] == _LAST:
        out = _negated(_joined((*chars, _SURROGATES)))
        return "[^" + "".join(map(_range, out)) + "]" if out else "[^\\x00]"
    return "[" + "".join(map(_range, chars)) + "]"


def _range(bounds: tuple[int, int]) -> str:
    low, high = bounds
    return _char(low) if low == high else f"{_char(low)}-{_char(high)}"


def _char(code: int) -> str:
    char = chr(code)
    if char.isascii():
        return char if char.isalnum() else f"\\x{code:02x}"
    return char if char.isprintable() else f"\\u{code:04x}" if code <= 0xFFFF else char


# Pieces of patterns.


@dataclass(frozen=True, slots=True)
class _Part:
    """What it may begin with (`first`), what its last repeat would take more of (`loops`), and as what it is written;
    `is_atom`: a quantifier may follow it as it is."""

    positions: int
    is_nullable: bool
    first: Chars
    loops: Chars
    text: str
    repeats: int = 1
    is_ambiguous: bool = False
    is_atom: bool = False


_EMPTY = _Part(0, True, (), (), "")


def _character(chars: Chars) -> _Part:
    plain = _without(chars, _ESCAPED)
    if not plain:
        raise PatternError("matches only characters that JSON writes as escapes (quotes, backslashes, controls)")
    return _Part(1, False, plain, (), _written(plain), is_atom=True)


def _anything() -> _Part:
    return _repeated(_character(_PLAIN), 0, None)


def _either(one: _Part, other: _Part) -> _Part:
    return _Part(
        positions=one.positions + other.positions,
        is_nullable=one.is_nullable or other.is_nullable,
        first=_joined((*one.first, *other.first)),
        loops=_joined((*one.loops, *other.loops)),
        text=f"{one.text}|{other.text}",
        repeats=max(one.repeats, other.repeats),
        is_ambiguous=one.is_ambiguous or other.is_ambiguous or _meet(one.first, other.first),
    )


def _then(before: _Part, after: _Part) -> _Part:
    return _Part(
        positions=before.positions + after.positions,
        is_nullable=before.is_nullable and after.is_nullable,
        first=_joined((*before.first, *after.first)) if before.is_nullable else before.first,
        loops=_joined((*before.loops, *after.loops)) if after.is_nullable else after.loops,
        text=before.text + after.text,
        repeats=max(before.repeats, after.repeats),
        is_ambiguous=before.is_ambiguous or after.is_ambiguous or _meet(before.loops, after.first),
    )


def _grouped(part: _Part) -> _Part:
    return replace(part, text=f"(?:{part.text})", is_atom=True)


def _repeated(part: _Part, least: int, most: int | None) -> _Part:
    if (most is None or most > 1) and _meet(part.loops, part.first):
        raise PatternError("repeats a group whose end can go on as its beginning, as in '(a+)+'")
    count = max(least, 1) if most is None else most
    atom = part if part.is_atom else _grouped(part)
    return _Part(
        positions=part.positions * count,
        is_nullable=least == 0,
        first=part.first if count else (),
        loops=_joined((*part.loops, *part.first)) if most != least else part.loops,
        text=atom.text + _quantifier(least, most) if count else "",
        repeats=part.repeats * max(count, 1),
        is_ambiguous=part.is_ambiguous,
    )


def _quantifier(least: int, most: int | None) -> str:
    match least, most:
        case 0, None:
            return "*"
        case 1, None:
            return "+"
        case 0, 1:
            return "?"
        case _, None:
            return f"{{{least},}}"
        case _ if least == most:
            return f"{{{least}}}"
        case _:
            return f"{{{least},{most}}}"


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._groups = 0
        self._branches = 1

    def parse(self) -> _Part:
        found = self._alternatives(self._anchored)
        if self._at < len(self._text):
            raise PatternError(f"has an unmatched {self._peek()!r}")
        return _grouped(found) if self._branches > 1 else found

    def _anchored(self) -> _Part:
        """One alternative of the whole. Without an anchor anything may stand before it, or after it."""
        is_open = self._peek() != "^"
        if not is_open:
            self._at += 1
        found = self._sequence()
        if is_open:
            found = _then(_anything(), found)
        if self._peek() == "$":
            self._at += 1
            return found
        return _anything() if found == _anything() else _then(found, _anything())

    def _alternatives(self, one: Callable[[], _Part]) -> _Part:
        found = one()
        while self._peek() == "|":
            self._at += 1
            self._branches += 1
            if self._branches > _MAX_BRANCHES:
                raise PatternError(f"has more than {_MAX_BRANCHES} alternatives")
            found = _either(found, one())
        return found

    def _sequence(self) -> _Part:
        found = _EMPTY
        while self._at < len(self._text) and self._peek() not in "|)$":
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
            return _character(_negated(_of("\n\r")))
        if mark == "\\":
            return _character(self._escape())
        if mark == "^":
            raise PatternError("has a '^' that is not at its beginning")
        if mark in "?*+{}":
            raise PatternError(f"has a {mark!r} that repeats nothing")
        return _character(_of(mark))

    def _group(self) -> _Part:
        if self._peek() == "?":
            if self._text[self._at : self._at + 2] != "?:":
                raise PatternError("has a group of a kind other than (…) and (?:…)")
            self._at += 2
        self._groups += 1
        if self._groups > _MAX_GROUPS:
            raise PatternError(f"has more than {_MAX_GROUPS} groups")
        found = self._alternatives(self._sequence)
        if self._peek() == "$":
            raise PatternError("has a '$' that is not at its end")
        if self._take() != ")":
            raise PatternError("has a group that isn't closed")
        return _grouped(found)

    def _class(self) -> Chars:
        is_negated = self._peek() == "^"
        if is_negated:
            self._at += 1
        found: Chars = ()
        while self._peek() != "]":
            found = _joined((*found, *self._class_item()))
        self._at += 1
        if not found:
            raise PatternError("has an empty class []")
        return _negated(found) if is_negated else found

    def _class_item(self) -> Chars:
        low = self._class_char()
        if self._peek() != "-" or self._text[self._at + 1 : self._at + 2] == "]":
            return low
        self._at += 1
        high = self._class_char()
        begin, end = low[0][0], high[-1][1]
        if len(low) > 1 or len(high) > 1 or low[0][1] != begin or high[0][0] != end or begin > end:
            raise PatternError("has a range in a class that isn't from a lower to a higher character")
        return ((begin, end),)

    def _class_char(self) -> Chars:
        mark = self._take()
        if mark == "[":
            raise PatternError("has a '[' inside a class: write it as '\\['")
        return self._escape() if mark == "\\" else _of(mark)

    def _escape(self) -> Chars:
        mark = self._take()
        if mark in _CLASSES:
            return _CLASSES[mark]
        if mark in _CONTROLS:
            return _of(_CONTROLS[mark])
        if mark in _HEX_DIGITS:
            return self._hex(_HEX_DIGITS[mark])
        if mark.isalnum() or mark > "\x7f":
            raise PatternError(f"has the escape '\\{mark}', which is not supported")
        return _of(mark)

    def _hex(self, digits: int) -> Chars:
        written = self._text[self._at : self._at + digits]
        if len(written) < digits or not all(c in "0123456789abcdefABCDEF" for c in written):
            raise PatternError("has a '\\x' or '\\u' without its hexadecimal digits")
        self._at += digits
        return _of(chr(int(written, 16)))

    def _peek(self) -> str:
        return self._text[self._at] if self._at < len(self._text) else ""

    def _take(self) -> str:
        if self._at >= len(self._text):
            raise PatternError("ends too early")
        self._at += 1
        return self._text[self._at - 1]


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 9
