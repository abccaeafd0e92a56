"""Answers that aren't as documented are told, with the driver that they came from, and sent as they are."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import pytest
from support.asgi import Reply, call

from oprel.testing.strict import Observed, Strict, departures, document_of

MODEL = {"id": "m", "object": "model", "created": 1, "owned_by": "library"}
LIST = json.dumps({"object": "list", "data": [MODEL]}).encode()
LINE = b'{"model":"m","created_at":"2026-01-01T00:00:00Z","response":"a","done":false}\n'


def answered(body: bytes, content_type: str = "application/json", *, path: str = "/v1/models") -> tuple[Reply, Strict]:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-type", content_type.encode()), (b"x-oprel-driver", b"odd")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body[:10], "more_body": True})
        await send({"type": "http.response.body", "body": body[10:], "more_body": False})

    strict = Strict(app)
    return asyncio.run(call(strict, "GET" if path == "/v1/models" else "POST", path)), strict


def test_what_is_documented_passes(caplog: pytest.LogCaptureFixture) -> None:
    reply, strict = answered(LIST)
    assert (reply.status, reply.body) == (200, LIST)
    assert not strict.counts
    assert not caplog.records


def test_a_departure_is_told_once_with_its_driver_and_the_answer_sent_as_it_is(
    caplog: pytest.LogCaptureFixture,
) -> None:
    wrong = json.dumps({"object": "list", "data": [{**MODEL, "x": 1}]}).encode()
    with caplog.at_level(logging.WARNING, "oprel.strict"):
        reply, strict = answered(wrong)
        asyncio.run(call(strict, "GET", "/v1/models"))
    assert reply.body == wrong
    assert strict.counts == {"odd": 2}
    assert ["driver odd" in record.getMessage() and "'x'" in record.getMessage() for record in caplog.records] == [True]


def test_each_event_of_a_stream_is_looked_at() -> None:
    _, strict = answered(LINE + LINE.replace(b"response", b"answer"), "application/x-ndjson", path="/api/generate")
    assert strict.counts == {"odd": 1}


def test_comments_and_the_end_of_a_stream_are_no_events() -> None:
    error = b'{"error":{"message":"no","type":"server_error","param":null,"code":null}}'
    body = b": still working\n\ndata: %s\n\ndata: [DONE]\n\n" % error
    _, strict = answered(body, "text/event-stream", path="/v1/chat/completions")
    assert not strict.counts
    _, strict = answered(body.replace(b"message", b"text"), "text/event-stream", path="/v1/chat/completions")
    assert strict.counts == {"odd": 1}


def test_an_answer_that_broke_off_is_not_held_against_a_document() -> None:
    seen = Observed("GET", "/v1/models", 200, "application/json", body=LIST[:20], is_whole=False)
    assert list(departures(seen)) == []
    seen.is_whole = True
    assert len(list(departures(seen))) == 1


@pytest.mark.parametrize(
    ("path", "document"),
    [
        ("/v1/models/a/b", "openai"),
        ("/v1/nothing", "openai"),
        ("/v1/rerank", "openai"),
        ("/rerank", "openai"),
        ("/tokenize", "openai"),
        ("/v1/messages", "anthropic"),
        ("/v1/messages/count_tokens", "anthropic"),
        ("/anthropic/v1/models", "anthropic"),
        ("/api/chat", "ollama"),
        ("/api/nothing", "ollama"),
        ("/", "ollama"),
        ("/health", "oprel"),
        ("/nothing", "oprel"),
    ],
)
def test_the_document_of_a_path(path: str, document: str) -> None:
    assert document_of(path) == document


def test_a_path_that_is_not_there_is_no_departure_but_one_that_is_answered_is() -> None:
    error = json.dumps({"error": {"message": "no", "type": "invalid_request_error", "param": None, "code": None}})
    seen = Observed("GET", "/v1/nothing", 404, "application/json", body=error.encode(), is_whole=True)
    assert list(departures(seen)) == []
    seen.status = 200
    assert len(list(departures(seen))) == 1
