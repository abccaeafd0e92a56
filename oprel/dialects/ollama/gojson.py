"""JSON as Go's `encoding/json` writes it: compact, with `<`, `>`, `&`, U+2028 and U+2029 escaped."""

from __future__ import annotations

import msgspec

__all__ = ["dumps", "escaped", "go_quoted", "text"]

_encoder = msgspec.json.Encoder()


def escaped(encoded: bytes) -> bytes:
    """`encoded` JSON with the characters escaped that Go escapes for the sake of HTML."""
    if b"<" in encoded:
        encoded = encoded.replace(b"<", rb"\u003c")
    if b">" in encoded:
        encoded = encoded.replace(b">", rb"\u003e")
    if b"&" in encoded:
        encoded = encoded.replace(b"&", rb"\u0026")
    if b"\xe2\x80" in encoded:
        encoded = encoded.replace(b"\xe2\x80\xa8", rb"\u2028").replace(b"\xe2\x80\xa9", rb"\u2029")
    return encoded


def dumps(value: object) -> bytes:
    return escaped(_encoder.encode(value))


def text(value: object) -> str:
    """`value` as JSON text for a driver or a message: compact, not escaped."""
    return _encoder.encode(value).decode()


def go_quoted(value: str) -> str:
    """`value` as Go's `%q` shows it."""
    shown = []
    for character in value:
        match character:
            case '"' | "\\":
                shown.append("\\" + character)
            case "\n" | "\r" | "\t" | "\a" | "\b" | "\f" | "\v":
                shown.append("\\" + "nrtabfv"["\n\r\t\a\b\f\v".index(character)])
            case _ if character.isprintable():
                shown.append(character)
            case _:
                code = ord(character)
                shown.append(
                    f"\\x{code:02x}" if code < 0x80 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
                )
    return f'"{"".join(shown)}"'
