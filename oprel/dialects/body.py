"""Reads a request's body strictly: what JSON or a field's type forbids is one sentence that names the field."""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Generic, TypeVar

import msgspec
from msgspec import Struct

from oprel.dialects.weight import check_weight
from oprel.errors import InvalidRequestError

__all__ = ["Read", "converted", "off_loop", "read"]

T = TypeVar("T", bound=Struct)
Made = TypeVar("Made")

_INT64 = 2**63
_INT53 = 2**53
_LONGEST_INT = 20
_THREAD_FROM_BYTES = 256 * 1024
_MOST_UNKNOWN = 10

_TYPES = {"str": "a string", "int": "an integer", "float": "a number", "bool": "a boolean"} | {
    "array": "an array",
    "object": "an object",
    "null": "null",
}
_PART_TYPES = "'text', 'image_url' and 'input_audio'"


class Read(Struct, Generic[T], frozen=True):
    """`unknown` are the paths of fields that nobody knows, without list positions, each once."""

    body: T
    unknown: tuple[str, ...]


async def read(body: bytes, kind: type[T]) -> Read[T]:
    """Raises InvalidRequestError, its `param` the path of the field at fault where there is one. Large bodies are
    read in a thread, so that others don't wait."""
    return await off_loop(body, partial(_read, body, kind))


async def off_loop(body: bytes, work: Callable[[], Made]) -> Made:
    """What `work`, which is about `body`, gives; done in a thread where that is large."""
    return await asyncio.to_thread(work) if len(body) > _THREAD_FROM_BYTES else work()


def converted(raw: Any, kind: type[T], *, path: str, types: str) -> Read[T]:
    """A part of a body, read as `read` reads the whole; `path` is where it stands, `types` names the types that its
    own parts may have."""
    try:
        value = msgspec.convert(raw, kind)
    except msgspec.ValidationError as error:
        raise _as_ours(str(error), path=path, types=types) from error
    return Read(value, tuple(dict.fromkeys(_unknown(raw, value, re.sub(r"\d+", "", path)))))


def _read(body: bytes, kind: type[T]) -> Read[T]:
    raw = _parsed(body)
    try:
        value = msgspec.convert(raw, kind)
    except msgspec.ValidationError as error:
        raise _as_ours(str(error)) from error
    unknown = dict.fromkeys(_unknown(raw, value, ""))
    return Read(value, tuple(unknown)[:_MOST_UNKNOWN])


def _parsed(body: bytes) -> Any:
    if not body.strip():
        raise InvalidRequestError("the request has no body: send a JSON object")
    check_weight(body)
    try:
        text = body.decode()
        raw = json.loads(
            text, object_pairs_hook=_object, parse_constant=_no_constant, parse_float=_float, parse_int=_int
        )
    except UnicodeDecodeError as error:
        raise InvalidRequestError(f"the body is not UTF-8 text: {error.reason} at byte {error.start}") from error
    except json.JSONDecodeError as error:
        raise InvalidRequestError(
            f"the body is not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        ) from error
    except RecursionError as error:
        raise InvalidRequestError("the body is nested too deep") from error
    if "\\u" in text:
        _check_surrogates(raw)
    return raw


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = _first_twice(pairs)
        raise InvalidRequestError(f"the key {twice!r} is there more than once in one object", param=twice)
    return found


def _first_twice(pairs: list[tuple[str, Any]]) -> str:
    seen: set[str] = set()
    for name, _ in pairs:
        if name in seen:
            return name
        seen.add(name)
    raise AssertionError("every name is there once")


def _no_constant(name: str) -> Any:
    raise InvalidRequestError(f"the body is not valid JSON: {name} is not a JSON value")


def _float(text: str) -> float | int:
    if not math.isfinite(value := float(text)):
        raise InvalidRequestError(f"the body holds the number {text[:40]}, which is too large")
    # A number without a fraction is an integer to JSON Schema, however it is written.
    return int(value) if value.is_integer() and abs(value) < _INT53 else value


def _int(text: str) -> int:
    if len(text) > _LONGEST_INT or not -_INT64 <= (value := int(text)) < _INT64:
        raise InvalidRequestError(f"the body holds the number {text[:40]}, which doesn't fit in 64 bits")
    return value


def _check_surrogates(raw: Any) -> None:
    """Half a surrogate pair is no character: no engine could be sent such text."""
    for path, text in _texts(raw, ""):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidRequestError(
                f"'{path}' holds half of a surrogate pair (\\u{ord(text[error.start]):04x}), which is no character",
                param=_printable(path) or None,
            ) from error


def _texts(value: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict):
        for name, child in value.items():
            yield _joined(path, _printable(name)), name
            yield from _texts(child, _joined(path, name))
    elif isinstance(value, list):
        for number, child in enumerate(value):
            yield from _texts(child, f"{path}[{number}]")


def _printable(text: str) -> str:
    return text.encode("ascii", "backslashreplace").decode()


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


_VALIDATION = re.compile(r"(?s)(?P<what>.*?)(?: - at `\$(?P<path>.*)`)?")
_MISSING = re.compile(r"Object missing required field `(?P<field>.*)`")
_WRONG_TYPE = re.compile(r"Expected `(?P<wanted>.*)`, got `(?P<got>.*)`")


def _as_ours(message: str, *, path: str = "", types: str = _PART_TYPES) -> InvalidRequestError:
    found = _VALIDATION.fullmatch(message)
    what, inside = (found["what"], (found["path"] or "").removeprefix(".")) if found else (message, "")
    path = _joined(path, inside) if inside else path
    if missing := _MISSING.fullmatch(what):
        param = _joined(path, missing["field"])
        return InvalidRequestError(f"'{param}' is required", param=param)
    if wrong := _WRONG_TYPE.fullmatch(what):
        wanted = " or ".join(_type_name(name) for name in wrong["wanted"].split(" | "))
        subject = f"'{path}'" if path else "the body"
        return InvalidRequestError(f"{subject} must be {wanted}, not {_type_name(wrong['got'])}", param=path or None)
    if what.startswith("Invalid value "):
        known = f"; these are: {types}" if path.rpartition(".")[2] == "type" else ""
        return InvalidRequestError(
            f"'{path}' is {what.removeprefix('Invalid value ')}, which isn't known{known}", param=path
        )
    return InvalidRequestError(f"'{path}': {what}" if path else what, param=path or None)


def _type_name(name: str) -> str:
    return _TYPES.get(name, name)


def _unknown(raw: Any, value: Any, path: str) -> Iterator[str]:
    """Walks the body beside what was made of it."""
    if isinstance(value, Struct):
        fields = value.__struct_fields__
        tag = value.__struct_config__.tag_field
        for name, child in raw.items():
            if name in fields:
                yield from _unknown(child, getattr(value, name), _joined(path, name))
            elif name != tag:
                yield _joined(path, name)
    elif isinstance(value, list) and value and isinstance(value[0], Struct | list):
        for child, made in zip(raw, value, strict=True):
            yield from _unknown(child, made, f"{path}[]")
