"""Schemas and stop strings within bounds pass unchanged; those beyond are refused, naming the part at fault."""

from __future__ import annotations

import json
from typing import Any

import pytest

from oprel.dialects.bounds import SchemaBudget, checked_schema, checked_stops, unenforced_keywords
from oprel.errors import InvalidRequestError

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 80},
        "pattern": {"type": "string", "pattern": "^[a-z]+$"},
        "tags": {"type": "array", "items": {"type": "string"}, "maxItems": 10},
        "parent": {"anyOf": [{"$ref": "#"}, {"type": "null"}]},
        "home": {"$ref": "#/$defs/place~1home"},
        "kind": {"enum": [{"pattern": "(a?)*"}, "b", None]},
    },
    "required": ["name"],
    "additionalProperties": False,
    "$defs": {"place/home": {"type": "object", "properties": {"zip": {"type": "string", "pattern": r"^\d{5}$"}}}},
}


def nested(levels: int, key: str = "items") -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(levels):
        schema = {key: schema}
    return schema


def chained(count: int) -> dict[str, Any]:
    defs: dict[str, Any] = {f"d{n}": {"items": {"$ref": f"#/$defs/d{n + 1}"}} for n in range(count)}
    return {"$ref": "#/$defs/d0", "$defs": {**defs, f"d{count}": {}}}


def test_a_schema_within_bounds_is_its_own_text_but_for_its_patterns() -> None:
    before = json.dumps(PERSON)
    found = json.loads(checked_schema(PERSON, param="s"))
    assert json.dumps(PERSON) == before
    assert found["properties"]["pattern"].pop("pattern") == "^[a-z]+$"
    assert found["$defs"]["place/home"]["properties"]["zip"].pop("pattern") == "^[0-9]{5}$"
    expected = json.loads(before)
    del expected["properties"]["pattern"]["pattern"]
    del expected["$defs"]["place/home"]["properties"]["zip"]["pattern"]
    assert found == expected


HOSTILE: dict[str, tuple[Any, str]] = {
    "not an object": ([], "s"),
    "20,000 nested arrays": (nested(20_000), "s"),
    "33 levels": (nested(33), "s" + ".items" * 32),
    "an anyOf of 3,000 objects": ({"anyOf": [{"type": "object"}] * 3000}, "s.anyOf"),
    "a oneOf of 65": ({"oneOf": [{}] * 65}, "s.oneOf"),
    "an enum of 1,001": ({"enum": list(range(1001))}, "s.enum"),
    "501 properties": ({"properties": {str(n): {} for n in range(501)}}, "s.properties"),
    "1,001 nodes": ({"prefixItems": [{}] * 1000}, "s"),
    "64 KiB of text": ({"description": "x" * 65536}, "s"),
    "a pattern that wedges": (
        {"properties": {"a": {"type": "string", "pattern": "^((a?){20}){20}$"}}},
        "s.properties.a.pattern",
    ),
    "a pattern that is none": ({"pattern": 5}, "s.pattern"),
    "a long text": ({"maxLength": 1001}, "s.maxLength"),
    "a negative count": ({"minItems": -1}, "s.minItems"),
    "a count that is no number": ({"minItems": "x"}, "s.minItems"),
    "a count that is true": ({"minItems": True}, "s.minItems"),
    "nested repeats": ({"maxItems": 100, "items": {"maxItems": 100, "items": {}}}, "s"),
    "nested repeats through a reference": (
        {"maxItems": 100, "items": {"$ref": "#/$defs/a"}, "$defs": {"a": {"maxLength": 100}}},
        "s",
    ),
    "repeats of a repeating pattern": ({"maxItems": 50, "items": {"pattern": "^(ab){30}$"}}, "s"),
    "a reference that leads out": ({"$ref": "http://127.0.0.1/x"}, "s.$ref"),
    "a reference to a file": ({"$ref": "file:///etc/passwd"}, "s.$ref"),
    "a reference to nothing": ({"$ref": "#/$defs/a"}, "s.$ref"),
    "a reference that is no text": ({"$ref": 5}, "s.$ref"),
    "a reference to itself": ({"$ref": "#"}, "s.$ref"),
    "a circle of references": (
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
        "s.$defs.a.$ref",
    ),
    "a reference into values": ({"items": {"$ref": "#/enum/0"}, "enum": [{"pattern": "(a?)*"}]}, "s.items.$ref"),
    "a long chain of references": (chained(300), "s"),
    "an integer beyond 64 bits": ({"maximum": 2**63}, "s.maximum"),
}


@pytest.mark.parametrize(("schema", "param"), HOSTILE.values(), ids=HOSTILE.keys())
def test_a_schema_beyond_bounds_is_refused_where_it_is_at_fault(schema: Any, param: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        checked_schema(schema, param="s")
    assert caught.value.param == param
    assert caught.value.message.startswith(f"'{param}' ")


def test_a_recursive_schema_passes() -> None:
    tree = {"type": "object", "properties": {"children": {"type": "array", "items": {"$ref": "#"}, "maxItems": 9}}}
    assert json.loads(checked_schema(tree, param="s")) == tree


def test_all_schemas_of_a_request_share_a_budget() -> None:
    budget = SchemaBudget()
    large: dict[str, Any] = {"prefixItems": [{}] * 998}
    for _ in range(4):
        checked_schema(large, param="s", budget=budget)
    with pytest.raises(InvalidRequestError, match="4000 nodes in total"):
        checked_schema(large, param="s", budget=budget)


@pytest.mark.parametrize(
    ("value", "stops"),
    [(None, ()), ("", ()), ("x", ("x",)), (["a", "", "b", "a"], ("a", "b")), ([""], ()), (["\n"], ("\n",))],
)
def test_stops_are_those_that_can_end_a_text(value: Any, stops: tuple[str, ...]) -> None:
    assert checked_stops(value, param="stop") == stops


@pytest.mark.parametrize("value", [["x"] * 17, ["x" * 1025], "x" * 1025], ids=["many", "a long one", "long"])
def test_stops_are_bounded(value: Any) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        checked_stops(value, param="stop")
    assert caught.value.param == "stop"


def test_what_no_engine_holds_an_answer_to_is_told() -> None:
    schema = {
        "properties": {
            "not": {"type": "integer", "minimum": 1},
            "b": {"type": "number", "minimum": 1},
            "c": {"type": "array", "uniqueItems": True, "items": {"not": {"const": 1}}},
        }
    }
    assert sorted(unenforced_keywords(json.dumps(schema))) == ["minimum", "not", "uniqueItems"]
    assert unenforced_keywords(checked_schema(PERSON, param="s")) == ()
