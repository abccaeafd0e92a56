"""No single request keeps the event loop from all others: bodies up to the limit, each the worst of its kind."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from litestar import Router
from support.scripted_app import scripted_app

from oprel.config import Settings
from oprel.dialects import anthropic, ollama, openai
from oprel.dialects.body import read
from oprel.dialects.openai.wire import ChatBody
from oprel.dialects.weight import MAX_CONTAINERS, MAX_KEYS, MAX_VALUES
from oprel.errors import InvalidRequestError
from oprel.schema import ALL_SAMPLING, Capabilities
from oprel.testing import Script, scripted_model

MIB = 1 << 20
# Processor time of the loop's own thread, so that a busy machine changes nothing. A request whose body is at the limit
# is copied a few times on its way, which alone takes some 40 ms.
LIMIT_S = 0.1
TURNS = [{"role": "user", "content": "hi"}]
ABLE = Script(
    capabilities=Capabilities(
        chat=True,
        complete=True,
        embed=True,
        tools=True,
        vision=True,
        json_schema=True,
        tokenize=True,
        sampling=ALL_SAMPLING,
    )
)
MODEL = scripted_model("able:latest", capabilities=frozenset({"completion", "tools", "vision"}))
SETTINGS = Settings(max_body_bytes=32 * MIB)

Body = dict[str, Any]


def chat(**more: Any) -> Body:
    return {"model": "able", "messages": TURNS, "max_tokens": 3, "stream": False, **more}


def schema(inner: Any) -> Body:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": inner}}}


def patterns() -> Body:
    """In 60 KiB, which is too little for a thread."""
    return {"type": "object", "properties": {f"p{n}": {"type": "string", "pattern": "a" * 900} for n in range(60)}}


IMAGE = base64.b64encode(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0d\0\0\0d\x08\x06\0\0\0" + bytes(19 * MIB)).decode()

WORST: dict[str, tuple[Callable[[Any], Router], str, Callable[[], Body]]] = {
    "logit_bias": (
        openai.router,
        "/v1/chat/completions",
        lambda: chat(logit_bias=dict.fromkeys(map(str, range(10**6)), 1)),
    ),
    "keys": (openai.router, "/v1/chat/completions", lambda: chat(metadata=dict.fromkeys(map(str, range(300_000)), 1))),
    "messages": (openai.router, "/v1/chat/completions", lambda: chat(messages=TURNS * 150_000)),
    "parts": (
        openai.router,
        "/v1/chat/completions",
        lambda: chat(messages=[{"role": "user", "content": [{"type": "text", "text": "a"}] * 150_000}]),
    ),
    "tools": (
        openai.router,
        "/v1/chat/completions",
        lambda: chat(tools=[{"type": "function", "function": {"name": "f", "parameters": {}}}] * 60_000),
    ),
    "schema": (openai.router, "/v1/chat/completions", lambda: chat(**schema({"enum": list(range(900_000))}))),
    "patterns": (openai.router, "/v1/chat/completions", lambda: chat(**schema(patterns()))),
    "keep_alive": (openai.router, "/v1/chat/completions", lambda: chat(keep_alive="1" * 100_000)),
    "image": (
        openai.router,
        "/v1/chat/completions",
        lambda: chat(
            messages=[
                {
                    "role": "user",
                    "content": [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{IMAGE}"}}],
                }
            ]
        ),
    ),
    "inputs": (openai.router, "/v1/embeddings", lambda: {"model": "mini", "input": ["a"] * 900_000}),
    "ids": (openai.router, "/v1/completions", lambda: {"model": "able", "prompt": [1] * 900_000}),
    "items": (openai.router, "/v1/responses", lambda: {"model": "able", "input": TURNS * 150_000, "store": False}),
    "anthropic messages": (anthropic.router, "/v1/messages", lambda: chat(messages=TURNS * 150_000)),
    "ollama messages": (ollama.router, "/api/chat", lambda: chat(messages=TURNS * 150_000)),
    "ollama tools": (ollama.router, "/api/chat", lambda: chat(tools=[{"function": {"name": "f"}}] * 90_000)),
    "ollama keep_alive": (ollama.router, "/api/chat", lambda: chat(keep_alive="1s" * 10**6)),
    "ollama inputs": (ollama.router, "/api/embed", lambda: {"model": "mini", "input": ["a"] * 900_000}),
}


class Watch:
    """The longest that the loop's thread worked without a break, in seconds of its processor time."""

    def __init__(self) -> None:
        self.longest = 0.0

    async def look(self) -> None:
        before = time.thread_time()
        while True:
            await asyncio.sleep(0)
            now = time.thread_time()
            self.longest = max(self.longest, now - before)
            before = now


@pytest.mark.parametrize("case", WORST)
def test_a_request_lets_the_others_have_the_loop(case: str, tmp_path: Path) -> None:
    router, path, made = WORST[case]
    body = json.dumps(made()).encode()

    async def go() -> float:
        settings = SETTINGS.model_copy(update={"state_dir": tmp_path})
        async with scripted_app(router, ABLE, models=(MODEL,), settings=settings) as app:
            watch = Watch()
            looking = asyncio.ensure_future(watch.look())
            reply = await app.post(path, body)
            await asyncio.sleep(0)  # so that it sees what came last
            looking.cancel()
            assert reply.status in (200, 400), reply.body[:200]
            return watch.longest

    assert asyncio.run(go()) < LIMIT_S


@pytest.mark.parametrize(
    ("value", "what"),
    [
        ("[" + "1," * (MAX_VALUES + 1) + "1]", f"more than {MAX_VALUES} values"),
        ("{" + ",".join(f'"{n}":1' for n in range(MAX_KEYS + 1)) + "}", f"more than {MAX_KEYS} keys"),
        ("[" + "[]," * (MAX_CONTAINERS + 1) + "1]", f"more than {MAX_CONTAINERS} arrays and objects"),
    ],
    ids=["values", "keys", "containers"],
)
def test_what_would_take_long_to_parse_is_not_parsed(value: str, what: str) -> None:
    with pytest.raises(InvalidRequestError, match=what):
        asyncio.run(read(f'{{"model":"able","messages":[],"x":{value}}}'.encode(), ChatBody))


def test_a_long_text_is_no_heavy_body() -> None:
    """A megabyte of code, as much of it as a context of a million tokens holds, has its commas and brackets too."""
    text = "if (a[0]) { f(b, c); } // a line of code: as they are\n" * 70_000
    body = json.dumps({"model": "able", "messages": [{"role": "user", "content": text}]}).encode()
    assert len(asyncio.run(read(body, ChatBody)).body.messages) == 1


def test_the_key_that_is_there_twice_is_found_at_once() -> None:
    pairs = ",".join(f'"{n}":1' for n in range(50_000))
    began = time.process_time()
    with pytest.raises(InvalidRequestError, match="'49999' is there more than once"):
        asyncio.run(read(f'{{"model":"a","messages":[],"x":{{{pairs},"49999":2}}}}'.encode(), ChatBody))
    assert time.process_time() - began < 2
