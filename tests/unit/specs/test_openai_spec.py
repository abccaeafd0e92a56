"""specs/openai.yaml against what is published, what is refused or ignored, and what is written about it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from support.upstream_specs import Operation, differences, listed, published

from oprel.dialects.openai import rules
from oprel.dialects.openai.responses.wire import ResponseBody
from oprel.dialects.openai.wire import ChatBody, CompletionBody, DetokenizeBody, EmbeddingBody, RerankBody, TokenizeBody
from oprel.testing import specs

HERE = Path(__file__).parent
DOCS = Path(__file__).parents[3] / "docs" / "dialects" / "openai.md"
OPERATIONS = (
    Operation("POST", "/chat/completions", "/chat/completions"),
    Operation("POST", "/chat/completions", "/chat/completions", "text/event-stream", answer="ChatChunk"),
    Operation("POST", "/completions", "/completions"),
    Operation("POST", "/embeddings", "/embeddings"),
    Operation("POST", "/responses", "/responses"),
    Operation("POST", "/responses", "/responses", "text/event-stream"),
    Operation("GET", "/models", "/models"),
    Operation("GET", "/models/{model}", "/models/{model}"),
)
TABLES = {
    "ChatRequest": (rules.CHAT, ChatBody),
    "CompletionRequest": (rules.COMPLETIONS, CompletionBody),
    "EmbeddingRequest": (rules.EMBEDDINGS, EmbeddingBody),
    "ResponseRequest": (rules.RESPONSES, ResponseBody),
    "RerankRequest": (rules.RERANK, RerankBody),
    "TokenizeRequest": (rules.TOKENIZE, TokenizeBody),
    "DetokenizeRequest": (rules.DETOKENIZE, DetokenizeBody),
}

PAGE = (
    rules.CHAT,
    rules.COMPLETIONS,
    rules.EMBEDDINGS,
    rules.MESSAGES,
    rules.RESPONSES,
    rules.ITEMS,
    rules.RERANK,
    rules.TOKENIZE,
    rules.DETOKENIZE,
)


def described(name: str) -> dict[str, Any]:
    """The fields of a request as the document describes them."""
    schemas = specs.load("openai")["components"]["schemas"]
    schema = schemas[name]
    fields: dict[str, Any] = dict(schema.get("properties", {}))
    for part in schema.get("allOf", ()):
        found = schemas[part["$ref"].rpartition("/")[2]] if "$ref" in part else part
        fields |= found["properties"]
    return fields


def test_it_does_not_contradict_what_is_published() -> None:
    found = differences(specs.load("openai"), published("openai.json"), OPERATIONS)
    reasons = listed(HERE / "openai_differences.toml")
    assert [line for line in found if line not in reasons] == [], "differences without a reason"
    assert [line for line in reasons if line not in found] == [], "reasons without a difference"


def test_every_schema_is_one() -> None:
    for schema in specs.load("openai")["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)


@pytest.mark.parametrize("name", TABLES)
def test_document_rules_and_code_name_the_same_fields(name: str) -> None:
    table, body = TABLES[name]
    names = [rule.field for rule in table]
    assert len(names) == len(set(names))
    assert set(names) == set(body.__struct_fields__) == set(described(name))


@pytest.mark.parametrize("name", TABLES)
def test_document_and_rules_treat_each_field_alike(name: str) -> None:
    fields = described(name)
    for rule in TABLES[name][0]:
        assert fields[rule.field].get("x-oprel-treatment", "honoured") == rule.treatment, rule.field
        if rule.low is not None:
            assert (fields[rule.field]["minimum"], fields[rule.field]["maximum"]) == (rule.low, rule.high), rule.field


@pytest.mark.parametrize("table", PAGE)
def test_the_page_says_what_becomes_of_each_field(table: tuple[rules.Rule, ...]) -> None:
    rows = DOCS.read_text("utf-8")
    for rule in table:
        assert f"| `{rule.field}` | {rule.treatment} | {rule.note} |" in rows, rule.field
