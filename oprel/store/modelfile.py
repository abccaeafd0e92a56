"""Modelfiles: the text that says what a model is made of, parsed and written.

    # comment
    INSTRUCTION value                one line, or text in "…" or three quotes, which may go on over several lines
    PARAMETER name value
    MESSAGE role text

Only data comes of it: a path in a Modelfile is a string here, and whoever may read files looks at it. Rules and texts
of errors are those of Ollama's own parser.

* The file is UTF-8, or what its byte order mark says (UTF-8, UTF-16). Invalid bytes become U+FFFD.
* Instructions stand at the beginning of a line, in any case, and a space or tab follows them.
* A quote counts only where it opens a value. A value ends with the first line whose end closes it: what follows a
  closing quote on its line, and the lines after it, still belong to the value. There are no escapes.
* Characters that can't be printed are dropped from values (tabs, and newlines within quotes, stay).
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from typing import Any

from msgspec import Struct

from oprel.errors import InvalidRequestError
from oprel.store.parameters import is_deprecated, parameter_of_text

__all__ = ["Instruction", "Modelfile", "check_version", "quoted"]

MAX_BYTES = 16 << 20

_WORDS = (
    "from", "license", "template", "system", "adapter", "draft", "renderer", "parser", "parameter", "message",
    "requires",
)  # fmt: skip
_ROLES = ("system", "user", "assistant")

_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_LINE = re.compile(r"([^\r\n]*)(\r\n|\r|\n|\Z)")
_WORD = re.compile(r"[^ \t]?[A-Za-z]*")
_PARAMETER_NAME = re.compile(r"[A-Za-z0-9_]*")
_ROLE = re.compile(r"[A-Za-z]*")
_BLANKS = " \t\r\n"
# golang.org/x/mod/semver, without its leading v.
_NUMBER = r"(?:0|[1-9][0-9]{0,17})"
_PRERELEASE = rf"(?:{_NUMBER}|[0-9]*[A-Za-z-][0-9A-Za-z-]*)"
_SEMVER = re.compile(
    rf"{_NUMBER}(?:\.{_NUMBER}(?:\.{_NUMBER}"
    rf"(?:-{_PRERELEASE}(?:\.{_PRERELEASE})*)?(?:\+[0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*)?)?)?"
)


class Instruction(Struct, frozen=True):
    """`word` is lower case; `key` a parameter's name or a message's role, empty for the others."""

    word: str
    value: str
    key: str = ""

    def __str__(self) -> str:
        key = f"{self.key} " if self.word in ("parameter", "message") else ""
        return f"{self.word.upper()} {key}{quoted(self.value)}"


class Modelfile(Struct, frozen=True):
    """Instructions in their order. What they come to is read from the properties, which raise InvalidRequestError for
    a value that can't be."""

    instructions: tuple[Instruction, ...]

    @classmethod
    def parse(cls, data: bytes | str) -> Modelfile:
        """Raises InvalidRequestError, and nothing else."""
        if len(data) > MAX_BYTES:
            raise InvalidRequestError(f"a Modelfile may have {MAX_BYTES >> 20} MiB at most")
        text = data.removeprefix("\ufeff") if isinstance(data, str) else _decoded(data)
        instructions = tuple(_Reader(text).instructions())
        if not any(instruction.word == "from" for instruction in instructions):
            raise InvalidRequestError("no FROM line")
        return cls(instructions)

    def __str__(self) -> str:
        """A Modelfile that says the same. (A text with a line inside that ends in three quotes can't be written.)"""
        return "".join(f"{instruction}\n" for instruction in self.instructions)

    @property
    def sources(self) -> tuple[str, ...]:
        """What stands behind FROM: names, or paths of files and folders."""
        return self._all("from")

    @property
    def drafts(self) -> tuple[str, ...]:
        return self._all("draft")

    @property
    def licenses(self) -> tuple[str, ...]:
        return self._all("license")

    @property
    def adapter(self) -> str | None:
        return self._last("adapter")

    @property
    def template(self) -> str | None:
        return self._last("template")

    @property
    def system(self) -> str | None:
        return self._last("system")

    @property
    def renderer(self) -> str | None:
        return self._last("renderer")

    @property
    def parser(self) -> str | None:
        return self._last("parser")

    @property
    def requires(self) -> str | None:
        """A version without a leading v."""
        value = self._last("requires")
        if value is None:
            return None
        return check_version(value)

    @property
    def messages(self) -> tuple[tuple[str, str], ...]:
        """Role and text."""
        return tuple((each.key, each.value) for each in self.instructions if each.word == "message")

    @property
    def parameters(self) -> dict[str, Any]:
        """Typed. The last value of a name counts; those of `stop` add up. Deprecated ones are left out."""
        found: dict[str, Any] = {}
        for each in self.instructions:
            if each.word != "parameter" or is_deprecated(each.key):
                continue
            value = parameter_of_text(each.key, each.value)
            found[each.key] = [*found.get(each.key, ()), *value] if isinstance(value, list) else value
        return found

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is told of deprecated parameters, which are skipped."""
        names = [each.key for each in self.instructions if each.word == "parameter" and is_deprecated(each.key)]
        return tuple(f"warning: parameter {name} is deprecated" for name in names)

    def _all(self, word: str) -> tuple[str, ...]:
        return tuple(each.value for each in self.instructions if each.word == word)

    def _last(self, word: str) -> str | None:
        values = self._all(word)
        return values[-1] if values else None


def check_version(text: str) -> str:
    """A semantic version, without a leading v. Raises InvalidRequestError."""
    version = text.removeprefix("v")
    if not _SEMVER.fullmatch(version):
        raise InvalidRequestError("requires must be a valid semver (e.g. 0.14.0)", param="requires")
    return version


def quoted(text: str) -> str:
    """A value as it is written: in quotes where it would be read otherwise without them."""
    if text and "\n" not in text and "\r" not in text and text == text.strip(_BLANKS) and not text.startswith('"'):
        return text
    return f'"""{text}"""' if '"' in text else f'"{text}"'


def _decoded(data: bytes) -> str:
    for mark, encoding in (
        (codecs.BOM_UTF8, "utf-8"),
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
    ):
        if data.startswith(mark):
            return data[len(mark) :].decode(encoding, "replace")
    return data.decode("utf-8", "replace")


class _Reader:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._line = 1

    def instructions(self) -> Iterator[Instruction]:
        while self._skip_to_word():
            yield self._instruction()

    def _skip_to_word(self) -> bool:
        """Past blank lines, comments and the blanks before a word; False at the end."""
        text, end = self._text, len(self._text)
        while self._at < end:
            if text[self._at] in " \t":
                self._at += 1
            elif text[self._at] in "\r\n#":
                self._next_line()
            else:
                return True
        return False

    def _instruction(self) -> Instruction:
        word = self._take(_WORD).lower()
        if not self._ends_in_blank():
            raise _cut_short() if self._at >= len(self._text) else self._bad_command()
        if word not in _WORDS:
            raise self._bad_command()
        self._at += 1
        match word:
            case "parameter":
                key = self._key(_PARAMETER_NAME)
            case "message":
                key = self._key(_ROLE)
                if key not in _ROLES:
                    raise self._wrong('message role must be one of "system", "user", or "assistant"')
            case _:
                key = ""
        return Instruction(word, self._value(), key)

    def _key(self, rule: re.Pattern[str]) -> str:
        key = self._take(rule)
        if not self._ends_in_blank():
            raise _cut_short() if self._at >= len(self._text) else _cut_short(f": {key[:100]}")
        self._at += 1
        return key

    def _value(self) -> str:
        first, newline = self._next_line()
        text = first.strip(_BLANKS)
        if not text.startswith('"'):
            return text
        quote = '"""' if text.startswith('"""') else '"'
        if len(text) >= 2 * len(quote) and text.endswith(quote):
            return text[len(quote) : -len(quote)]
        pieces = [first.lstrip(_BLANKS), newline]
        while self._at < len(self._text):
            piece, newline = self._next_line()
            pieces += [piece, newline]
            if piece.rstrip(_BLANKS).endswith(quote):
                return "".join(pieces).rstrip(_BLANKS)[len(quote) : -len(quote)]
        raise _cut_short()

    def _take(self, rule: re.Pattern[str]) -> str:
        found = rule.match(self._text, self._at)
        taken = found[0] if found is not None else ""
        self._at += len(taken)
        return taken

    def _ends_in_blank(self) -> bool:
        return self._text[self._at : self._at + 1] in (" ", "\t")

    def _next_line(self) -> tuple[str, str]:
        """What is left of this line, without what can't be printed, and what ends it."""
        found = _LINE.match(self._text, self._at)
        if found is None:
            raise RuntimeError("the rest of a text is always a line")
        self._at = found.end()
        self._line += bool(found[2])
        line = found[1]
        if not line.isprintable():
            line = "".join(character for character in line if character.isprintable() or character == "\t")
        return line, found[2]

    def _bad_command(self) -> InvalidRequestError:
        *most, last = (f'"{word}"' for word in _WORDS)
        return self._wrong(f"command must be one of {', '.join(most)}, or {last}")

    def _wrong(self, what: str) -> InvalidRequestError:
        return InvalidRequestError(f"(line {self._line}): {what}")


def _cut_short(rest: str = "") -> InvalidRequestError:
    return InvalidRequestError(f"unexpected EOF{rest}")
