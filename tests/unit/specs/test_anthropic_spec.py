"""specs/anthropic.yaml against the official package's types, what is refused or ignored, and what is written."""

from __future__ import annotations

import typing
from pathlib import Path
from typing import Any

import pytest
from anthropic import types
from anthropic.types.message_count_tokens_params import MessageCountTokensParams
from anthropic.types.message_create_params import MessageCreateParamsNonStreaming
from anthropic.types.raw_message_stream_event import RawMessageStreamEvent
from jsonschema import Draft202012Validator
from pydantic import TypeAdapter

from oprel.dialects.anthropic import rules
from oprel.dialects.anthropic.wire import CountBody, MessagesBody, ToolBody
from oprel.dialects.rules import Rule
from oprel.testing import specs

DOCS = Path(__file__).parents[3] / "docs" / "dialects" / "anthropic.md"
TABLES = {
    "MessageRequest": (rules.MESSAGES, MessagesBody),
    "CountRequest": (rules.COUNT, CountBody),
    "Tool": (rules.TOOLS, ToolBody),
}
PUBLISHED: dict[str, Any] = {
    "MessageRequest": MessageCreateParamsNonStreaming,
    "CountRequest": MessageCountTokensParams,
    "Tool": types.ToolParam,
}


def schemas() -> dict[str, Any]:
    found: dict[str, Any] = specs.load("anthropic")["components"]["schemas"]
    return found


def described(name: str) -> dict[str, Any]:
    schema = schemas()[name]
    fields: dict[str, Any] = dict(schema.get("properties", {}))
    for part in schema.get("allOf", ()):
        fields |= (schemas()[part["$ref"].rpartition("/")[2]] if "$ref" in part else part)["properties"]
    return fields


def tags(union: Any) -> set[str]:
    """The types that a union of the package's blocks has."""
    found: set[str] = set()
    for member in typing.get_args(union):
        if hints := getattr(member, "__annotations__", None):
            resolved = typing.get_type_hints(member, include_extras=False)
            found |= set(typing.get_args(resolved["type"])) if "type" in hints else set()
    return found


def test_every_schema_is_one() -> None:
    for schema in schemas().values():
        Draft202012Validator.check_schema(schema)


@pytest.mark.parametrize("name", TABLES)
def test_document_rules_and_code_name_the_same_fields(name: str) -> None:
    table, body = TABLES[name]
    names = [rule.field for rule in table]
    assert len(names) == len(set(names))
    assert set(names) == set(body.__struct_fields__) == set(described(name))


@pytest.mark.parametrize("name", TABLES)
def test_all_that_is_published_is_known(name: str) -> None:
    assert set(typing.get_type_hints(PUBLISHED[name])) <= {rule.field for rule in TABLES[name][0]}


def test_every_published_block_is_known() -> None:
    assert tags(types.ContentBlockParam) > {"text", "image"}
    known = {rule.field for rule in rules.BLOCKS}
    assert tags(types.ContentBlockParam) | tags(types.tool_result_block_param.Content) <= known


@pytest.mark.parametrize("name", TABLES)
def test_document_and_rules_treat_each_field_alike(name: str) -> None:
    fields = described(name)
    for rule in TABLES[name][0]:
        assert fields[rule.field].get("x-oprel-treatment", "honoured") == rule.treatment, rule.field
        if rule.low is not None:
            assert (fields[rule.field]["minimum"], fields[rule.field]["maximum"]) == (rule.low, rule.high), rule.field


@pytest.mark.parametrize("table", [rules.MESSAGES, rules.COUNT, rules.BLOCKS, rules.TOOLS])
def test_the_page_says_what_becomes_of_each_field(table: tuple[Rule, ...]) -> None:
    rows = DOCS.read_text("utf-8")
    for rule in table:
        assert f"| `{rule.field}` | {rule.treatment} | {rule.note} |" in rows, rule.field


def test_stop_reasons_are_published_ones() -> None:
    assert set(schemas()["StopReason"]["enum"]) <= set(typing.get_args(types.StopReason))


USAGE = {
    "input_tokens": 1,
    "output_tokens": 2,
    "cache_creation_input_tokens": 0,
    "cache_read_input_tokens": 0,
}
MESSAGE = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "m",
    "content": [],
    "stop_reason": None,
    "stop_sequence": None,
    "usage": USAGE,
}
EVENTS = [
    {"type": "message_start", "message": MESSAGE},
    {
        "type": "content_block_start",
        "index": 0,
        "content_block": {"type": "thinking", "thinking": "", "signature": ""},
    },
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {
        "type": "content_block_start",
        "index": 0,
        "content_block": {"type": "tool_use", "id": "t", "name": "f", "input": {}},
    },
    {"type": "content_block_delta", "index": 0, "delta": {"type": "signature_delta", "signature": "x"}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "input_json_delta", "partial_json": "{"}},
    {"type": "content_block_stop", "index": 0},
    {"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": None}, "usage": USAGE},
    {"type": "message_stop"},
]


@pytest.mark.parametrize("event", EVENTS, ids=[str(event["type"]) for event in EVENTS])
def test_events_are_the_packages_too(event: dict[str, Any]) -> None:
    specs.validate_event("anthropic", "/v1/messages", "POST", event)
    TypeAdapter(RawMessageStreamEvent).validate_python(event, strict=True)
