"""Hostile requests to every endpoint that generates: an answer in the dialect's own shape that lays the fault on the
request, an engine that never saw it, and the next request answered."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from litestar import Router
from msgspec import Struct
from msgspec.structs import replace
from support.asgi import Reply
from support.scripted_app import scripted_app

from oprel.config import Settings
from oprel.dialects import anthropic, ollama, openai
from oprel.schema import ALL_SAMPLING, Capabilities
from oprel.testing import Script, scripted_model, specs

SEES = Script(
    capabilities=Capabilities(
        chat=True,
        complete=True,
        tools=True,
        vision=True,
        json_schema=True,
        logprobs=True,
        tokenize=True,
        sampling=ALL_SAMPLING,
    )
)
PNG = "data:image/png;base64,"
SEEING = scripted_model("able:latest", capabilities=frozenset({"completion", "tools", "vision"}))
RANKS = scripted_model("ranks:latest", capabilities=frozenset({"embedding"}), pooling="rank")
TURNS = [{"role": "user", "content": "hi"}]

Body = dict[str, Any]


class Endpoint(Struct, frozen=True):
    """`asking`: a plain body with so much more in it. The others put one hostile value where this API has room; None:
    it has none. `model` is what the body names."""

    document: str
    path: str
    router: Callable[[Any], Router]
    asking: Callable[[Body], Body]
    schema: Callable[[Any], Body] | None = None
    image: Callable[[str], Body] | None = None
    model: str = "able"


def streamed(endpoint: Endpoint) -> Callable[[Body], Body]:
    return lambda more: {**endpoint.asking(more), "stream": True}


CHATS = {
    "chat": Endpoint(
        "openai",
        "/v1/chat/completions",
        openai.router,
        lambda more: {"model": "able", "messages": TURNS, **more},
        lambda schema: {
            "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": schema, "strict": True}}
        },
        lambda url: {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]},
    ),
    "responses": Endpoint(
        "openai",
        "/v1/responses",
        openai.router,
        lambda more: {"model": "able", "input": "hi", "store": False, **more},
        lambda schema: {"text": {"format": {"type": "json_schema", "name": "a", "schema": schema, "strict": True}}},
        lambda url: {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": url}]}]},
    ),
    "messages": Endpoint(
        "anthropic",
        "/v1/messages",
        anthropic.router,
        lambda more: {"model": "able", "messages": TURNS, "max_tokens": 9, **more},
        lambda schema: {"output_config": {"format": {"type": "json_schema", "schema": schema}}},
        lambda url: {"messages": [{"role": "user", "content": [{"type": "image", "source": anthropic_source(url)}]}]},
    ),
    "ollama": Endpoint(
        "ollama",
        "/api/chat",
        ollama.router,
        lambda more: {"model": "able", "messages": TURNS, "stream": False, **more},
        lambda schema: {"format": schema},
        lambda url: {"messages": [{"role": "user", "content": "?", "images": [url.removeprefix(PNG)]}]},
    ),
}
# The same requests, whose answers are to come piece by piece: what is wrong with them is told before the first.
STREAMED = {f"{name} streamed": replace(each, asking=streamed(each)) for name, each in CHATS.items()}
OTHERS = {
    "completions": Endpoint(
        "openai",
        "/v1/completions",
        openai.router,
        lambda more: {"model": "able", "prompt": "hi", **more},
        lambda schema: {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}},
    ),
    "generate": Endpoint(
        "ollama",
        "/api/generate",
        ollama.router,
        lambda more: {"model": "able", "prompt": "hi", "stream": False, **more},
        lambda schema: {"format": schema},
        lambda url: {"images": [url.removeprefix(PNG)]},
    ),
    "count_tokens": Endpoint(
        "anthropic",
        "/v1/messages/count_tokens",
        anthropic.router,
        lambda more: {"model": "able", "messages": TURNS, **more},
        CHATS["messages"].schema,
        CHATS["messages"].image,
    ),
    "embeddings": Endpoint(
        "openai", "/v1/embeddings", openai.router, lambda more: {"model": "mini", "input": "hi", **more}, model="mini"
    ),
    "embed": Endpoint(
        "ollama", "/api/embed", ollama.router, lambda more: {"model": "mini", "input": "hi", **more}, model="mini"
    ),
    "rerank": Endpoint(
        "openai",
        "/v1/rerank",
        openai.router,
        lambda more: {"model": "ranks", "query": "hi", "documents": ["a"], **more},
        model="ranks",
    ),
}
ENDPOINTS = {**CHATS, **STREAMED, **OTHERS}


def anthropic_source(url: str) -> Body:
    if url.startswith(PNG):
        return {"type": "base64", "media_type": "image/png", "data": url.removeprefix(PNG)}
    return {"type": "url", "url": url}


def bomb(width: int, height: int) -> str:
    """The head of a PNG, which is all that is needed to know better."""
    size = width.to_bytes(4) + height.to_bytes(4)
    return PNG + base64.b64encode(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + size + b"\x08\x06\0\0\0").decode()


def nested(depth: int) -> Any:
    schema: Any = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


def text_of(pattern: str) -> Body:
    return {"type": "object", "properties": {"a": {"type": "string", "pattern": pattern}}}


SCHEMAS: dict[str, Any] = {
    "a deep one": nested(40),
    "a wide one": {"type": "object", "properties": {f"p{n}": {"type": "string"} for n in range(1001)}},
    "a long enum": {"enum": list(range(1001))},
    "many alternatives": {"anyOf": [{"type": "string"}] * 65},
    "repeats of repeats": {"type": "array", "maxItems": 100, "items": {"type": "array", "maxItems": 100}},
    "one beyond 64 KiB": {"description": "x" * 65_537},
    "a reference that leads out": {"$ref": "http://127.0.0.1/x"},
    "a circle": {"$ref": "#"},
    "a quantifier over what may be empty": text_of("(a*)+b"),
    "a lookbehind": text_of("^(?<=x)*$"),
    "no pattern at all": text_of("(("),
}
IMAGES = {
    "a bomb": bomb(60_000, 60_000),
    "of this machine's network": "http://127.0.0.1:9/x.png",
    "of the net": "https://example.com/x.png",
    "of this machine's files": "file:///etc/passwd",
    "no base64": PNG + "%%%",
    "no image": PNG + base64.b64encode(b"not an image at all").decode(),
}
# What no JSON of a client should hold, as it is written behind a plain body's fields.
TEXTS: dict[str, bytes] = {
    "NaN": b'"temperature":NaN',
    "Infinity": b'"temperature":Infinity',
    "a number beyond floats": b'"temperature":1e999',
    "an integer beyond 64 bits": b'"seed":1180591620717411303424',
    "a lone surrogate": b'"user":"\\ud800"',
    "bytes that are no UTF-8": b'"user":"\xff"',
    "a key that is there twice": b'"x":{"a":1,"a":2}',
    "nesting": b'"x":' + b"[" * 100_000,
    "closed nesting": b'"x":' + b"[" * 100_000 + b"]" * 100_000,
}
# Ollama takes JSON as Go does: the last of two keys, U+FFFD for what is no character, the nearest number that it has.
TAKEN = {
    "an integer beyond 64 bits",
    "a lone surrogate",
    "bytes that are no UTF-8",
    "a key that is there twice",
}
# Made when they are asked for: some are large.
FIELDS: dict[str, dict[str, Callable[[], Body]]] = {
    "chat": {
        "n": lambda: {"n": 10**9},
        "negative n": lambda: {"n": -1},
        "logit_bias": lambda: {"logit_bias": {str(number): 1 for number in range(10**6)}},
        "top_logprobs": lambda: {"logprobs": True, "top_logprobs": 10**12},
        "max_tokens": lambda: {"max_tokens": -(2**40)},
        "a million stop strings": lambda: {"stop": million()},
        "messages without end": lambda: {"messages": TURNS * 10_001},
        "parts without end": lambda: {
            "messages": [{"role": "user", "content": [{"type": "text", "text": "a"}] * 10_001}]
        },
        "tools without end": lambda: {"tools": [{"function": {"name": f"f{n}"}} for n in range(129)]},
        "a keep_alive without end": lambda: {"keep_alive": "1" * 10**5},
        "patterns without end": lambda: CHATS["chat"].schema(
            {"properties": {f"p{n}": {"type": "string", "pattern": "a" * 900} for n in range(60)}}
        ),
    },
    "responses": {
        "top_logprobs": lambda: {"top_logprobs": 10**12},
        "max_output_tokens": lambda: {"max_output_tokens": -(2**40)},
        "metadata": lambda: {"metadata": {str(number): "x" for number in range(10**5)}},
    },
    "messages": {
        "max_tokens": lambda: {"max_tokens": -(2**40)},
        "budget": lambda: {"thinking": {"type": "enabled", "budget_tokens": -1}},
        "a million stop strings": lambda: {"stop_sequences": million()},
    },
    "ollama": {
        "top_logprobs": lambda: {"logprobs": True, "top_logprobs": 10**12},
        "a million stop strings": lambda: {"options": {"stop": million()}},
        "messages without end": lambda: {"messages": TURNS * 10_001},
        "a keep_alive without end": lambda: {"keep_alive": "1s" * 10**5},
    },
    "completions": {
        "n": lambda: {"n": 10**9},
        "best_of": lambda: {"best_of": 10**9},
        "logprobs": lambda: {"logprobs": 10**12},
        "logit_bias": lambda: {"logit_bias": {str(number): 1 for number in range(2000)}},
        "a stop string without end": lambda: {"stop": "x" * 1025},
        "a million prompts": lambda: {"prompt": million()},
        "a token that is none": lambda: {"prompt": [-1]},
    },
    "generate": {
        "top_logprobs": lambda: {"logprobs": True, "top_logprobs": 10**12},
        "a million stop strings": lambda: {"options": {"stop": million()}},
        "a keep_alive without end": lambda: {"keep_alive": "1s" * 10**5},
    },
    "count_tokens": {
        "tools without end": lambda: {"tools": [{"name": f"f{n}", "input_schema": {}} for n in range(10_000)]},
        "messages without end": lambda: {"messages": TURNS * 10_001},
    },
    "embeddings": {
        "a million texts": lambda: {"input": million()},
        "dimensions": lambda: {"dimensions": 10**12},
        "a token that is none": lambda: {"input": [-1]},
        "a keep_alive without end": lambda: {"keep_alive": "1" * 10**5},
    },
    "embed": {
        "a million texts": lambda: {"input": million()},
        "a keep_alive without end": lambda: {"keep_alive": "1" * 10**5},
    },
    "rerank": {
        "a million documents": lambda: {"documents": million()},
        "top_n": lambda: {"top_n": 10**12},
        "num_ctx": lambda: {"num_ctx": 2**60},
    },
}


def million() -> list[str]:
    return [str(number) for number in range(10**6)]


def cases() -> dict[str, tuple[Endpoint, Callable[[], bytes]]]:
    found: dict[str, tuple[Endpoint, Callable[[], bytes]]] = {}
    for name, endpoint in ENDPOINTS.items():
        bodies = {
            **(
                {f"schema: {what}": partial(endpoint.schema, schema) for what, schema in SCHEMAS.items()}
                if endpoint.schema
                else {}
            ),
            **(
                {f"image: {what}": partial(endpoint.image, url) for what, url in IMAGES.items()}
                if endpoint.image
                else {}
            ),
            **{f"field: {what}": more for what, more in FIELDS[name.removesuffix(" streamed")].items()},
        }
        for what, more in bodies.items():
            found[f"{name}, {what}"] = endpoint, partial(encoded, endpoint, more)
        for what, text in TEXTS.items():
            if endpoint.document != "ollama" or what not in TAKEN:
                found[f"{name}, {what}"] = endpoint, partial(written_behind, endpoint, text)
    return found


def encoded(endpoint: Endpoint, more: Callable[[], Body]) -> bytes:
    return json.dumps(endpoint.asking(more())).encode()


def written_behind(endpoint: Endpoint, text: bytes) -> bytes:
    return json.dumps(endpoint.asking({})).encode()[:-1] + b"," + text + b"}"


CASES = cases()


@pytest.mark.parametrize("case", CASES)
def test_the_fault_is_the_requests_and_the_next_one_is_answered(case: str, tmp_path: Path) -> None:
    endpoint, made = CASES[case]
    body = made()

    async def go() -> tuple[Reply, int, Reply]:
        settings = Settings(state_dir=tmp_path)
        script = SEES if endpoint.model == "able" else None
        async with scripted_app(endpoint.router, script, models=(SEEING, RANKS), settings=settings) as app:
            refused = await app.post(endpoint.path, body)
            seen = sum(len(engine.calls) for engine in app.driver.engines)
            return refused, seen, await app.post(endpoint.path, endpoint.asking({}))

    refused, seen, following = asyncio.run(go())
    assert 400 <= refused.status < 500, (refused.status, refused.body[:300])
    specs.validate(endpoint.document, endpoint.path, "POST", refused.status, refused.json())
    assert len(refused.body) < 2_000
    assert seen == 0
    assert following.status == 200, following.body


@pytest.mark.parametrize(
    ("before", "hostile"),
    [
        (b'"hi"', b'"a\\ud800b"'),
        (b'"hi"', b'"a\xffb"'),
        (b'"stream": false', b'"stream":false,"options":{"seed":1180591620717411303424}'),
        (b'"model": "able"', b'"model":"nobody","model":"able"'),
    ],
    ids=["a lone surrogate", "bytes that are no UTF-8", "an integer beyond 64 bits", "a key that is there twice"],
)
def test_what_ollama_takes_reaches_the_engine_as_whole_characters_and_numbers_in_range(
    before: bytes, hostile: bytes
) -> None:
    endpoint = CHATS["ollama"]
    plain = json.dumps(endpoint.asking({})).encode()
    assert before in plain

    async def go() -> Any:
        async with scripted_app(endpoint.router, SEES, models=(SEEING,)) as app:
            reply = await app.post(endpoint.path, plain.replace(before, hostile))
            assert reply.status == 200, reply.body
            return app.engine.calls[-1].request

    request = asyncio.run(go())
    assert request.messages[-1].text == ("hi" if before != b'"hi"' else "a\N{REPLACEMENT CHARACTER}b")
    assert request.sampling.seed in (None, 2**63 - 1)
    assert (request.sampling.seed is not None) == (b"seed" in hostile)
