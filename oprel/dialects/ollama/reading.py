"""Request bodies as Go's `encoding/json` reads them, as far as clients can tell the difference.

Only the first value counts, bytes after it are ignored; invalid UTF-8 and lone surrogates become U+FFFD; what is
malformed is said in Go's words.
"""

from __future__ import annotations

import re

import msgspec

from oprel.dialects.ollama.errors import refusal
from oprel.dialects.weight import check_weight

__all__ = ["decode_first"]

_decoder = msgspec.json.Decoder()

_AT_BYTE = re.compile(r"^(?:JSON is malformed: )?(.*) \(byte (\d+)\)$")
_SURROGATE = re.compile(
    rb"((?<!\\)(?:\\\\)*)\\u[dD]([89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|[89a-fA-F][0-9a-fA-F]{2})"
)
_SPACE = b" \t\r\n"

# What msgspec says of the byte at fault -> what Go says of it ({0}: the character).
_WORDS = {
    "invalid character": "invalid character {0} looking for beginning of value",
    "expected ':'": "invalid character {0} after object key",
    "expected ',' or '}'": "invalid character {0} after object key:value pair",
    "expected ',' or ']'": "invalid character {0} after array element",
    "object keys must be strings": "invalid character {0} looking for beginning of object key string",
    "trailing comma in object": "invalid character {0} looking for beginning of object key string",
    "trailing comma in array": "invalid character {0} looking for beginning of value",
    "invalid escape character in string": "invalid character {0} in string escape code",
    "invalid number": "invalid character {0} in numeric literal",
}
_BEFORE_VALUES = b" \t\r\n:,["
_LITERALS = {b"t": b"true", b"f": b"false", b"n": b"null"}


def decode_first(body: bytes) -> object:
    """The first JSON value of `body`; refuses an empty body, and one that doesn't begin with a whole value."""
    if not body.strip(_SPACE):
        raise refusal("missing_body")
    check_weight(body)
    try:
        return _decode(body)
    except UnicodeDecodeError:
        return decode_first(body.decode("utf-8", "replace").encode())
    except RecursionError:
        raise refusal("bad_json", text="exceeded max depth") from None
    except msgspec.ValidationError as error:  # a number that no float holds
        raise refusal("bad_json", text=f"json: cannot unmarshal number: {error}") from None
    except msgspec.DecodeError as error:
        repaired = _SURROGATE.sub(_repaired_surrogate, body)
        if repaired != body:
            return decode_first(repaired)
        raise refusal("bad_json", text=_in_go_words(body, str(error))) from None


def _decode(body: bytes) -> object:
    try:
        return _decoder.decode(body)
    except msgspec.ValidationError:
        raise
    except msgspec.DecodeError as error:
        found = _AT_BYTE.match(str(error))
        if found is None or found[1] != "trailing characters":
            raise
        return _decoder.decode(body[: int(found[2]) - 1])  # it counts the first byte that is too many


def _repaired_surrogate(found: re.Match[bytes]) -> bytes:
    return found[0] if len(found[2]) > 3 else found[1] + rb"\ufffd"


def _in_go_words(body: bytes, said: str) -> str:
    found = _AT_BYTE.match(said)
    if found is None:
        return "unexpected EOF"
    at = int(found[2])
    if found[1] == "invalid character" and (in_literal := _in_literal(body, at)) is not None:
        return in_literal
    if found[1] == "invalid escape character in string":
        at -= 1  # it counts the byte after it
    if at >= len(body):
        return "unexpected EOF"
    words = _WORDS.get(found[1], _WORDS["invalid character"])
    if found[1] == "invalid character" and body[at] < 0x20:
        words = "invalid character {0} in string literal"
    return words.format(_quoted_character(body, at))


def _in_literal(body: bytes, end: int) -> str | None:
    """Go names the literal that it was reading, when what stands before `end` began as one."""
    for start in range(max(0, end - 5), end):
        literal = _LITERALS.get(body[start : start + 1])
        if literal is None or (start > 0 and body[start - 1] not in _BEFORE_VALUES):
            continue
        for at, expected in enumerate(literal, start):
            if body[at : at + 1] != bytes((expected,)):
                break
        else:
            continue
        if at >= len(body):
            return "unexpected EOF"
        return (
            f"invalid character {_quoted_character(body, at)} in literal {literal.decode()} "
            f"(expecting '{chr(expected)}')"
        )
    return None


def _quoted_character(body: bytes, at: int) -> str:
    # Go looks at bytes, and shows one as if it were a code point.
    special = {"\n": r"'\n'", "\r": r"'\r'", "\t": r"'\t'", "'": r"'\''", "\\": r"'\\'", '"': "'\"'"}
    character = chr(body[at])
    if character in special:
        return special[character]
    return f"'{character}'" if character.isprintable() else f"'\\x{body[at]:02x}'"
