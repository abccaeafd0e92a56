"""The comparison itself: each way in which a document may ask more or promise less is told."""

from __future__ import annotations

from typing import Any

import pytest
from support.upstream_specs import Operation, differences

TEXT = {"type": "string"}


def document(request: Any = None, answer: Any = None) -> dict[str, Any]:
    operation: dict[str, Any] = {"responses": {"200": {"content": {"application/json": {"schema": answer or {}}}}}}
    if request is not None:
        operation["requestBody"] = {"content": {"application/json": {"schema": request}}}
    return {"paths": {"/x": {"post": operation}}, "components": {"schemas": {"Text": TEXT}}}


def of(required: list[str] | None = None, **properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": required or [], "properties": properties}


def variant(name: str, **properties: Any) -> dict[str, Any]:
    return of(["type"], type={"const": name}, **properties)


REQUESTS = {
    "required": (of(["a"], a=TEXT), of(a=TEXT), "a: required by ours only"),
    "null": (of(a=TEXT), of(a={**TEXT, "nullable": True}), "a: null not accepted by ours"),
    "type": (of(a={"type": "integer"}), of(a={"type": "number"}), "a: number not accepted by ours"),
    "enum": (of(a={"enum": ["x"]}), of(a={"enum": ["x", "y"]}), "a: 'y' not accepted by ours"),
    "text": (of(a={"enum": ["x"]}), of(a=TEXT), "a: any text not accepted by ours"),
    "range": (of(a={"type": "integer", "maximum": 5}), of(a={"type": "integer"}), "a.maximum: ours 5, theirs none"),
    "range of a union": (
        of(a={"oneOf": [{"type": "array", "maxItems": 2, "items": TEXT}, TEXT]}),
        of(a={"oneOf": [{"type": "array", "maxItems": 4, "items": TEXT}, TEXT]}),
        "a.maxItems: ours 2, theirs 4",
    ),
    "undescribed": (of(a=TEXT), of(a=TEXT, b=TEXT), "b: not described by ours"),
    "deep": (
        of(a={"type": "array", "items": of(["b"], b=TEXT)}),
        of(a={"type": "array", "items": of(b=TEXT)}),
        "a[].b: required by ours only",
    ),
    "variant": (
        {"oneOf": [variant("x"), variant("y")]},
        {"oneOf": [variant("x"), variant("y"), variant("z")]},
        "<type=z>: not known to ours",
    ),
    "in a variant": (
        {"oneOf": [of(["type", "a"], type={"const": "x"}, a=TEXT), variant("y")]},
        {"anyOf": [variant("x", a=TEXT), variant("y")]},
        "<type=x>.a: required by ours only",
    ),
    "in allOf": ({"allOf": [of(["a"], a=TEXT), of(b=TEXT)]}, of(a=TEXT, b=TEXT), "a: required by ours only"),
    "by reference": (
        of(a={"$ref": "#/components/schemas/Text"}),
        of(a={"oneOf": [{"$ref": "#/components/schemas/Text"}], "nullable": True}),
        "a: null not accepted by ours",
    ),
}

ANSWERS = {
    "required": (of(a=TEXT), of(["a"], a=TEXT), "a: required by theirs only"),
    "null": (of(a={"type": ["string", "null"]}), of(a=TEXT), "a: null answered by ours only"),
    "enum": (of(a={"enum": ["x", "y"]}), of(a={"enum": ["x"]}), "a: 'y' answered by ours only"),
    "any text": (of(a=TEXT), of(a={"enum": ["x"]}), "a: any text answered by ours only"),
    "added": (of(a=TEXT, b=TEXT), of(a=TEXT), "b: added by ours"),
}


@pytest.mark.parametrize(("ours", "theirs", "line"), REQUESTS.values(), ids=REQUESTS.keys())
def test_a_request_may_not_ask_more(ours: Any, theirs: Any, line: str) -> None:
    found = differences(document(ours), document(theirs), [Operation("POST", "/x", "/x")])
    assert found == [f"request POST /x: {line}"]


@pytest.mark.parametrize(("ours", "theirs", "line"), ANSWERS.values(), ids=ANSWERS.keys())
def test_an_answer_may_not_promise_less(ours: Any, theirs: Any, line: str) -> None:
    found = differences(document(answer=ours), document(answer=theirs), [Operation("POST", "/x", "/x")])
    assert found == [f"answer POST /x: {line}"]


def test_what_is_wider_in_requests_and_narrower_in_answers_is_no_difference() -> None:
    wide = of(a={"type": ["string", "null"], "maxLength": 9}, b=TEXT)
    narrow = of(["a"], a={"type": "string", "maxLength": 5})
    operation = [Operation("POST", "/x", "/x")]
    assert differences(document(wide, answer=narrow), document(narrow, answer=of(a=TEXT)), operation) == []
