"""A conversation that is longer than the context, on a real engine, by each dialect's own rule.

What is too long is found by the engine's tokenizer before anything is read: refused with both numbers, or shortened
and told.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.models import CHAT_MODEL, EMBED_MODEL
from support.servers import TEST_DRIVER, RealServer, real_server

pytestmark = pytest.mark.skipif(TEST_DRIVER != "llama_cpp", reason="the context is the server's own here")

CONTEXT = 256
TURN = "Tell me once more what you know about lighthouses, ships and storms. "
LONG = [
    {"role": "system", "content": "Be brief."},
    *({"role": ("user", "assistant")[at % 2], "content": f"{at}. {TURN}"} for at in range(12)),
    {"role": "user", "content": "Good bye."},
]
LAST_TOO_LONG = [*LONG[:3], {"role": "user", "content": TURN * 40}]


@pytest.fixture(scope="module")
def small(real_models_dir: Path) -> Iterator[RealServer]:
    """Its context holds a few turns."""
    flags = ("--driver", "llama_cpp", "--context", str(CONTEXT), "--parallel", "1")
    with real_server(*flags, models_dir=real_models_dir) as server:
        yield server


def post(server: RealServer, path: str, body: dict[str, Any]) -> httpx.Response:
    return httpx.post(server.url + path, json={"model": CHAT_MODEL, **body}, timeout=60)


def prompt_tokens(server: RealServer, messages: list[dict[str, str]]) -> int:
    """By the engine's template and tokenizer."""
    reply = post(server, "/tokenize", {"messages": messages, "add_special": True})
    count: int = reply.json()["count"]
    return count


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/chat/completions", {"messages": LONG, "max_tokens": 2}, "messages"),
        ("/v1/completions", {"prompt": TURN * 40, "max_tokens": 2}, "prompt"),
        ("/v1/responses", {"input": LONG, "max_output_tokens": 2}, "input"),
        ("/v1/responses", {"input": LONG, "max_output_tokens": 2, "truncation": "disabled"}, "input"),
        ("/v1/responses", {"input": LAST_TOO_LONG, "max_output_tokens": 2, "truncation": "auto"}, "input"),
    ],
)
def test_openai_refuses_it_with_both_numbers(
    small: RealServer, path: str, body: dict[str, Any], param: str, stream: bool
) -> None:
    reply = post(small, path, {**body, "stream": stream})
    assert reply.status_code == 400, reply.text
    error = reply.json()["error"]
    assert (error["code"], error["param"]) == ("context_length_exceeded", param)
    asked = body.get("messages", body.get("input"))
    assert f"maximum context length is {CONTEXT} tokens" in error["message"]
    if asked is LONG:
        assert f"came to {prompt_tokens(small, LONG)} tokens" in error["message"]


def test_openai_refuses_a_text_that_is_too_long_to_be_embedded(small: RealServer) -> None:
    reply = post(small, "/v1/embeddings", {"model": EMBED_MODEL, "input": TURN * 100})
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "context_length_exceeded")


@pytest.mark.parametrize("stream", [False, True])
def test_anthropic_refuses_it_with_both_numbers(small: RealServer, stream: bool) -> None:
    body = {"system": "Be brief.", "messages": LONG[1:], "max_tokens": 2, "stream": stream}
    counted = post(small, "/v1/messages/count_tokens", {"system": "Be brief.", "messages": LONG[1:]})
    reply = post(small, "/v1/messages", body)
    assert (reply.status_code, reply.json()["error"]["type"]) == (400, "invalid_request_error")
    told = f"prompt is too long: {counted.json()['input_tokens']} tokens > {CONTEXT} maximum"
    assert reply.json()["error"]["message"].startswith(told)


@pytest.mark.parametrize("stream", [False, True])
def test_a_response_that_may_be_truncated_loses_its_oldest_turns(small: RealServer, stream: bool) -> None:
    body = {"input": LONG, "max_output_tokens": 2, "truncation": "auto", "stream": stream, "store": False}
    reply = post(small, "/v1/responses", body)
    assert reply.status_code == 200, reply.text
    assert reply.headers["x-oprel-warning"].startswith("prompt_truncated; ")
    if not stream:
        assert reply.json()["truncation"] == "auto"
        assert CONTEXT / 4 < reply.json()["usage"]["input_tokens"] < CONTEXT


@pytest.mark.parametrize("stream", [False, True])
def test_ollama_loses_as_few_of_the_oldest_turns_as_it_must(small: RealServer, stream: bool) -> None:
    """What is left is the system message, so many of the newest turns, and the last one."""
    body = {"messages": LONG, "stream": stream, "options": {"num_predict": 2, "temperature": 0}}
    reply = post(small, "/api/chat", body)
    assert reply.status_code == 200, reply.text
    last = httpx.Response(200, content=reply.content.splitlines()[-1]).json()
    (told,) = reply.headers.get_list("x-oprel-warning")
    assert last["oprel"] == {"warnings": [told]}
    dropped = int(told.removeprefix("prompt_truncated; the conversation didn't fit: its ").partition(" ")[0])
    left, one_more = ([LONG[0], *LONG[1 + count :]] for count in (dropped, dropped - 1))
    assert last["prompt_eval_count"] == prompt_tokens(small, left) < CONTEXT <= prompt_tokens(small, one_more)


@pytest.mark.parametrize(
    "body",
    [
        {"messages": LAST_TOO_LONG},
        {"messages": LONG, "truncate": False},
    ],
)
def test_ollama_refuses_a_last_turn_that_is_too_long_and_what_may_not_be_cut(
    small: RealServer, body: dict[str, Any]
) -> None:
    reply = post(small, "/api/chat", {**body, "options": {"num_predict": 2}})
    assert reply.status_code == 400
    assert "longer than the context length" in reply.json()["error"]


def test_the_context_in_use_is_shown(small: RealServer) -> None:
    (loaded,) = [model for model in httpx.get(f"{small.url}/api/ps").json()["models"] if model["name"] == CHAT_MODEL]
    assert loaded["context_length"] == CONTEXT
    shown = httpx.get(f"{small.url}/v1/models/{CHAT_MODEL}").json()["oprel"]
    assert (shown["loaded"], shown["context_tokens"]) == (True, CONTEXT)


def test_without_a_wish_it_is_what_the_model_was_trained_for_where_memory_holds_it(real_server: RealServer) -> None:
    assert post(real_server, "/api/generate", {"stream": False}).status_code == 200
    models = httpx.get(f"{real_server.url}/api/ps").json()["models"]
    (loaded,) = [model for model in models if model["name"] == CHAT_MODEL]
    assert loaded["context_length"] == 8192
