"""`printf`, as far as templates need it: the verbs of Go's fmt for plain values."""

from __future__ import annotations

import math
import re

from oprel.templates.values import Record, Value, format_float, shown, to_json, type_name

__all__ = ["formatted"]

_VERB = re.compile(r"%(?P<flags>[-+# 0]*)(?P<width>\d{0,6})(?:(?P<dot>\.)(?P<precision>\d{0,6}))?(?P<verb>.|\Z)", re.S)
_MOST = 4096
_BASES = {"d": "d", "x": "x", "X": "X", "o": "o", "b": "b"}


def formatted(layout: Value, *values: Value) -> str:
    """A width or precision above 4096 counts as that."""
    if not isinstance(layout, str):
        layout = shown(layout)
    left = list(values)
    parts: list[str] = []
    at = 0
    for found in _VERB.finditer(layout):
        if found.start() < at:
            continue
        parts.append(layout[at : found.start()])
        at = found.end()
        parts.append(_verb(found, left))
    parts.append(layout[at:])
    if left:
        parts.append("%!(EXTRA " + ", ".join(map(_named, left)) + ")")
    return "".join(parts)


def _named(value: Value) -> str:
    return "<nil>" if value is None else f"{type_name(value)}={shown(value)}"


def _kind(value: Value) -> str:
    return "<nil>" if value is None else type_name(value)


def _verb(found: re.Match[str], left: list[Value]) -> str:
    verb = found["verb"]
    if verb == "%":
        return "%"
    if not verb:
        return "%!(NOVERB)"
    if not left:
        return f"%!{verb}(MISSING)"
    value = left.pop(0)
    precision = min(int(found["precision"] or 0), _MOST) if found["dot"] else None
    width = min(int(found["width"] or 0), _MOST)
    if isinstance(value, list | tuple) and verb not in "vT":
        return "[" + " ".join(_one(verb, item, found["flags"], precision, width) for item in value) + "]"
    return _one(verb, value, found["flags"], precision, width)


def _one(verb: str, value: Value, flags: str, precision: int | None, width: int) -> str:
    text = _written(verb, value, flags, precision)
    if text is None:
        return f"%!{verb}({_named(value)})"
    return _padded(text, flags, width, verb, value)


def _padded(text: str, flags: str, width: int, verb: str, value: Value) -> str:
    if len(text) >= width:
        return text
    if "-" in flags:
        return text.ljust(width)
    if "0" in flags and not isinstance(value, str) and verb not in "vqtTsc":
        sign = text[0] if text[:1] in ("-", "+") else ""
        return sign + text[len(sign) :].rjust(width - len(sign), "0")
    return text.rjust(width)


def _written(verb: str, value: Value, flags: str, precision: int | None) -> str | None:
    """None where the verb isn't for such a value."""
    match verb:
        case "v":
            text = to_json(value) if isinstance(value, Record) and value.is_json else shown(value)
            return text[:precision] if precision is not None and isinstance(value, str) else text
        case "T":
            return _kind(value)
        case "t":
            return shown(value) if isinstance(value, bool) else None
        case "s" | "q" if isinstance(value, str) or not isinstance(value, bool | int | float | None):
            text = value if isinstance(value, str) else shown(value)
            text = text[:precision] if precision is not None else text
            return text if verb == "s" else _quoted(text)
        case "c" | "U" | "q" if isinstance(value, int) and not isinstance(value, bool):
            return _character(verb, value)
        case "x" | "X" if isinstance(value, str):
            digits = value.encode("utf-8", "replace").hex()
            return digits if verb == "x" else digits.upper()
    if isinstance(value, bool):
        return None
    if isinstance(value, int) and verb in _BASES:
        text = format(value, _BASES[verb])
    elif isinstance(value, float) and verb in "feEgG":
        text = _float(verb, value, precision)
    else:
        return None
    return f"+{text}" if "+" in flags and value >= 0 else f" {text}" if " " in flags and value >= 0 else text


def _float(verb: str, value: float, precision: int | None) -> str:
    if not math.isfinite(value):
        return format_float(value)
    if verb in "gG" and precision is None:
        return format_float(value) if verb == "g" else format_float(value).upper()
    return format(value, f".{6 if precision is None else precision}{verb}")


def _character(verb: str, value: int) -> str:
    code = value if 0 <= value <= 0x10FFFF and not 0xD800 <= value < 0xE000 else 0xFFFD
    if verb == "U":
        return f"U+{value:04X}"
    return chr(code) if verb == "c" else f"'{chr(code)}'"


def _quoted(text: str) -> str:
    return '"' + "".join(map(_escaped, text)) + '"'


_ESCAPES = {
    '"': '\\"', "\\": "\\\\", "\a": "\\a", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t",
    "\v": "\\v",
}  # fmt: skip


def _escaped(character: str) -> str:
    if character in _ESCAPES:
        return _ESCAPES[character]
    if character.isprintable():
        return character
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x80 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
