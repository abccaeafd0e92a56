"""Go's constants: numbers, characters and strings as a template writes them."""

from __future__ import annotations

import re

from oprel.templates.lexer import Token, go_error, quoted

__all__ = ["number", "rune", "string"]

_INT = re.compile(
    r"(?P<sign>[+-]?)(?:0[xX](?P<hex>_?[0-9a-fA-F]+(?:_[0-9a-fA-F]+)*)|0[bB](?P<bin>_?[01]+(?:_[01]+)*)"
    r"|0(?:[oO]_?|_)?(?P<oct>[0-7]+(?:_[0-7]+)*)|(?P<dec>0|[1-9]\d*(?:_\d+)*))",
    re.ASCII,
)
_FLOAT = re.compile(r"[+-]?(?:\d+(?:_\d+)*\.?(?:\d+(?:_\d+)*)?|\.\d+(?:_\d+)*)(?:[eE][+-]?\d+)?", re.ASCII)
_BASES = {"hex": 16, "bin": 2, "oct": 8, "dec": 10}
_INT_MAX = 2**63 - 1
_ESCAPE = re.compile(
    r"\\(?:(?P<one>[abfnrtv\\'\"])|x(?P<byte>[0-9a-fA-F]{2})|u(?P<short>[0-9a-fA-F]{4})"
    r"|U(?P<long>[0-9a-fA-F]{8})|(?P<octal>[0-7]{3}))|(?P<bad>\\)",
    re.ASCII,
)
_ONE = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}


def number(token: Token) -> int | float:
    """An int unless it is written as a float. Raises TemplateError."""
    if len(token.text) <= 100:
        if (found := _INT.fullmatch(token.text)) is not None:
            return _int(token, found)
        if _FLOAT.fullmatch(token.text):
            value = float(token.text.replace("_", ""))
            if abs(value) != float("inf"):
                return value
    raise go_error(token.line, f"bad number syntax: {quoted(token.text)}")


def _int(token: Token, found: re.Match[str]) -> int:
    base = next(name for name in _BASES if found[name] is not None)
    value = int(found[base].replace("_", ""), _BASES[base])
    value = -value if found["sign"] == "-" else value
    if not -_INT_MAX - 1 <= value <= _INT_MAX:
        raise go_error(token.line, f"integer overflow: {quoted(token.text)}")
    return value


def rune(token: Token) -> int:
    """The code point of a character constant."""
    text = _unescaped(token, token.text[1:-1], other_quote='"', kind="character constant")
    if len(text) != 1:
        raise go_error(token.line, f"malformed character constant: {token.text[:40]}")
    return ord(text)


def string(token: Token) -> str:
    """What a quoted or raw string holds."""
    if token.text.startswith("`"):
        return token.text[1:-1].replace("\r", "")
    return _unescaped(token, token.text[1:-1], other_quote="'", kind="string")


def _unescaped(token: Token, text: str, *, other_quote: str, kind: str) -> str:
    if "\\" not in text:
        return text
    # Bytes that are written one by one may make up a character.
    parts: list[bytes] = []
    at = 0
    for found in _ESCAPE.finditer(text):
        parts.append(text[at : found.start()].encode("utf-8", "surrogatepass"))
        at = found.end()
        if found["bad"] or found["one"] == other_quote:
            raise go_error(token.line, "invalid syntax")
        parts.append(_escaped(token, found, is_rune=kind != "string"))
    parts.append(text[at:].encode("utf-8", "surrogatepass"))
    return b"".join(parts).decode("utf-8", "replace")


def _escaped(token: Token, found: re.Match[str], *, is_rune: bool) -> bytes:
    if (one := found["one"]) is not None:
        return _ONE.get(one, one).encode()
    digits = found["byte"] or found["octal"]
    if digits is not None:
        value = int(digits, 16 if found["byte"] else 8)
        if value > 255:
            raise go_error(token.line, "invalid syntax")
        return chr(value).encode() if is_rune else bytes([value])
    value = int(found["short"] or found["long"], 16)
    if value > 0x10FFFF or 0xD800 <= value < 0xE000:
        raise go_error(token.line, "invalid syntax")
    return chr(value).encode()
