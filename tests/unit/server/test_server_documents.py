"""The served document is `specs/`, whole, and the page tells all of it."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from oprel.server.documents import base_paths, documents, load, merged, openapi_json
from oprel.server.page import api_page, rendered

METHODS = {"get", "head", "post", "delete"}
WHOLE = json.loads(openapi_json())


def references(value: Any) -> list[str]:
    if isinstance(value, dict):
        own = [value["$ref"]] if isinstance(value.get("$ref"), str) else []
        return own + [found for each in value.values() for found in references(each)]
    return [found for each in value for found in references(each)] if isinstance(value, list) else []


def test_every_operation_of_every_document_is_served_under_its_full_path() -> None:
    for name in documents():
        for path, item in load(name)["paths"].items():
            (base, *_) = base_paths(load(name), item)
            for method in METHODS & item.keys():
                assert WHOLE["paths"][base + path][method]["tags"] == [name]


def test_paths_beside_the_base_path_stand_where_they_are_served() -> None:
    assert {"/tokenize", "/detokenize", "/v1/rerank"} <= WHOLE["paths"].keys()
    assert "/v1/tokenize" not in WHOLE["paths"]
    assert not any("servers" in item for item in WHOLE["paths"].values())


def test_every_reference_leads_somewhere() -> None:
    found = references(WHOLE)
    assert len(found) > 100
    for target in set(found):
        _, kind, name = target.removeprefix("#/").split("/")
        assert name in WHOLE["components"][kind], target


def test_schemas_are_schemas_still() -> None:
    for schema in WHOLE["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)


def test_operations_keep_their_own_names_and_keys() -> None:
    operations = [item[method] for item in WHOLE["paths"].values() for method in METHODS & item.keys()]
    names = [operation["operationId"] for operation in operations]
    assert len(names) == len(set(names))
    schemes = WHOLE["components"]["securitySchemes"]
    assert all(key in schemes for operation in operations for each in operation["security"] for key in each)


def test_a_reference_out_of_the_document_is_refused() -> None:
    part = {"info": {}, "paths": {"/": {"get": {"responses": {"200": {"$ref": "other.yaml#/x"}}}}}}
    with pytest.raises(ValueError, match="leads elsewhere"):
        merged({"odd": part})


class Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_tells_every_path_and_fetches_nothing() -> None:
    page = Tags(api_page().decode())
    for path in WHOLE["paths"]:
        assert path in page.text
    assert {tag for tag, _ in page.seen}.isdisjoint({"script", "link", "img", "iframe"})
    links = [attributes["href"] for tag, attributes in page.seen if tag == "a"]
    assert links == ["/openapi.json"]
    assert "url(" not in api_page().decode()


def test_the_page_tells_fields_with_their_types() -> None:
    page = api_page().decode()
    assert re.search(r"<code>messages\[\]\.role</code> \*</td><td>", page)
    assert re.search(r"<code>temperature</code></td><td>number", page)


def test_what_a_document_says_is_text_not_markup() -> None:
    hostile = "<script>alert(1)</script>"
    operation = {"summary": hostile, "tags": ["a"], "responses": {"200": {"description": hostile}}}
    document = {
        "info": {"title": hostile, "version": "1", "summary": hostile},
        "tags": [{"name": "a", "description": hostile}],
        "paths": {"/<b>": {"get": operation}},
    }
    assert "<script>" not in rendered(document)
    assert "/<b>" not in rendered(document)
