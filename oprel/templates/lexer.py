"""Template text cut into tokens, as Go's `text/template` cuts it: text, and what stands between `{{` and `}}`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal

from msgspec import Struct

from oprel.errors import TemplateError

__all__ = ["Kind", "Token", "go_error", "quoted", "tokens"]

Kind = Literal[
    "text", "left", "right", "space", "declare", "assign", "pipe", "open", "close", "comma",
    "string", "rune", "number", "word", "field", "dot", "variable", "char", "end",
]  # fmt: skip

_SPACE = " \t\r\n"
_LEFT = re.compile(r"\{\{(?P<trim>-[ \t\r\n])?")
_RIGHT = re.compile(r"(?P<trim>[ \t\r\n]-)?\}\}")
_COMMENT = re.compile(r"[ \t\r\n]*/\*")
_WORDS = re.compile(
    r"""(?P<space>[ \t\r\n]+)|(?P<declare>:=)|(?P<assign>=)|(?P<pipe>\|)|(?P<open>\()|(?P<close>\))|(?P<comma>,)
    |(?P<string>"(?:[^"\\\n]|\\[^\n])*"|`[^`]*`)|(?P<rune>'(?:[^'\\\n]|\\[^\n])*')
    |(?P<number>[+-]?(?:\.\d|\d)(?:[eEpP][+-]|[\w.])*)|(?P<variable>\$\w*)|(?P<field>\.[^\W\d]\w*)|(?P<dot>\.)
    |(?P<word>[^\W\d]\w*)""",
    re.VERBOSE,
)
# What may follow a name: Go insists, so that `.Name"text"` isn't read as two things.
_ENDS_NAME = re.compile(r"[ \t\r\n.,|:()=]|\}\}|\Z")


class Token(Struct, frozen=True, gc=False):
    """`text` is as it stands in the template; for "text" it is trimmed already."""

    kind: Kind
    text: str
    line: int


def tokens(source: str) -> Iterator[Token]:
    """Ends with the only "end". Raises TemplateError."""
    at, line, trims = 0, 1, False
    while True:
        found = _LEFT.search(source, at)
        text = source[at : found.start() if found else len(source)]
        shown = text.lstrip(_SPACE) if trims else text
        if found and found["trim"]:
            shown = shown.rstrip(_SPACE)
        if shown:
            yield Token("text", shown, line)
        line += text.count("\n")
        if found is None:
            yield Token("end", "", line)
            return
        comment = _COMMENT.match(source, found.end())
        # Go allows no space before a comment, but for the one that belongs to the trim marker.
        if comment is not None and source.startswith("/*", found.end()):
            at, trims = _after_comment(source, comment.end(), line)
            line += source.count("\n", found.start(), at)
            continue
        yield Token("left", "{{", line)
        line += found.group().count("\n")
        scanner = _Action(source, found.end(), line)
        yield from scanner
        at, line, trims = scanner.at, scanner.line, scanner.trims


class _Action:
    """The tokens of one action; afterwards `at` is behind it."""

    def __init__(self, source: str, at: int, line: int) -> None:
        self._source = source
        self.at = at
        self.line = line
        self.trims = False
        self._depth = 0

    def __iter__(self) -> Iterator[Token]:
        while True:
            if (right := _RIGHT.match(self._source, self.at)) is not None:
                if self._depth:
                    raise go_error(self.line, "unclosed left paren")
                yield Token("right", "}}", self.line)
                self.at, self.trims = right.end(), right["trim"] is not None
                self.line += right.group().count("\n")
                return
            yield self._next()

    def _next(self) -> Token:
        found = _WORDS.match(self._source, self.at)
        if found is None or found.lastgroup is None:
            return self._other()
        kind: Kind = found.lastgroup  # type: ignore[assignment]  # the groups are named by kind
        text = found.group()
        if kind == "space" and _RIGHT.match(self._source, found.end() - 1):
            text = text[:-1]  # the last one belongs to the trim marker
            if not text:
                raise AssertionError("a trim marker is looked for first")
        token = Token(kind, text, self.line)
        end = self.at + len(text)
        if kind in ("field", "variable", "word") and not _ENDS_NAME.match(self._source, end):
            raise go_error(self.line, f"bad character {_code_point(self._source[end])}")
        if kind == "open":
            self._depth += 1
        elif kind == "close":
            self._depth = max(0, self._depth - 1)
        self.at = end
        self.line += text.count("\n")
        return token

    def _other(self) -> Token:
        """What no token begins with."""
        if self.at >= len(self._source):
            raise go_error(self.line, "unclosed action")
        character = self._source[self.at]
        if character == '"':
            raise go_error(self.line, "unterminated quoted string")
        if character == "`":
            raise go_error(self.line, "unterminated raw quoted string")
        if character == "'":
            raise go_error(self.line, "unterminated character constant")
        if character == ":":
            raise go_error(self.line, "expected :=")
        if not (character.isascii() and character.isprintable()):
            raise go_error(self.line, f"unrecognized character in action: {_code_point(character)}")
        self.at += 1
        return Token("char", character, self.line)


def _after_comment(source: str, at: int, line: int) -> tuple[int, bool]:
    """Where the text goes on, and whether it is trimmed."""
    end = source.find("*/", at)
    if end < 0:
        raise go_error(line, "unclosed comment")
    right = _RIGHT.match(source, end + 2)
    if right is None:
        raise go_error(line, "comment ends before closing delimiter")
    return right.end(), right["trim"] is not None


def go_error(line: int, problem: str) -> TemplateError:
    """In the words that Go has for it."""
    return TemplateError(f"template: :{line}: {problem}", line=line)


def quoted(text: str) -> str:
    """As Go shows it in its messages, shortened."""
    shown = text if len(text) <= 40 else text[:40] + "..."
    return '"' + "".join(_escaped(character) for character in shown) + '"'


def _escaped(character: str) -> str:
    if character in '"\\':
        return "\\" + character
    if character in "\n\r\t":
        return {"\n": "\\n", "\r": "\\r", "\t": "\\t"}[character]
    return character if character.isprintable() else f"\\u{ord(character):04x}"


def _code_point(character: str) -> str:
    shown = f" '{character}'" if character.isprintable() else ""
    return f"U+{ord(character):04X}{shown}"
