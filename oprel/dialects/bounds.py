"""How much a client may ask of an engine: schemas, patterns and stop strings within bounds.

A JSON Schema becomes a grammar inside the engine. One that nests, branches or repeats too much has stopped or crashed
engines for all their clients, so each is measured before any engine sees it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from oprel.dialects.patterns import MAX_REPEATS, PatternError, checked_pattern
from oprel.errors import InvalidRequestError
from oprel.schema import JsonSchema, OutputFormat, events

__all__ = [
    "MAX_STOPS",
    "MAX_TURNS",
    "SchemaBudget",
    "check_turns",
    "checked_schema",
    "checked_stops",
    "schema_warnings",
    "unenforced_keywords",
]

MAX_STOPS = 16
MAX_TURNS = 10_000

_MAX_STOP_LENGTH = 1024
_MAX_SCHEMA_BYTES = 64 * 1024
_MAX_DEPTH = 32
_MAX_NODES = 1000
_MAX_ENUM = 1000
_MAX_ALTERNATIVES = 64
_MAX_PROPERTIES = 500
_MAX_PATTERN_CHARACTERS = 4096  # to look at a pattern takes some 20 microseconds for each
_INT64 = 2**63

_ALTERNATIVES = ("anyOf", "oneOf", "allOf")
_MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_LISTS = (*_ALTERNATIVES, "prefixItems", "items")
_SINGLES = (
    "items", "additionalItems", "additionalProperties", "unevaluatedItems", "unevaluatedProperties", "contains",
    "propertyNames", "not", "if", "then", "else",
)  # fmt: skip
_REPEATS = ("minItems", "maxItems", "minLength", "maxLength")

# What grammars of engines pass over: an answer may break these, and the client should know. Limits of numbers are kept
# for integers only.
_UNENFORCED = (
    "not", "if", "then", "else", "patternProperties", "propertyNames", "minProperties", "maxProperties", "uniqueItems",
    "contains", "minContains", "maxContains", "multipleOf", "dependentRequired", "dependentSchemas", "unevaluatedItems",
    "unevaluatedProperties",
)  # fmt: skip
_NUMBER_LIMITS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")

Schema = dict[str, Any]


class SchemaBudget:
    """How many schema nodes, and characters of patterns, one request may still use, over all of its schemas (tools
    bring one each)."""

    def __init__(self, nodes: int = 4 * _MAX_NODES) -> None:
        self.nodes = nodes
        self.pattern_characters = _MAX_PATTERN_CHARACTERS

    def spend(self, nodes: int, *, param: str) -> None:
        self.nodes -= nodes
        if self.nodes < 0:
            raise _refused(param, f"brings this request's schemas to more than {4 * _MAX_NODES} nodes in total")


def check_turns(count: int, *, param: str) -> None:
    """Of messages, of the parts of one, or of texts. More are of no use: each costs a model tokens, and engines all
    their time to put them into its form."""
    if count > MAX_TURNS:
        raise InvalidRequestError(f"'{param}' has {count} entries; at most {MAX_TURNS} are allowed", param=param)


def checked_stops(value: str | list[str] | None, *, param: str) -> tuple[str, ...]:
    """Stop strings without empty ones (an empty one would end every answer at once) and without repetition."""
    stops = [value] if isinstance(value, str) else value or []
    if len(stops) > MAX_STOPS:
        raise InvalidRequestError(f"'{param}' has {len(stops)} strings; at most {MAX_STOPS} are allowed", param=param)
    for stop in stops:
        if len(stop) > _MAX_STOP_LENGTH:
            raise InvalidRequestError(
                f"'{param}' has a string of {len(stop)} characters; at most {_MAX_STOP_LENGTH} are allowed",
                param=param,
            )
    return tuple(dict.fromkeys(stop for stop in stops if stop))


def checked_schema(
    schema: object, *, param: str, budget: SchemaBudget | None = None, dropped: list[str] | None = None
) -> str:
    """The schema as compact JSON text, its patterns written anew in the plainest form (`patterns` says why). Raises
    InvalidRequestError, its `param` the path of the part at fault.

    Bounds: 64 KiB, 32 levels, 1,000 nodes, 1,000 enum values, 64 alternatives, 500 properties, and 1,000 for the
    product of nested repeats (lengths and item counts; a pattern counts with its own). References stay inside the
    schema and lead somewhere; patterns keep to `patterns`' subset. Where `dropped` is given, a pattern, length or count
    beyond these is left out of the text, and its path added: a tool that isn't strict works without them.
    """
    if not isinstance(schema, dict):
        raise _refused(param, "must be a JSON object that is a JSON Schema")
    _check_nesting(schema, param)
    text = msgspec.json.encode(schema)
    if len(text) > _MAX_SCHEMA_BYTES:
        raise _refused(param, f"has {len(text)} bytes; at most {_MAX_SCHEMA_BYTES} are allowed")
    own = msgspec.json.decode(text, type=dict[str, Any])
    budget = budget or SchemaBudget()
    measure = _Measure(own, param, dropped, budget)
    measure.walk()
    budget.spend(measure.nodes, param=param)
    return msgspec.json.encode(own).decode() if measure.has_changed else text.decode()


def schema_warnings(format_: OutputFormat | None, dropped: Iterable[str]) -> tuple[events.Warning, ...]:
    """One for each keyword that answers aren't held to: the format's own, and those `dropped` from tools."""
    keywords = unenforced_keywords(format_.schema) if isinstance(format_, JsonSchema) else ()
    return tuple(
        events.Warning("schema_not_enforced", f"answers aren't held to '{name}'") for name in (*keywords, *dropped)
    )


def unenforced_keywords(schema: str) -> tuple[str, ...]:
    """Keywords of a checked schema that no engine holds an answer to, each once."""
    found: dict[str, None] = {}
    for part in _every(msgspec.json.decode(schema, type=dict[str, Any])):
        names = _UNENFORCED if part.get("type") == "integer" else (*_UNENFORCED, *_NUMBER_LIMITS)
        found |= dict.fromkeys(name for name in names if name in part)
    return tuple(found)


def _refused(param: str, what: str) -> InvalidRequestError:
    return InvalidRequestError(f"'{param}' {what}", param=param)


def _check_nesting(schema: Schema, param: str) -> None:
    """Before anything recursive: a level of schema is at most two levels of JSON ("properties", then the name)."""
    level: list[Any] = [schema]
    for _ in range(2 * _MAX_DEPTH):
        level = [inner for outer in level for inner in _containers(outer)]
        if not level:
            return
    raise _refused(param, f"is nested more than {_MAX_DEPTH} levels deep")


def _containers(value: Any) -> Iterator[Any]:
    children: Iterable[Any] = value.values() if isinstance(value, dict) else value
    return (child for child in children if isinstance(child, dict | list))


class _Measure:
    """One walk over a schema: counts, checks, and then the product of nested repeats through references. Patterns are
    written anew in it."""

    def __init__(self, root: Schema, param: str, dropped: list[str] | None, budget: SchemaBudget) -> None:
        self.nodes = 0
        self.has_changed = False
        self._dropped = dropped
        self._budget = budget
        self._root = root
        self._param = param
        self._own: dict[int, int] = {}
        self._inner: dict[int, list[Schema]] = {}
        self._products: dict[int, int] = {}
        self._schemas: set[int] | None = None

    def walk(self) -> None:
        self._visit(self._root, self._param, 1)
        self._product(self._root)

    def _visit(self, schema: Schema, path: str, depth: int) -> None:
        self.nodes += 1
        if self.nodes > _MAX_NODES:
            raise _refused(self._param, f"has more than {_MAX_NODES} nodes")
        if depth > _MAX_DEPTH:
            raise _refused(path, f"is nested more than {_MAX_DEPTH} levels deep")
        self._own[id(schema)] = self._repeats(schema, path)
        self._check_sizes(schema, path)
        inner = self._inner[id(schema)] = []
        for name, child in _subschemas(schema, path):
            self._visit(child, name, depth + 1)
            inner.append(child)
        if "$ref" in schema:
            inner.append(self._target(schema["$ref"], f"{path}.$ref"))

    def _check_sizes(self, schema: Schema, path: str) -> None:
        limits = (
            ("enum", _MAX_ENUM),
            ("properties", _MAX_PROPERTIES),
            *((n, _MAX_ALTERNATIVES) for n in _ALTERNATIVES),
        )
        for name, most in limits:
            value = schema.get(name)
            if isinstance(value, dict | list) and len(value) > most:
                raise _refused(f"{path}.{name}", f"has {len(value)} entries; at most {most} are allowed")

    def _repeats(self, schema: Schema, path: str) -> int:
        own = max(self._count(schema, name, f"{path}.{name}") for name in _REPEATS)
        for name in _NUMBER_LIMITS:
            value = schema.get(name)
            if isinstance(value, int) and abs(value) >= _INT64:
                raise _refused(f"{path}.{name}", f"is {value}; it must fit in 64 bits")
        return max(own, self._pattern(schema, f"{path}.pattern"))

    def _count(self, schema: Schema, name: str, path: str) -> int:
        value = schema.get(name)
        if value is None:
            return 1
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise _refused(path, f"is {value!r}; it must be an integer of 0 or more")
        if value > MAX_REPEATS:
            self._drop(schema, name, _refused(path, f"is {value}; at most {MAX_REPEATS} is allowed"))
            return 1
        return max(1, value)

    def _pattern(self, schema: Schema, path: str) -> int:
        pattern = schema.get("pattern")
        if pattern is None:
            return 1
        if not isinstance(pattern, str):
            raise _refused(path, f"is {pattern!r}; it must be a regular expression")
        self._budget.pattern_characters -= len(pattern)
        if self._budget.pattern_characters < 0:
            what = f"brings this request's patterns to more than {_MAX_PATTERN_CHARACTERS} characters in total"
            self._drop(schema, "pattern", _refused(path, what))
            return 1
        try:
            found = checked_pattern(pattern)
        except PatternError as error:
            self._drop(schema, "pattern", _refused(path, f"{error}: {pattern[:100]!r}"))
            return 1
        self.has_changed = True
        schema["pattern"] = found.text
        return found.repeats

    def _drop(self, schema: Schema, name: str, refusal: InvalidRequestError) -> None:
        if self._dropped is None:
            raise refusal
        self.has_changed = True
        self._dropped.append(refusal.param or name)
        del schema[name]

    def _target(self, reference: object, path: str) -> Schema:
        """The schema that a reference names; a chain of references must end somewhere."""
        found = end = self._resolve(reference, path)
        for _ in range(_MAX_DEPTH):
            if "$ref" not in end:
                return found
            end = self._resolve(end["$ref"], path)
        raise _refused(path, "leads in a circle")

    def _resolve(self, reference: object, path: str) -> Schema:
        if not isinstance(reference, str) or not (reference == "#" or reference.startswith("#/")):
            raise _refused(path, f"is {reference!r}; only references inside the schema ('#/…') are followed")
        found: Any = self._root
        for step in reference.split("/")[1:]:
            name = step.replace("~1", "/").replace("~0", "~")
            if isinstance(found, list) and name.isascii() and name.isdigit() and int(name) < len(found):
                found = found[int(name)]
            elif isinstance(found, dict) and name in found:
                found = found[name]
            else:
                found = None
                break
        if not isinstance(found, dict) or id(found) not in self._reachable():
            raise _refused(path, f"is {reference!r}, which leads to no schema")
        return found

    def _reachable(self) -> set[int]:
        """Every schema of the document by identity: a reference into an enum's values, say, would be unmeasured."""
        if self._schemas is None:
            self._schemas = {id(schema) for schema in _every(self._root)}
        return self._schemas

    def _product(self, schema: Schema, depth: int = 1) -> int:
        """The largest product of repeats on a way down from `schema`; a reference back to a schema that is being
        measured counts once (the engine makes one rule of it)."""
        key = id(schema)
        if key in self._products:
            return self._products[key]
        if depth > 4 * _MAX_DEPTH:
            raise _refused(self._param, f"is nested more than {4 * _MAX_DEPTH} levels deep through its references")
        self._products[key] = found = 1
        for child in self._inner[key]:
            found = max(found, self._product(child, depth + 1))
        found *= self._own[key]
        if found > MAX_REPEATS:
            raise _refused(self._param, f"repeats its parts up to {found} times when nested; at most {MAX_REPEATS}")
        self._products[key] = found
        return found


def _subschemas(schema: Schema, path: str) -> Iterator[tuple[str, Schema]]:
    for name in _MAPS:
        value = schema.get(name)
        if isinstance(value, dict):
            yield from ((f"{path}.{name}.{key}", child) for key, child in value.items() if isinstance(child, dict))
    for name in _LISTS:
        value = schema.get(name)
        if isinstance(value, list):
            yield from ((f"{path}.{name}[{n}]", child) for n, child in enumerate(value) if isinstance(child, dict))
    for name in _SINGLES:
        value = schema.get(name)
        if isinstance(value, dict):
            yield f"{path}.{name}", value


def _every(schema: Schema) -> Iterator[Schema]:
    yield schema
    for _, child in _subschemas(schema, ""):
        yield from _every(child)
