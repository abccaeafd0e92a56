"""A request that lost something says so, in every dialect, streamed or not: in a header, and where there is room in a
field; and every answer tells how long it waited."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from litestar import Router
from support.asgi import Reply
from support.scripted_app import scripted_app

from oprel.dialects import anthropic, ollama, openai
from oprel.schema import events
from oprel.testing import Script, specs

USER = [{"role": "user", "content": "hi"}]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"model": "tiny", "messages": USER},
    "/v1/responses": {"model": "tiny", "input": "hi", "store": False},
    "/v1/completions": {"model": "tiny", "prompt": "hi"},
    "/v1/messages": {"model": "tiny", "messages": USER, "max_tokens": 9},
    "/api/chat": {"model": "tiny", "messages": USER},
    "/api/generate": {"model": "tiny", "prompt": "hi"},
}
BESIDE: dict[str, dict[str, Any]] = {
    "/v1/messages/count_tokens": {"model": "tiny", "messages": USER},
    "/tokenize": {"model": "tiny", "content": "hi"},
    "/v1/embeddings": {"model": "mini", "input": "hi"},
    "/api/embed": {"model": "mini", "input": "hi"},
    "/api/embeddings": {"model": "mini", "prompt": "hi"},
}
GENERATED = [(path, stream) for path in BODIES for stream in (False, True)]
LOST = (events.Warning("prompt_truncated", "its oldest turns were left out"),)
TOLD = "prompt_truncated; its oldest turns were left out"
FALLEN = Script(refusals=("gpu",), fallbacks=((("cpu", 1 << 20),),))


def routers(services: Any) -> Router:
    return Router("/", route_handlers=[dialect.router(services) for dialect in (openai, anthropic, ollama)])


def post(path: str, body: dict[str, Any], script: Script) -> Reply:
    async def go() -> Reply:
        async with scripted_app(routers, script) as app:
            return await app.post(path, body)

    reply = asyncio.run(go())
    assert reply.status == 200, reply.body
    return reply


def fields(path: str, reply: Reply) -> list[str]:
    """What the last object of Ollama's says beside its own fields."""
    lines = [json.loads(line) for line in reply.body.splitlines()]
    for line in lines:
        if len(lines) > 1:
            specs.validate_event("ollama", path, "POST", line)
        else:
            specs.validate("ollama", path, "POST", 200, line)
    assert all("oprel" not in line for line in lines[:-1])
    return list(lines[-1].get("oprel", {"warnings": []})["warnings"])


@pytest.mark.parametrize(("path", "stream"), GENERATED)
def test_what_the_engine_lost(path: str, stream: bool) -> None:
    reply = post(path, {**BODIES[path], "stream": stream}, Script(warnings=LOST))
    assert reply.all("x-oprel-warning") == [TOLD]
    assert (reply.header("x-oprel-driver"), reply.header("x-oprel-device")) == ("scripted", "cpu")
    spans = [span.partition(";")[0] for span in (reply.header("server-timing") or "").split(", ")]
    assert spans == ["load", "queue", "first"]
    if path.startswith("/api"):
        assert fields(path, reply) == [TOLD]


@pytest.mark.parametrize(("path", "stream"), GENERATED)
def test_nothing_is_told_where_nothing_was_lost(path: str, stream: bool) -> None:
    reply = post(path, {**BODIES[path], "stream": stream}, Script())
    assert reply.all("x-oprel-warning") == []
    assert b"oprel" not in reply.body


@pytest.mark.parametrize(("path", "stream"), [*GENERATED, *((path, False) for path in BESIDE)])
def test_a_gpu_that_failed(path: str, stream: bool) -> None:
    body = {**BODIES, **BESIDE}[path]
    reply = post(path, {**body, "stream": True} if stream else {**body, "stream": False}, FALLEN)
    codes = [text.partition(";")[0] for text in reply.all("x-oprel-warning")]
    assert codes[0] == "gpu_fallback"
    assert reply.header("server-timing")
    if path in ("/api/chat", "/api/generate"):
        assert [text.partition(";")[0] for text in fields(path, reply)] == ["gpu_fallback"]


@pytest.mark.parametrize(("path", "stream"), GENERATED)
def test_what_is_lost_after_the_first_token(path: str, stream: bool) -> None:
    late = (events.Warning("time_limit", "it took too long"),)
    reply = post(path, {**BODIES[path], "stream": stream}, Script(late_warnings=late))
    told = "time_limit; it took too long"
    if not stream:
        assert reply.all("x-oprel-warning") == [told]
    elif not path.startswith("/api"):
        assert f": x-oprel-warning: {told}\n\n" in reply.body.decode()
    if path.startswith("/api"):
        assert fields(path, reply) == [told]


def test_texts_that_were_cut_to_be_embedded() -> None:
    async def go() -> list[Reply]:
        async with scripted_app(routers, Script(context_tokens=16)) as app:
            inputs = (["a"], ["a", "b " * 40])
            return [await app.post("/api/embed", {"model": "mini", "input": texts}) for texts in inputs]

    whole, cut = asyncio.run(go())
    assert whole.all("x-oprel-warning") == []
    assert cut.status == 200, cut.body
    assert cut.all("x-oprel-warning") == ["prompt_truncated; longer than the context, and cut to it: 1 of 2 texts"]


@pytest.mark.parametrize("path", ["/api/chat", "/api/generate", "/v1/chat/completions", "/v1/messages"])
def test_a_context_beyond_what_the_model_was_trained_for(path: str) -> None:
    async def go() -> Reply:
        async with scripted_app(routers, Script(context_tokens=128)) as app:
            return await app.post(path, {**BODIES[path], "stream": False, "options": {"num_ctx": 1 << 20}})

    (told,) = asyncio.run(go()).all("x-oprel-warning")
    assert told.startswith("context_reduced; a context of 1048576 tokens was asked for")
