"""The functions that templates may call: Go's own, and those that Ollama adds. None reaches outside its arguments."""

from __future__ import annotations

import datetime
import html
import urllib.parse
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from oprel.templates.formatting import formatted
from oprel.templates.values import Record, Value, is_true, joined, shown, to_json, type_name

__all__ = ["FUNCTIONS", "LAZY", "Problem", "Function"]


class Problem(Exception):
    """What a function has against its arguments, in Go's words."""


class Function(NamedTuple):
    """`most` None: any number of arguments."""

    call: Callable[..., Value]
    least: int
    most: int | None


def _length(value: Value) -> int:
    if isinstance(value, str):
        return len(_bytes(value))
    if isinstance(value, list | tuple | dict):
        return len(value)
    raise Problem("len of untyped nil" if value is None else f"len of type {type_name(value)}")


def _index(value: Value, *keys: Value) -> Value:
    if value is None:
        raise Problem("index of untyped nil")
    for key in keys:
        value = _item(value, key)
    return value


def _item(value: Value, key: Value) -> Value:
    if isinstance(value, dict):
        if not isinstance(key, str):
            raise Problem(f"value has type {type_name(key)}; should be string")
        return value.get(key)
    if not isinstance(value, list | tuple | str):
        raise Problem(f"can't index item of type {type_name(value)}")
    items = _bytes(value) if isinstance(value, str) else value
    return items[_position(key, len(items) - 1)]


def _slice(value: Value, *keys: Value) -> Value:
    if value is None:
        raise Problem("slice of untyped nil")
    if not isinstance(value, list | tuple | str):
        raise Problem(f"can't slice item of type {type_name(value)}")
    if len(keys) == 3 and isinstance(value, str):
        raise Problem("cannot 3-index slice a string")
    items = _bytes(value) if isinstance(value, str) else value
    start, end, *_ = (
        (*(_position(key, len(items)) for key in keys), 0, len(items))[:2]
        if len(keys) > 1
        else (
            (_position(keys[0], len(items)) if keys else 0),
            len(items),
        )
    )
    if start > end:
        raise Problem(f"invalid slice index: {start} > {end}")
    part = items[start:end]
    return part.decode("utf-8", "replace") if isinstance(part, bytes) else part


def _position(key: Value, most: int) -> int:
    if isinstance(key, bool) or not isinstance(key, int):
        kind = "untyped nil" if key is None else f"type {type_name(key)}"
        raise Problem(f"cannot index slice/array with {'nil' if key is None else kind}")
    if not 0 <= key <= most:
        raise Problem(f"index out of range: {key}")
    return key


def _equal(value: Value, *others: Value) -> bool:
    """Whether it equals any of them."""
    return any(_are_equal(value, other) for other in others)


def _are_equal(one: Value, other: Value) -> bool:
    if one is None or other is None:
        return one is other
    if isinstance(one, list | tuple | dict):
        raise Problem(f"uncomparable type {type_name(one)}: {shown(one)[:100]}")
    if type_name(one) != type_name(other) or isinstance(one, Record):
        raise Problem("incompatible types for comparison")
    return bool(one == other)


def _less(one: Value, other: Value) -> bool:
    if type_name(one) != type_name(other):
        raise Problem("incompatible types for comparison")
    if isinstance(one, bool) or not isinstance(one, int | float | str):
        raise Problem("invalid type for comparison")
    return _bytes(one) < _bytes(other) if isinstance(one, str) else bool(one < other)


def _less_or_equal(one: Value, other: Value) -> bool:
    return _less(one, other) or _equal(one, other)


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _printable(values: Iterable[Value]) -> str:
    return joined("<no value>" if value is None else value for value in values)


def _html(*values: Value) -> str:
    text = html.escape(_printable(values), quote=False)
    return text.replace('"', "&#34;").replace("'", "&#39;").replace("\0", "\ufffd")


def _query(*values: Value) -> str:
    return urllib.parse.quote_plus(_printable(values), safe="-_.~", errors="replace")


def _js(*values: Value) -> str:
    return "".join(_JS.get(character, character) for character in _printable(values))


_JS = {
    "\\": "\\\\", "'": "\\'", '"': '\\"', "<": "\\u003C", ">": "\\u003E", "&": "\\u0026", "=": "\\u003D",
    **{chr(code): f"\\u{code:04X}" for code in range(0x20)},
}  # fmt: skip


def _today() -> datetime.date:
    return datetime.datetime.now().astimezone().date()


def _current_date(*_: Value) -> str:
    return _today().isoformat()


def _yesterday_date(*_: Value) -> str:
    return (_today() - datetime.timedelta(days=1)).isoformat()


_TYPESCRIPT = {
    "string": "string",
    "number": "number",
    "integer": "number",
    "boolean": "boolean",
    "array": "any[]",
    "object": "Record<string, any>",
    "null": "null",
}


def _typescript(value: Value) -> str:
    """Of a tool's property, as its schema tells it."""
    if not isinstance(value, Record):
        return "any"
    kinds = value.fields.get("AnyOf") or ()
    if kinds:
        return " | ".join(_typescript(kind) for kind in kinds)
    types = value.fields.get("Type") or ()
    names = types if isinstance(types, list | tuple) else [types]
    return " | ".join(_TYPESCRIPT.get(shown(name), "any") for name in names) or "any"


LAZY = frozenset({"and", "or"})
"""These look at no more of their arguments than they need; the interpreter's own business."""

FUNCTIONS: Mapping[str, Function] = {
    "and": Function(lambda *values: values[-1], 1, None),
    "or": Function(lambda *values: values[-1], 1, None),
    "not": Function(lambda value: not is_true(value), 1, 1),
    "len": Function(_length, 1, 1),
    "index": Function(_index, 1, None),
    "slice": Function(_slice, 1, 4),
    "print": Function(lambda *values: joined(values), 0, None),
    "printf": Function(formatted, 1, None),
    "println": Function(lambda *values: " ".join(map(shown, values)) + "\n", 0, None),
    "html": Function(_html, 0, None),
    "js": Function(_js, 0, None),
    "urlquery": Function(_query, 0, None),
    "eq": Function(_equal, 2, None),
    "ne": Function(lambda one, other: not _equal(one, other), 2, 2),
    "lt": Function(_less, 2, 2),
    "le": Function(_less_or_equal, 2, 2),
    "gt": Function(lambda one, other: not _less_or_equal(one, other), 2, 2),
    "ge": Function(lambda one, other: not _less(one, other), 2, 2),
    "json": Function(to_json, 1, 1),
    "currentDate": Function(_current_date, 0, None),
    "yesterdayDate": Function(_yesterday_date, 0, None),
    "toTypeScriptType": Function(_typescript, 1, 1),
}
