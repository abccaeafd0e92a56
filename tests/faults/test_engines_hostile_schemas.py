"""Schemas and patterns that have stopped or crashed engines, on the real one: at the bounds they are answered in time,
beyond them they never reach it, and the request after each is answered."""

from __future__ import annotations

import time
from typing import Any

import httpx
import pytest
from support.models import CHAT_MODEL
from support.servers import RealServer

LIMIT_S = 60
Json = dict[str, Any]


def text(**more: Any) -> Json:
    return {"type": "object", "properties": {"a": {"type": "string", **more}}, "required": ["a"]}


def nested(depth: int) -> Json:
    schema: Json = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


AT_THE_BOUNDS = {
    "a long text": text(minLength=1, maxLength=1000),
    "a long enum": text(enum=[f"value {number}" for number in range(1000)]),
    "many alternatives": {"anyOf": [text(const=str(number)) for number in range(64)]},
    "repeats of repeats": {"type": "array", "maxItems": 31, "items": {"type": "array", "maxItems": 31, "items": {}}},
    "levels": nested(31),
    "optional fields": {"type": "object", "properties": {f"p{number}": {"type": "string"} for number in range(60)}},
    "a circle": {"$defs": {"n": {"properties": {"n": {"$ref": "#/$defs/n"}}}}, "$ref": "#/$defs/n"},
    "a pattern that repeats": text(pattern="^([a-z]{1,30}-){1,30}$"),
    "a pattern of classes": text(pattern="^(a|b|c|[0-9]){1,200}$"),
}
BEYOND = {
    "a quantifier of what is quantified": text(pattern="^(a+)+b$"),
    "a quantifier over what may be empty": text(pattern="(a*)+b"),
    "a lookbehind": text(pattern="^(?<=x)*$"),
    "a text without end": text(maxLength=10**9),
    "repeats of repeats": {"type": "array", "maxItems": 999, "items": {"type": "array", "maxItems": 999}},
    "levels": nested(100),
}


def ask(server: RealServer, schema: Json | None) -> httpx.Response:
    body: Json = {"model": CHAT_MODEL, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
    if schema is not None:
        wanted = {"name": "a", "schema": schema, "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": wanted}
    return httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=LIMIT_S)


@pytest.mark.parametrize("case", AT_THE_BOUNDS)
def test_at_the_bounds_it_is_answered_and_so_is_the_next(real_server: RealServer, case: str) -> None:
    began = time.monotonic()
    answer = ask(real_server, AT_THE_BOUNDS[case])
    assert answer.status_code == 200, answer.text
    assert ask(real_server, None).status_code == 200
    assert time.monotonic() - began < LIMIT_S


@pytest.mark.parametrize("case", BEYOND)
def test_beyond_them_it_is_refused_and_the_next_is_answered(real_server: RealServer, case: str) -> None:
    answer = ask(real_server, BEYOND[case])
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"].startswith("response_format")
    assert ask(real_server, None).status_code == 200
