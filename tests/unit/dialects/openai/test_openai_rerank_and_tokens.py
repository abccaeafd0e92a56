"""`/rerank`, `/tokenize` and `/detokenize`, in the forms of the servers that clients know them from."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from support.asgi import Reply
from support.scripted_app import ScriptedApp, scripted_app

from oprel.config import Settings
from oprel.dialects.openai import router
from oprel.schema import Capabilities
from oprel.testing import Script, scripted_model, specs

RANKER = scripted_model("ranker:latest", capabilities=frozenset({"embedding"}), pooling="rank")
ASKED = {"model": "ranker", "query": "red green", "documents": ["blue", "red green sky", {"text": "green"}]}


def run(steps: Callable[[ScriptedApp], Awaitable[Any]], script: Script | None = None, **settings: Any) -> Any:
    async def go() -> Any:
        async with scripted_app(router, script, models=(RANKER,), settings=Settings(**settings)) as app:
            return await steps(app)

    return asyncio.run(go())


def post(path: str, body: Any, script: Script | None = None) -> Reply:
    reply: Reply = run(lambda app: app.post(path, body), script)
    specs.validate("openai", path, "POST", reply.status, reply.json())
    return reply


def error(path: str, body: Any, script: Script | None = None) -> tuple[int, Any]:
    reply = post(path, body, script)
    return reply.status, reply.json()["error"]["param"]


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank"])
def test_the_best_comes_first(path: str) -> None:
    reply = post(path, ASKED)
    assert reply.json() == {
        "object": "list",
        "model": "ranker",
        "results": [
            {"index": 1, "relevance_score": 1.0},
            {"index": 2, "relevance_score": 0.5},
            {"index": 0, "relevance_score": 0.0},
        ],
        "usage": {"prompt_tokens": 5, "total_tokens": 5},
    }
    assert reply.header("x-oprel-driver") == "scripted"


def test_only_the_best_and_their_documents() -> None:
    results = post("/rerank", {**ASKED, "top_n": 2, "return_documents": True}).json()["results"]
    assert [result["document"]["text"] for result in results] == ["red green sky", "green"]


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"documents": []}, "documents"),
        ({"documents": ["x"] * 2049}, "documents"),
        ({"documents": "x"}, "documents"),
        ({"top_n": 0}, "top_n"),
        ({"query": None}, "query"),
        ({"model": "tiny"}, "model"),
        ({"model": "mini"}, "model"),
    ],
)
def test_what_can_not_be_ranked(more: dict[str, Any], param: str) -> None:
    assert error("/rerank", {**ASKED, **more}) == (400, param)


def test_a_reranker_makes_no_embeddings_and_no_text() -> None:
    assert error("/v1/embeddings", {"model": "ranker", "input": "x"}) == (400, "model")
    assert error("/v1/completions", {"model": "ranker", "prompt": "x"}) == (400, "model")


def test_unknown_models() -> None:
    assert error("/rerank", {**ASKED, "model": "nobody"}) == (404, "model")
    assert error("/tokenize", {"model": "nobody", "content": "x"}) == (404, "model")


@pytest.mark.parametrize("field", ["content", "prompt"])
def test_tokens_of_a_text_and_back(field: str) -> None:
    told = post("/tokenize", {"model": "tiny", field: "é"}).json()
    assert told == {"tokens": [0xC3, 0xA9], "count": 2, "max_model_len": 4096}
    assert post("/detokenize", {"model": "tiny", "tokens": told["tokens"]}).json() == {"content": "é", "prompt": "é"}


@pytest.mark.parametrize("field", ["add_special", "add_special_tokens"])
def test_the_tokens_that_begin_a_text(field: str) -> None:
    assert post("/tokenize", {"model": "tiny", "content": "a", field: True}).json()["tokens"] == [256, 97]


def test_tokens_of_a_conversation() -> None:
    told = post("/tokenize", {"model": "tiny", "messages": [{"role": "user", "content": "a"}]}).json()
    assert bytes(told["tokens"]) == b"user: a\n"


def test_no_tokens_are_no_text() -> None:
    assert post("/detokenize", {"model": "tiny", "tokens": []}).json()["content"] == ""


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "content"),
        ("/tokenize", {"content": "a", "prompt": "a"}, "content"),
        ("/tokenize", {"content": "a", "with_pieces": True}, "with_pieces"),
        ("/tokenize", {"content": 1}, "content"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens"),
        ("/detokenize", {"tokens": [2**31]}, "tokens"),
        ("/detokenize", {"tokens": ["a"]}, "tokens[0]"),
    ],
)
def test_what_has_no_tokens(path: str, body: dict[str, Any], param: str) -> None:
    assert error(path, {"model": "tiny", **body}) == (400, param)


def test_an_engine_that_shows_no_tokens_is_named() -> None:
    script = Script(capabilities=Capabilities(chat=True))
    assert error("/tokenize", {"model": "tiny", "content": "a"}, script) == (400, "model")
    assert error("/detokenize", {"model": "tiny", "tokens": [1]}, script) == (400, "model")


@pytest.mark.parametrize("keep_alive", [-1, "2h"])
def test_no_request_keeps_a_model_longer_than_is_allowed(keep_alive: Any) -> None:
    async def steps(app: ScriptedApp) -> Any:
        body = {"model": "tiny", "messages": [{"role": "user", "content": "a"}], "keep_alive": keep_alive}
        reply = await app.post("/v1/chat/completions", body)
        (loaded,) = app.scheduler.loaded()
        return reply, loaded.expires_at

    reply, expires_at = run(steps, max_keep_alive=600.0)
    assert reply.header("x-oprel-warning").startswith("keep_alive_capped; ")
    assert expires_at <= time.time() + 601


@pytest.mark.parametrize(
    "asked", [{"model": "tiny@ctx=2k"}, {"num_ctx": 2048}, {"options": {"num_ctx": 2048}}, {"model": "tiny@ctx=2048"}]
)
def test_the_context_is_told_in_any_of_three_places(asked: dict[str, Any]) -> None:
    async def steps(app: ScriptedApp) -> Any:
        body = {"model": "tiny", "messages": [{"role": "user", "content": "a"}], **asked}
        reply = await app.post("/v1/chat/completions", body)
        assert reply.json()["model"] == body["model"]
        await app.post("/v1/completions", {"model": "tiny", "prompt": "a", **asked})
        if "@" in body["model"]:
            assert (await app.post("/tokenize", {"model": body["model"], "content": "a"})).status == 200
        return [plan.context_tokens for plan in app.driver.starts]

    assert run(steps) == [2048]


def test_ollamas_options_fill_what_the_request_leaves_open() -> None:
    options = {"temperature": 0.3, "top_k": 7, "num_predict": -1, "stop": "x", "seed": -1, "nonsense": 1}

    async def steps(app: ScriptedApp) -> Any:
        body = {"model": "tiny", "prompt": "a", "temperature": 0.9, "options": options}
        reply = await app.post("/v1/completions", body)
        return reply, app.engine.calls[0].request.sampling

    reply, sampling = run(steps)
    assert (sampling.temperature, sampling.top_k, sampling.stop) == (0.9, 7, ("x",))
    assert (sampling.max_tokens, sampling.seed) == (None, None)
    assert reply.header("x-oprel-warning") == "unknown_field; 'options.nonsense' is not known and was ignored"


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"num_ctx": 1}, "num_ctx"),
        ({"model": "tiny@ctx=0"}, "model"),
        ({"model": "tiny@ctx=2k", "num_ctx": 1024}, "num_ctx"),
        ({"options": {"num_ctx": 1.5}}, "options.num_ctx"),
        ({"options": {"temperature": True}}, "options.temperature"),
        ({"options": {"top_p": 2}}, "options.top_p"),
        ({"options": {"use_mmap": 1}}, "options.use_mmap"),
        ({"options": {"stop": [1]}}, "options.stop"),
        ({"options": []}, "options"),
    ],
)
def test_options_that_are_none(asked: dict[str, Any], param: str) -> None:
    assert error("/v1/completions", {"model": "tiny", "prompt": "a", **asked}) == (400, param)
