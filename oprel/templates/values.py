"""Plain data as Go sees it: what is true, how it is printed, how it is JSON.

A value is None (nil), bool, int, float, str, a list or tuple (a slice), a dict with str keys (a map), or a Record (a
struct). Nothing else is looked into: no attribute of a Python object can be reached from a template.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any, TypeAlias

import msgspec

__all__ = [
    "JsonList",
    "JsonMap",
    "Record",
    "Value",
    "format_float",
    "is_true",
    "joined",
    "shown",
    "to_json",
    "type_name",
]

Value: TypeAlias = Any
"""None, bool, int, float, str, list, tuple, dict[str, Value] or Record."""

_JSON = msgspec.json.Encoder()


class JsonList(list[Value]):
    """A slice that prints itself as JSON."""


class JsonMap(dict[str, Value]):
    """A map that prints itself as JSON."""


class Record:
    """A Go struct: `fields` by the names that templates use, in order; `wire` the same by their names in JSON.

    `is_json`: it prints itself as JSON, and not as Go prints structs.
    """

    __slots__ = ("fields", "is_json", "name", "wire")

    def __init__(
        self, name: str, fields: Mapping[str, Value], *, wire: Mapping[str, Value] | None = None, is_json: bool = False
    ) -> None:
        self.name = name
        self.fields = dict(fields)
        self.wire = dict(fields if wire is None else wire)
        self.is_json = is_json

    def __repr__(self) -> str:
        return f"<Record {self.name} {self.fields!r}>"


def is_true(value: Value) -> bool:
    """Empty things and zero aren't."""
    return True if isinstance(value, Record) else bool(value)


def type_name(value: Value) -> str:
    match value:
        case None:
            return "nil"
        case bool():
            return "bool"
        case int():
            return "int"
        case float():
            return "float64"
        case str():
            return "string"
        case Record():
            return value.name
        case dict():
            return "map[string]interface {}"
        case _:
            return "[]interface {}"


def shown(value: Value, *, is_top: bool = False) -> str:
    """As Go's `%v` prints it; `is_top`: as an action does, where nil is `<no value>`."""
    match value:
        case str():
            return value
        case None:
            return "<no value>" if is_top else "<nil>"
        case bool():
            return "true" if value else "false"
        case int():
            return str(value)
        case float():
            return format_float(value)
        case JsonList() | JsonMap():
            return to_json(value)
        case Record():
            return to_json(value) if value.is_json else "{" + " ".join(map(shown, value.fields.values())) + "}"
        case dict():
            return "map[" + " ".join(f"{key}:{shown(value[key])}" for key in sorted(value)) + "]"
        case _:
            return "[" + " ".join(map(shown, value)) + "]"


def joined(values: Iterable[Value]) -> str:
    """As Go's Sprint: a space between two of which neither is a string."""
    parts: list[str] = []
    was_string = True
    for value in values:
        is_string = isinstance(value, str)
        if parts and not is_string and not was_string:
            parts.append(" ")
        parts.append(shown(value))
        was_string = is_string
    return "".join(parts)


def format_float(value: float) -> str:
    """The shortest digits that are that number, with an exponent from 1e+06 on and below 1e-04."""
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"
    return _float(value, least=-4, most=6)


def _float(value: float, *, least: int, most: int) -> str:
    if value == 0:
        return "-0" if math.copysign(1, value) < 0 else "0"
    sign, digits, exponent = Decimal(repr(value)).normalize().as_tuple()
    assert isinstance(exponent, int)  # noqa: S101 - it is finite
    power = len(digits) + exponent - 1
    minus = "-" if sign else ""
    if least <= power < most:
        return minus + format(Decimal((0, digits, exponent)), "f")
    text = "".join(map(str, digits))
    fraction = f".{text[1:]}" if len(text) > 1 else ""
    return f"{minus}{text[0]}{fraction}e{'-' if power < 0 else '+'}{abs(power):02d}"


def to_json(value: Value) -> str:
    """As Go's `json.Marshal`: compact, keys of maps sorted, and safe inside HTML."""
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case int():
            return str(value)
        case float():
            return _json_float(value)
        case str():
            return _json_string(value)
        case Record():
            return _json_object(value.wire.items())
        case dict():
            return _json_object(sorted(value.items()))
        case _:
            return "[" + ",".join(map(to_json, value)) + "]"


def _json_object(items: Iterable[tuple[str, Value]]) -> str:
    return "{" + ",".join(f"{_json_string(name)}:{to_json(value)}" for name, value in items) + "}"


def _json_float(value: float) -> str:
    if not math.isfinite(value):
        return "null"
    text = _float(value, least=-6, most=21)
    return text.replace("e-0", "e-")  # JSON's exponents have no leading zero there


_HTML = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def _json_string(text: str) -> str:
    encoded = _JSON.encode(text.encode("utf-8", "replace").decode()).decode()
    for character, escape in _HTML.items():
        if character in encoded:
            encoded = encoded.replace(character, escape)
    return encoded
