"""Compares an OpenAPI document of ours with the one that its API's owners publish.

Of a request we may not demand more than they do, and every field of theirs must be described by ours; of an answer we
may not promise less than they do. What differs is a line of text, to be listed with its reason in a file of the tests:

    request POST /completions: n.maximum: ours 128, theirs 100
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

__all__ = ["Operation", "differences", "listed", "published"]

Schema = dict[str, Any]
_ALL = frozenset({"null", "boolean", "integer", "number", "string", "array", "object"})
_LOWER = ("minimum", "minLength", "minItems")
_BOUNDS = {
    "minimum": {"integer", "number"},
    "maximum": {"integer", "number"},
    "minLength": {"string"},
    "maxLength": {"string"},
    "minItems": {"array"},
    "maxItems": {"array"},
    "maxProperties": {"object"},
}
_DISCRIMINATORS = ("role", "type", "object")
_DEEPEST = 14


@dataclass(frozen=True)
class Operation:
    """One operation in both documents; `media` names the content type of the answers that are compared, `answer` the
    component of ours to compare where an answer has alternatives (a streamed event may be a failure)."""

    method: str
    ours: str
    theirs: str
    media: str = "application/json"
    status: str = "200"
    answer: str | None = None

    def __str__(self) -> str:
        stream = "" if self.media == "application/json" else f" ({self.media})"
        return f"{self.method} {self.theirs}{stream}"


def published(name: str) -> dict[str, Any]:
    """The published document `name` (`openai.json`) in the folder OPREL_UPSTREAM_SPECS; skips the test without it."""
    folder = os.environ.get("OPREL_UPSTREAM_SPECS")
    if not folder:
        pytest.skip("OPREL_UPSTREAM_SPECS is not set: no published documents to compare with")
    text = (Path(folder) / name).read_text("utf-8")
    return dict(json.loads(text) if name.endswith(".json") else yaml.safe_load(text))


def listed(path: Path) -> dict[str, str]:
    """From difference to reason: `[[difference]]` tables with `is` (or a list `are`) and `because`."""
    tables = tomllib.loads(path.read_text("utf-8")).get("difference", [])
    found: dict[str, str] = {}
    for table in tables:
        for line in table.get("are", [table["is"]] if "is" in table else []):
            assert line not in found, f"listed twice: {line}"
            assert table["because"].strip(), f"no reason: {line}"
            found[line] = table["because"]
    return found


def differences(ours: dict[str, Any], theirs: dict[str, Any], operations: Iterable[Operation]) -> list[str]:
    found: dict[str, None] = {}
    for operation in operations:
        for line in _of(ours, theirs, operation):
            found.setdefault(line)
    return list(found)


def _of(ours: dict[str, Any], theirs: dict[str, Any], operation: Operation) -> Iterator[str]:
    mine = ours["paths"][operation.ours][operation.method.lower()]
    other = theirs["paths"][operation.theirs][operation.method.lower()]
    if "requestBody" in other and operation.media == "application/json":
        pair = [_content(found["requestBody"], "application/json") for found in (mine, other)]
        for line in _Comparison(ours, theirs, is_request=True).run(*pair):
            yield f"request {operation}: {line}"
    responses = [found["responses"][operation.status] for found in (mine, other)]
    if any(operation.media in response.get("content", {}) for response in responses):
        pair = [_content(response, operation.media) for response in responses]
        if operation.answer is not None:
            pair[0] = {"$ref": f"#/components/schemas/{operation.answer}"}
        for line in _Comparison(ours, theirs, is_request=False).run(*pair):
            yield f"answer {operation}: {line}"


def _content(found: dict[str, Any], media: str) -> Schema:
    return dict(found["content"][media]["schema"])


@dataclass
class _Shape:
    """What a schema admits, its references followed and its alternatives joined. `by` holds the alternatives of objects
    that tell themselves apart by a constant ("type=text")."""

    types: set[str] = field(default_factory=set)
    enum: set[Any] | None = None
    bounds: dict[str, float] = field(default_factory=dict)
    unbounded: set[str] = field(default_factory=set)
    required: set[str] | None = None
    properties: dict[str, list[Schema]] = field(default_factory=dict)
    items: list[Schema] = field(default_factory=list)
    by: dict[str, _Shape] = field(default_factory=dict)


class _Comparison:
    def __init__(self, ours: dict[str, Any], theirs: dict[str, Any], *, is_request: bool) -> None:
        self._ours = ours
        self._theirs = theirs
        self._is_request = is_request

    def run(self, ours: Schema, theirs: Schema) -> Iterator[str]:
        yield from self._schemas([ours], [theirs], "", 0)

    def _schemas(self, ours: list[Schema], theirs: list[Schema], path: str, depth: int) -> Iterator[str]:
        if depth > _DEEPEST:
            return
        yield from self._shapes(_shape(ours, self._ours), _shape(theirs, self._theirs), path, depth)

    def _shapes(self, mine: _Shape, other: _Shape, path: str, depth: int) -> Iterator[str]:
        yield from self._types(mine, other, path)
        yield from self._enums(mine, other, path)
        if self._is_request:
            yield from self._bounds(mine, other, path)
        if mine.by and other.by:
            yield from self._variants(mine, other, path, depth)
        else:
            yield from self._objects(mine, other, path, depth)
        if mine.items and other.items:
            yield from self._schemas(mine.items, other.items, f"{path}[]", depth + 1)

    def _types(self, mine: _Shape, other: _Shape, path: str) -> Iterator[str]:
        inner, outer = (other, mine) if self._is_request else (mine, other)
        words = "not accepted by ours" if self._is_request else "answered by ours only"
        missing = inner.types - outer.types
        if "number" in outer.types:
            missing.discard("integer")
        if missing and inner.types != _ALL:
            yield f"{path or 'the body'}: {', '.join(sorted(missing))} {words}"

    def _enums(self, mine: _Shape, other: _Shape, path: str) -> Iterator[str]:
        inner, outer = (other, mine) if self._is_request else (mine, other)
        if outer.enum is None or "string" not in inner.types:
            return
        words = "not accepted by ours" if self._is_request else "answered by ours only"
        if inner.enum is None:
            yield f"{path}: any text {words}"
        elif extra := {value for value in inner.enum - outer.enum if value is not None}:
            yield f"{path}: {', '.join(sorted(map(repr, extra)))} {words}"

    def _bounds(self, mine: _Shape, other: _Shape, path: str) -> Iterator[str]:
        for name, value in mine.bounds.items():
            theirs = other.bounds.get(name)
            is_tighter = theirs is None or (value > theirs if name in _LOWER else value < theirs)
            if is_tighter:
                yield f"{path}.{name}: ours {value:g}, theirs {'none' if theirs is None else format(theirs, 'g')}"

    def _variants(self, mine: _Shape, other: _Shape, path: str, depth: int) -> Iterator[str]:
        inner, outer = (other, mine) if self._is_request else (mine, other)
        words = "not known to ours" if self._is_request else "answered by ours only"
        for key in inner.by:
            if key not in outer.by:
                yield f"{path}<{key}>: {words}"
            else:
                yield from self._objects(mine.by[key], other.by[key], f"{path}<{key}>", depth)

    def _objects(self, mine: _Shape, other: _Shape, path: str, depth: int) -> Iterator[str]:
        required, theirs = mine.required or set(), other.required or set()
        for name in sorted(required - theirs if self._is_request else theirs - required):
            if self._is_request or name in other.properties:
                yield f"{_joined(path, name)}: required by {'ours' if self._is_request else 'theirs'} only"
        known, described = (other, mine) if self._is_request else (mine, other)
        for name, schemas in known.properties.items():
            if name in described.properties:
                pair = (mine.properties[name], other.properties[name])
                yield from self._schemas(*pair, _joined(path, name), depth + 1)
            elif schemas and described.properties:
                yield f"{_joined(path, name)}: {'not described by ours' if self._is_request else 'added by ours'}"


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _shape(schemas: list[Schema], document: dict[str, Any]) -> _Shape:
    """The union of several schemas."""
    shape = _Shape()
    for schema in schemas:
        for alternative in _alternatives(schema, document):
            _add(shape, alternative)
    if any(not key for key in shape.by) or len(shape.by) < 2:
        shape.by = {}
    return shape


def _add(shape: _Shape, schema: Schema) -> None:
    types = _types_of(schema)
    is_first_text = "string" not in shape.types
    shape.types |= types
    if "string" in types:
        values = _values(schema)
        if is_first_text:
            shape.enum = values
        elif shape.enum is not None:
            shape.enum = None if values is None else shape.enum | values
    _add_bounds(shape, schema, types)
    if "items" in schema:
        shape.items.append(schema["items"])
    if "object" in types and types != _ALL:
        _add_object(shape, schema)


def _add_object(shape: _Shape, schema: Schema) -> None:
    required = set(schema.get("required", ()))
    shape.required = required if shape.required is None else shape.required & required
    for name, inner in schema.get("properties", {}).items():
        shape.properties.setdefault(name, []).append(inner)
    for key in _keys(schema):
        variant = shape.by.setdefault(key, _Shape())
        variant.types.add("object")
        variant.required = required if variant.required is None else variant.required & required
        for name, inner in schema.get("properties", {}).items():
            variant.properties.setdefault(name, []).append(inner)


def _keys(schema: Schema) -> list[str]:
    for name in _DISCRIMINATORS:
        values = _values(schema.get("properties", {}).get(name, {}))
        if values:
            return [f"{name}={value}" for value in sorted(value for value in values if value is not None)]
    return [""]


def _add_bounds(shape: _Shape, schema: Schema, types: set[str]) -> None:
    """A bound holds for the union only where all alternatives of its type have one; the widest counts."""
    for name, of in _BOUNDS.items():
        if not types & of:
            continue
        value = schema.get(name)
        if value is None or name in shape.unbounded:
            shape.unbounded.add(name)
            shape.bounds.pop(name, None)
        else:
            widest = min if name in _LOWER else max
            shape.bounds[name] = widest(value, shape.bounds.get(name, value))


def _types_of(schema: Schema) -> set[str]:
    declared = schema.get("type")
    types = {declared} if isinstance(declared, str) else set(declared or ())
    if not types and (values := _values(schema)) is not None:
        types = {"string" if isinstance(value, str) else "null" for value in values}
    if not types and "properties" in schema:
        types = {"object"}
    if schema.get("nullable"):
        types.add("null")
    return types or set(_ALL)


def _values(schema: Schema) -> set[Any] | None:
    if "const" in schema:
        return {schema["const"]}
    return set(schema["enum"]) if "enum" in schema else None


def _alternatives(schema: Schema, document: dict[str, Any]) -> Iterator[Schema]:
    """The schema as alternatives without references, `allOf`, `oneOf` and `anyOf`."""
    nullable = {"type": "null"} if schema.get("nullable") else None
    if nullable and any(key in schema for key in ("$ref", "oneOf", "anyOf", "allOf")):
        yield nullable
    if "$ref" in schema:
        yield from _alternatives(_found(schema["$ref"], document), document)
        return
    for key in ("oneOf", "anyOf"):
        if key in schema:
            for branch in schema[key]:
                yield from _alternatives(branch, document)
            return
    if "allOf" in schema:
        yield from _merged([list(_alternatives(part, document)) for part in schema["allOf"]])
        return
    yield schema


def _merged(parts: list[list[Schema]]) -> Iterator[Schema]:
    """`allOf` of objects: all their fields. Where a part has alternatives, the first stands for it."""
    merged: Schema = {"type": "object", "properties": {}, "required": []}
    for alternatives in parts:
        first = alternatives[0]
        for name, inner in first.get("properties", {}).items():
            merged["properties"].setdefault(name, inner)
        merged["required"] += first.get("required", [])
    yield merged


def _found(reference: str, document: dict[str, Any]) -> Schema:
    found: Any = document
    for step in reference.removeprefix("#/").split("/"):
        found = found[step.replace("~1", "/").replace("~0", "~")]
    return dict(found)
