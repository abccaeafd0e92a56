"""What a model's record says of a field is what becomes of it, at every endpoint of every dialect.

Record, documentation and check at the edge are of one table; here each row of it is sent.
"""

from __future__ import annotations

import asyncio
import base64
import struct
from collections.abc import Iterator
from typing import Any

import pytest
from litestar import Router
from msgspec.structs import replace
from support.asgi import Reply
from support.scripted_app import ScriptedApp, scripted_app

from oprel.dialects import anthropic, ollama, openai
from oprel.dialects.rules import Endpoint, Record, Rule, treatments
from oprel.schema import ALL_SAMPLING, Capabilities
from oprel.testing import Script, scripted_model

ENDPOINTS: tuple[Endpoint, ...] = (*openai.ENDPOINTS, *anthropic.ENDPOINTS, *ollama.ENDPOINTS)
ALL = Capabilities(
    chat=True, complete=True, embed=True, rerank=True, vision=True, tools=True, thinking=True, json_schema=True,
    logprobs=True, infill=True, tokenize=True, sampling=ALL_SAMPLING,
)  # fmt: skip
WORDS = frozenset({"completion", "tools", "thinking", "vision", "insert"})
MODELS = (
    scripted_model("able:latest", capabilities=WORDS),
    scripted_model("embedder:latest", capabilities=frozenset({"embedding"})),
    scripted_model("ranker:latest", capabilities=frozenset({"embedding"}), pooling="rank"),
)

USER = [{"role": "user", "content": "hi"}]
PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII", 13, b"IHDR", 1, 1) + b"\x08\x06\0\0\0").decode()
OBJECT = {"type": "object"}
FUNCTION = {"type": "function", "function": {"name": "f", "parameters": OBJECT}}
TOOL = {"name": "f", "input_schema": OBJECT}
SCHEMA = {"type": "json_schema", "schema": OBJECT}

BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"model": "able", "messages": USER},
    "/v1/responses": {"model": "able", "input": "hi"},
    "/v1/completions": {"model": "able", "prompt": "hi"},
    "/v1/embeddings": {"model": "embedder", "input": "hi"},
    "/v1/rerank": {"model": "ranker", "query": "q", "documents": ["a", "b"]},
    "/tokenize": {"model": "able", "content": "hi"},
    "/detokenize": {"model": "able", "tokens": [1]},
    "/v1/messages": {"model": "able", "messages": USER, "max_tokens": 9},
    "/v1/messages/count_tokens": {"model": "able", "messages": USER},
    "/api/generate": {"model": "able", "prompt": "hi", "stream": False},
    "/api/chat": {"model": "able", "messages": USER, "stream": False},
    "/api/embed": {"model": "embedder", "input": "hi"},
    "/api/embeddings": {"model": "embedder", "prompt": "hi"},
}
# For each field a body that asks for something by it, with what must stand beside it.
COMMON: dict[str, dict[str, Any]] = {
    name: {name: value}
    for name, value in {
        "temperature": 0.5, "top_p": 0.5, "top_k": 3, "min_p": 0.5, "repeat_penalty": 1.5, "presence_penalty": 0.5,
        "frequency_penalty": 0.5, "seed": 1, "stop": "x", "max_tokens": 5, "max_completion_tokens": 5,
        "max_output_tokens": 5, "stop_sequences": ["x"], "logit_bias": {"1": 1}, "n": 2, "user": "u", "stream": True,
        "keep_alive": "1m", "num_ctx": 64, "options": {"use_mmap": True}, "response_format": {"type": "json_object"},
        "logprobs": True, "reasoning_effort": "low", "suffix": "x", "echo": True, "best_of": 1, "dimensions": 2,
        "encoding_format": "base64", "top_n": 1, "return_documents": True, "max_tokens_per_doc": 5, "priority": 1,
        "add_special": True, "add_special_tokens": True, "with_pieces": True, "functions": [{"name": "f"}],
        "function_call": "auto", "modalities": ["audio"], "audio": {"voice": "v"}, "web_search_options": {"a": 1},
        "moderation": {"a": 1}, "verbosity": "low", "prediction": {"a": 1}, "metadata": {"a": "b"},
        "service_tier": "flex", "safety_identifier": "s", "prompt_cache_key": "k", "prompt_cache_retention": "24h",
        "prompt_cache_options": {"a": 1}, "background": True, "conversation": "c", "context_management": [{"a": 1}],
        "max_tool_calls": 1, "instructions": "Be brief.", "reasoning": {"effort": "low"}, "truncation": "auto",
        "include": ["message.output_text.logprobs"], "text": {"format": {"type": "json_object"}}, "thinking":
        {"type": "enabled"}, "output_config": {"format": SCHEMA}, "output_format": SCHEMA, "system": "Be brief.",
        "cache_control": {"type": "ephemeral"}, "mcp_servers": [{"url": "x"}], "speed": "fast", "user_profile_id": "u",
        "workspace_id": "w", "container": "c", "diagnostics": {"a": 1}, "inference_geo": "eu", "think": "low",
        "format": "json", "shift": True, "_debug_render_only": True, "images": [PNG], "template": "T {{ .Prompt }}",
        "context": [1], "raw": True, "truncate": True, "store": True,
    }.items()
}  # fmt: skip
COMMON |= {
    "tools": {"tools": [FUNCTION]},
    "tool_choice": {"tools": [FUNCTION], "tool_choice": "auto"},
    "parallel_tool_calls": {"tools": [FUNCTION], "parallel_tool_calls": False},
    "top_logprobs": {"logprobs": True, "top_logprobs": 1},
    "stream_options": {"stream": True, "stream_options": {"include_usage": True}},
    "prompt": {},
    "input": {},
    "messages": {},
    "model": {},
    "query": {},
    "documents": {},
    "content": {},
    "tokens": {},
}
OPTIONS = {
    "num_ctx": 64, "num_batch": 8, "num_gpu": 1, "main_gpu": 0, "use_mmap": True, "num_thread": 1, "num_predict": 5,
    "temperature": 0.5, "top_k": 3, "top_p": 0.5, "min_p": 0.5, "typical_p": 0.5, "repeat_penalty": 1.5,
    "repeat_last_n": 8, "presence_penalty": 0.5, "frequency_penalty": 0.5, "seed": 1, "stop": ["x"],
    "draft_num_predict": 4, "num_keep": 4,
}  # fmt: skip
FLAT = {"type": "function", "name": "f", "parameters": OBJECT}
PARTICULAR: dict[str, dict[str, dict[str, Any]]] = {
    "/v1/completions": {"logprobs": {"logprobs": 1}},
    "/v1/responses": {
        "tools": {"tools": [FLAT]},
        "tool_choice": {"tools": [FLAT], "tool_choice": "auto"},
        "parallel_tool_calls": {"tools": [FLAT], "parallel_tool_calls": False},
        "top_logprobs": {"top_logprobs": 1},
        "stream_options": {"stream": True, "stream_options": {"include_obfuscation": False}},
        "prompt": {"prompt": {"id": "p"}},
        "previous_response_id": {},  # what it goes on from is tested with responses
    },
    "/v1/messages": {
        "tools": {"tools": [TOOL]},
        "tool_choice": {"tools": [TOOL], "tool_choice": {"type": "auto"}},
        "context_management": {"context_management": {"edits": []}},
    },
    "/tokenize": {"prompt": {"content": None, "prompt": "hi"}, "messages": {"content": None, "messages": USER}},
    "/detokenize": {"messages": {}, "prompt": {}},
}
PARTICULAR["/v1/messages/count_tokens"] = PARTICULAR["/v1/messages"]

# Fields that the engine isn't asked otherwise for: they are about the answer, or about how the model is loaded.
BESIDE = {"top_logprobs", "_debug_render_only", "truncate"}


def asking(endpoint: Endpoint, rule: Rule) -> dict[str, Any]:
    option = rule.field.removeprefix("options.")
    if option != rule.field:
        return {**BODIES[endpoint.path], "options": {option: OPTIONS[option]}}
    extra = PARTICULAR.get(endpoint.path, {}).get(rule.field)
    return {**BODIES[endpoint.path], **(COMMON[rule.field] if extra is None else extra)}


def rows(*, needing: str | None = None) -> Iterator[tuple[Endpoint, Rule]]:
    for endpoint in ENDPOINTS:
        for rule in endpoint.rules:
            if needing is None or rule.needs == needing:
                yield endpoint, rule


def without(needed: str) -> Capabilities:
    if needed in ALL_SAMPLING:
        return replace(ALL, sampling=ALL_SAMPLING - {needed})
    # What is forced needs schemas; here nothing is.
    return replace(ALL, **{needed: False}) if needed != "tools" else replace(ALL, tools=False, json_schema=False)


def run(steps: Any, capabilities: Capabilities) -> None:
    def routers(services: Any) -> Router:
        dialects = (openai.router(services, ENDPOINTS), anthropic.router(services, ENDPOINTS), ollama.router(services))
        return Router("/", route_handlers=dialects)

    async def go() -> None:
        async with scripted_app(routers, Script(capabilities=capabilities, context_tokens=64), models=MODELS) as app:
            await steps(app)

    asyncio.run(go())


async def record_of(app: ScriptedApp, endpoint: Endpoint) -> Record:
    """Of the model that is asked there; the engine's own word once it is loaded."""
    model = BODIES[endpoint.path]["model"]
    if model not in {engine.plan.model.partition(":")[0] for engine in app.driver.engines}:
        await app.post("/api/generate" if model == "able" else endpoint.path, BODIES[endpoint.path])
    shown = await app.get(f"/v1/models/{model}")
    record: Record = shown.json()["oprel"]["parameters"]
    return record


async def asked(app: ScriptedApp, endpoint: Endpoint, body: dict[str, Any]) -> tuple[Reply, Any]:
    """The answer, and what an engine was asked last for it."""
    before = {id(engine): len(engine.calls) for engine in app.driver.engines}
    reply = await app.post(endpoint.path, body)
    calls = [call for engine in app.driver.engines for call in engine.calls[before.get(id(engine), 0) :]]
    return reply, calls[-1].request if calls else None


def without_effect(reply: Reply) -> str:
    return " ".join(text for text in reply.all("x-oprel-warning") if text.startswith("parameter_ignored"))


def test_there_is_a_case_for_every_field() -> None:
    assert all(asking(endpoint, rule) for endpoint, rule in rows())


def test_with_an_engine_that_can_all_each_field_is_what_its_row_says() -> None:
    async def steps(app: ScriptedApp) -> None:
        for endpoint in ENDPOINTS:
            record = (await record_of(app, endpoint))[endpoint.path]
            assert record == treatments(endpoint.rules, ALL)
            plain, sent = await asked(app, endpoint, BODIES[endpoint.path])
            assert plain.status == 200, plain.body
            assert without_effect(plain) == ""
            for rule in endpoint.rules:
                where = f"{endpoint.path} {rule.field}"
                reply, request = await asked(app, endpoint, asking(endpoint, rule))
                assert reply.status == (400 if rule.treatment == "refused" else 200), (where, reply.body)
                if rule.treatment == "refused":
                    assert rule.field in reply.body.decode(), where
                elif rule.treatment == "ignored":
                    assert request == sent, where
                    assert (rule.field in without_effect(reply)) == endpoint.path.startswith("/api"), where
                else:
                    assert without_effect(reply) == "", where
                    if rule.needs and rule.field not in BESIDE and sent is not None:
                        assert request != sent, where

    run(steps, ALL)


NEEDED = sorted({rule.needs for _, rule in rows() if rule.needs})


@pytest.mark.parametrize("needed", NEEDED)
def test_with_an_engine_that_lacks_something_each_field_is_what_the_record_says(needed: str) -> None:
    async def steps(app: ScriptedApp) -> None:
        for endpoint, rule in rows(needing=needed):
            record = await record_of(app, endpoint)
            if not endpoint.serves(without(needed)):
                assert endpoint.path not in record
                continue
            said = record[endpoint.path][rule.field]
            where = f"{endpoint.path} {rule.field} {said}"
            assert said in ("refused", "partly", "ignored"), where
            reply, _ = await asked(app, endpoint, asking(endpoint, rule))
            assert reply.status == (200 if said == "ignored" else 400), (where, reply.body)
            if rule.field.startswith("options."):
                assert rule.field in without_effect(reply), where

    run(steps, without(needed))


def test_tools_that_can_only_be_forced_are_honoured_in_part() -> None:
    told = treatments(openai.ENDPOINTS[0].rules, Capabilities(chat=True, json_schema=True))
    assert (told["tools"], told["tool_choice"]) == ("partly", "partly")
    assert (told["store"], told["functions"], told["messages"], told["n"]) == (
        "ignored", "refused", "honoured", "emulated",
    )  # fmt: skip


def test_the_record_is_the_same_in_both_forms() -> None:
    async def steps(app: ScriptedApp) -> None:
        ours = (await app.get("/v1/models/able")).json()["oprel"]["parameters"]
        theirs = (await app.get("/anthropic/v1/models/able")).json()["oprel"]["parameters"]
        assert ours == theirs
        assert {"/v1/messages", "/api/chat", "/v1/chat/completions"} <= ours.keys()

    run(steps, ALL)
