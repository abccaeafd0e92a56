"""`specs/ollama.yaml`: it is sound, and it doesn't contradict the published document."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from support.upstream_specs import Operation, differences, listed, published

from oprel.dialects.ollama import rules
from oprel.dialects.ollama.options import DEFAULTS, OPTIONS
from oprel.dialects.ollama.routes import RAW_ROUTES, ROUTES
from oprel.dialects.ollama.wire import ChatRequest, EmbeddingRequest, EmbedRequest, GenerateRequest
from oprel.testing import specs

PAGE = specs.specs_dir().parent / "docs" / "dialects" / "ollama.md"
TABLES = {
    "GenerateRequest": (rules.GENERATE, GenerateRequest),
    "ChatRequest": (rules.CHAT, ChatRequest),
    "EmbedRequest": (rules.EMBED, EmbedRequest),
    "EmbeddingsRequest": (rules.EMBEDDINGS, EmbeddingRequest),
}

POSTS = ("show", "generate", "chat", "embed", "pull", "create")
OPERATIONS = (
    Operation("GET", "/api/tags", "/api/tags"),
    Operation("GET", "/api/ps", "/api/ps"),
    Operation("GET", "/api/version", "/api/version"),
    Operation("DELETE", "/api/delete", "/api/delete"),
    Operation("POST", "/api/copy", "/api/copy"),
    *(Operation("POST", f"/api/{name}", f"/api/{name}") for name in POSTS),
    *(
        Operation("POST", f"/api/{name}", f"/api/{name}", media="application/x-ndjson")
        for name in ("generate", "chat", "pull", "create")
    ),
)


def test_every_schema_is_a_schema() -> None:
    for schema in specs.load("ollama")["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)


def test_every_route_is_in_the_document() -> None:
    paths = specs.load("ollama")["paths"]
    described = {
        (path, method.upper()) for path, methods in paths.items() for method in methods if method != "parameters"
    }
    assert described == {(known.path, method) for known in (*ROUTES, *RAW_ROUTES) for method in known.methods}


def test_every_option_is_described_with_its_default() -> None:
    described = specs.load("ollama")["components"]["schemas"]["Options"]["properties"]
    assert set(described) == {name for name, option in OPTIONS.items() if option.goes_to is not None}
    assert {name: described[name]["default"] for name in DEFAULTS} == DEFAULTS


def described(name: str) -> dict[str, Any]:
    """The fields of a request as the document describes them, and the options as fields."""
    schemas = specs.load("ollama")["components"]["schemas"]
    options = {f"options.{option}": schema for option, schema in schemas["Options"]["properties"].items()}
    return {**schemas[name]["properties"], **options}


@pytest.mark.parametrize("name", TABLES)
def test_document_rules_and_code_name_the_same_fields(name: str) -> None:
    table, body = TABLES[name]
    names = [rule.field for rule in table]
    assert len(names) == len(set(names))
    fields = {field for field in names if not field.startswith("options.")}
    assert fields == set(body.__struct_encode_fields__)
    without_effect = {f"options.{option}" for option, known in OPTIONS.items() if known.goes_to is None}
    assert set(names) - without_effect == set(described(name))
    assert set(names) - fields == {f"options.{option}" for option in OPTIONS}


@pytest.mark.parametrize("name", TABLES)
def test_document_and_rules_treat_each_field_alike(name: str) -> None:
    fields = described(name)
    for rule in TABLES[name][0]:
        if not rule.field.startswith("options."):
            assert fields[rule.field].get("x-oprel-treatment", "honoured") == rule.treatment, rule.field
        if rule.low is not None:
            assert (fields[rule.field]["minimum"], fields[rule.field]["maximum"]) == (rule.low, rule.high), rule.field


@pytest.mark.parametrize("name", TABLES)
def test_all_that_is_published_is_known(name: str) -> None:
    document = published("ollama.yaml")["components"]["schemas"]
    fields = set(document.get(name, {}).get("properties", ()))
    options = {f"options.{option}" for option in document["ModelOptions"]["properties"]}
    assert fields | options <= {rule.field for rule in TABLES[name][0]}


@pytest.mark.parametrize("name", TABLES)
def test_the_page_says_what_becomes_of_each_field(name: str) -> None:
    """Options are told once, as they are where text is made."""
    rows = PAGE.read_text("utf-8")
    for rule in TABLES[name][0]:
        if rule.note != rules.UNSAMPLED:
            assert f"| `{rule.field}` | {rule.treatment} | {rule.note} |" in rows, rule.field


def test_every_route_is_in_the_page() -> None:
    page = PAGE.read_text("utf-8")
    assert [known.path for known in (*ROUTES, *RAW_ROUTES) if f"{known.path}`" not in page] == []


def test_it_does_not_contradict_the_published_document() -> None:
    expected = listed(Path(__file__).with_name("upstream_differences.toml"))
    found = differences(specs.load("ollama"), published("ollama.yaml"), OPERATIONS)
    assert sorted(found) == sorted(expected)
