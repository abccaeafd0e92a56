"""What the whole server makes of Anthropic's clients: keys, pages, ids, and failures outside of routes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from support.servers import ScriptedServer

from oprel.config import Settings
from oprel.testing import specs

Serve = Callable[..., ScriptedServer]
HELLO = {"model": "scripted", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}
VERSION = {"anthropic-version": "2023-06-01"}


def failure(reply: httpx.Response) -> str:
    specs.validate("anthropic", "/v1/messages", "POST", reply.status_code, reply.json())
    assert reply.json()["request_id"] == reply.headers["request-id"] == reply.headers["x-request-id"]
    kind: str = reply.json()["error"]["type"]
    return kind


@pytest.mark.parametrize("headers", [{"x-api-key": "secret"}, {"authorization": "Bearer secret"}])
def test_either_header_may_carry_the_key(scripted_server: Serve, headers: dict[str, str]) -> None:
    server = scripted_server(settings=Settings(api_keys=("secret",)))
    assert httpx.post(f"{server.url}/v1/messages", json=HELLO, headers=headers).status_code == 200
    refused = httpx.post(f"{server.url}/v1/messages", json=HELLO, headers={"x-api-key": "other"})
    assert (refused.status_code, failure(refused)) == (401, "authentication_error")


def test_an_answer_has_its_id(scripted_server: Serve) -> None:
    server = scripted_server()
    for body in (HELLO, {**HELLO, "stream": True}):
        reply = httpx.post(f"{server.url}/v1/messages", json=body, headers={"x-request-id": "mine"})
        assert (reply.headers["request-id"], reply.headers["x-request-id"]) == ("mine", "mine")


@pytest.mark.parametrize("path", ["/v1/messages/nothing", "/anthropic/v1/nothing"])
def test_a_path_that_is_not_there(scripted_server: Serve, path: str) -> None:
    reply = httpx.post(f"{scripted_server().url}{path}", json=HELLO)
    assert (reply.status_code, failure(reply)) == (404, "not_found_error")


def test_a_method_that_is_not_taken(scripted_server: Serve) -> None:
    reply = httpx.get(f"{scripted_server().url}/v1/messages")
    assert (reply.status_code, failure(reply)) == (405, "invalid_request_error")
    assert "POST" in reply.headers["allow"]


def test_a_body_that_is_too_large(scripted_server: Serve) -> None:
    server = scripted_server(settings=Settings(max_body_bytes=100))
    reply = httpx.post(f"{server.url}/v1/messages", content=b" " * 101)
    assert (reply.status_code, failure(reply)) == (413, "request_too_large")


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/scripted", "/v1/models/nope"])
def test_models_have_the_form_of_who_asks(scripted_server: Serve, path: str) -> None:
    server = scripted_server()
    for headers, document in ((VERSION, "anthropic"), ({}, "openai")):
        reply = httpx.get(f"{server.url}{path}", headers=headers)
        specs.validate(document, path, "GET", reply.status_code, reply.json())
    assert (
        httpx.get(f"{server.url}/anthropic{path}").json().keys()
        == httpx.get(f"{server.url}{path}", headers=VERSION).json().keys()
    )


def test_a_page_may_send_anthropics_headers(scripted_server: Serve) -> None:
    names = "anthropic-version, x-api-key, anthropic-dangerous-direct-browser-access, anthropic-beta"
    reply = httpx.options(
        f"{scripted_server().url}/v1/messages",
        headers={
            "origin": "http://localhost:3000",
            "access-control-request-method": "POST",
            "access-control-request-headers": names,
        },
    )
    allowed = {name.strip().lower() for name in reply.headers["access-control-allow-headers"].split(",")}
    assert set(names.split(", ")) <= allowed


def test_nothing_that_is_sent_makes_the_server_fail(scripted_server: Serve) -> None:
    """Bodies that break a rule of the document, each in one place: always a 4xx, and the next request is answered."""
    server = scripted_server()
    wrong: list[Any] = [None, True, -1, 2**62, 1e300, "", "x" * 1000, [], [[]], {}, {"type": "x"}, [{"type": "text"}]]
    bodies = [{**HELLO, field: value} for field in specs_fields() for value in wrong]

    async def go() -> set[int]:
        async with httpx.AsyncClient(base_url=server.url, timeout=30) as client:
            statuses: set[int] = set()
            for body in bodies:
                reply = await client.post("/v1/messages", content=json.dumps(body))
                specs.validate("anthropic", "/v1/messages", "POST", reply.status_code, reply.json())
                statuses.add(reply.status_code)
            assert (await client.post("/v1/messages", json=HELLO)).status_code == 200
            return statuses

    assert {status for status in asyncio.run(go()) if status >= 500} == set()


def specs_fields() -> list[str]:
    parts = specs.load("anthropic")["components"]["schemas"]
    fields = {**parts["CountRequest"]["properties"], **parts["MessageRequest"]["allOf"][1]["properties"]}
    return sorted(set(fields) - {"stream"})
