"""The endpoints over a real scheduler and a scripted engine; every answer and event keeps specs/openai.yaml."""

from __future__ import annotations

import asyncio
import base64
import struct
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from support.asgi import Reply
from support.scripted_app import ScriptedApp, scripted_app

from oprel.config import Settings
from oprel.dialects.openai import router
from oprel.schema import ALL_SAMPLING, Capabilities, Model, ToolCall, events
from oprel.testing import Script, eventually, scripted_model, specs

CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
HELLO = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
PROMPT = {"model": "tiny", "prompt": "hi"}
IMAGE = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJ"
    "RU5ErkJggg=="
)
TEXTS = {"model": "mini", "input": "hi"}


def run(
    steps: Callable[[ScriptedApp], Awaitable[Any]],
    script: Script | None = None,
    *,
    models: tuple[Model, ...] = (),
    settings: Settings | None = None,
) -> Any:
    async def go() -> Any:
        async with scripted_app(router, script, models=models, settings=settings) as app:
            return await steps(app)

    return asyncio.run(go())


def post(path: str, body: Any, script: Script | None = None, **options: Any) -> Reply:
    reply: Reply = run(lambda app: app.post(path, body), script, **options)
    return checked(path, reply)


def checked(path: str, reply: Reply, method: str = "POST") -> Reply:
    if (reply.header("content-type") or "").startswith("text/event-stream"):
        for event in reply.events():
            if event != "[DONE]":
                specs.validate_event("openai", path, method, event)
    else:
        assert reply.header("content-length") == str(len(reply.body))
        specs.validate("openai", path, method, reply.status, reply.json())
    return reply


def stream(path: str, body: dict[str, Any], script: Script | None = None, **options: Any) -> list[Any]:
    reply = post(path, {**body, "stream": True}, script, **options)
    assert reply.status == 200, reply.body
    return reply.events()


def error(path: str, body: Any, script: Script | None = None, **options: Any) -> tuple[int, Any]:
    reply = post(path, body, script, **options)
    return reply.status, reply.json()["error"]


def test_chat() -> None:
    reply = post(CHAT, HELLO)
    assert reply.json()["choices"][0]["message"]["content"] == "Hello, world!"
    assert reply.json()["model"] == "tiny"
    assert (reply.header("x-oprel-driver"), reply.header("x-oprel-device")) == ("scripted", "cpu")
    assert reply.all("x-oprel-warning") == []


def test_chat_streamed() -> None:
    reply = post(CHAT, {**HELLO, "stream": True})
    assert reply.header("content-type") == "text/event-stream; charset=utf-8"
    assert reply.header("content-length") is None
    *chunks, done = reply.events()
    assert done == "[DONE]"
    assert "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks) == "Hello, world!"
    assert len({chunk["id"] for chunk in chunks}) == 1


def test_what_arrives_together_is_written_together() -> None:
    reply = post(CHAT, {**HELLO, "stream": True}, Script(batch=4))
    assert reply.writes[0].count(b"data: ") == 1 + 4


@pytest.mark.parametrize("content_type", ["application/x-www-form-urlencoded", "text/plain", "multipart/form-data", ""])
def test_any_content_type_is_json(content_type: str) -> None:
    headers = (("content-type", content_type),) if content_type else ()
    reply = run(lambda app: app.post(CHAT, HELLO, headers=headers))
    assert reply.status == 200


def test_the_engine_gets_the_translated_request() -> None:
    async def steps(app: ScriptedApp) -> Any:
        await app.post(CHAT, {**HELLO, "temperature": 0.5, "max_tokens": 9, "zap": 1, "logprobs": True})
        return app.engine.calls[0].request

    request = run(steps)
    assert (request.sampling.temperature, request.sampling.max_tokens, request.logprobs) == (0.5, 9, 0)
    assert request.messages[0].text == "hi"


def test_without_max_tokens_time_is_the_limit() -> None:
    async def steps(app: ScriptedApp) -> Any:
        await app.post(CHAT, HELLO)
        request: Any = app.engine.calls[0].request
        return request.sampling

    sampling = run(steps, settings=Settings(request_time_limit=12))
    assert (sampling.max_tokens, sampling.time_limit_s, sampling.temperature, sampling.top_p) == (None, 12, 1, 1)


def test_unknown_fields_and_the_engines_warnings_are_headers() -> None:
    script = Script(warnings=(events.Warning("prompt_truncated", "cut"),))
    for body in ({**HELLO, "zap": 1}, {**HELLO, "zap": 1, "stream": True}):
        assert post(CHAT, body, script).all("x-oprel-warning") == [
            "unknown_field; 'zap' is not known and was ignored",
            "prompt_truncated; cut",
        ]


def test_what_a_schema_asks_in_vain_is_a_header() -> None:
    schema = {"type": "array", "items": {"type": "string"}, "uniqueItems": True}
    shape = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    for path, body in ((CHAT, HELLO), (COMPLETIONS, PROMPT)):
        reply = post(path, {**body, "response_format": shape})
        assert reply.all("x-oprel-warning") == ["schema_not_enforced; answers aren't held to 'uniqueItems'"]


def test_choices() -> None:
    answer = post(CHAT, {**HELLO, "n": 6}).json()
    assert [choice["index"] for choice in answer["choices"]] == list(range(6))
    assert {choice["message"]["content"] for choice in answer["choices"]} == {"Hello, world!"}
    chunks = stream(CHAT, {**HELLO, "n": 3})
    ends = [chunk["choices"][0] for chunk in chunks[:-1] if chunk["choices"][0]["finish_reason"]]
    assert sorted(end["index"] for end in ends) == [0, 1, 2]


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_no_tokens(path: str) -> None:
    body = {**(HELLO if path == CHAT else PROMPT), "max_tokens": 0}
    answer = post(path, body).json()
    choice = answer["choices"][0]
    assert (choice["message"]["content"] if path == CHAT else choice["text"]) == ""
    assert (choice["finish_reason"], answer["usage"]["completion_tokens"]) == ("length", 0)
    assert answer["usage"]["prompt_tokens"] > 0
    *chunks, last, done = stream(path, {**body, "stream_options": {"include_usage": True}})
    assert (done, last["usage"]["completion_tokens"]) == ("[DONE]", 0)
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize(("path", "body"), [(CHAT, HELLO), (COMPLETIONS, PROMPT)])
def test_an_answer_without_text_has_its_usage(path: str, body: dict[str, Any]) -> None:
    script = Script(text=())
    assert post(path, body, script).json()["usage"]["completion_tokens"] == 0
    *_, last, done = stream(path, {**body, "stream_options": {"include_usage": True}}, script)
    assert (done, last["choices"]) == ("[DONE]", [])


def test_an_empty_prompt() -> None:
    assert post(COMPLETIONS, {**PROMPT, "prompt": ""}).status == 200


def test_an_empty_stop_ends_nothing() -> None:
    assert post(CHAT, {**HELLO, "stop": [""]}).json()["choices"][0]["message"]["content"] == "Hello, world!"


def test_a_stop_ends_the_text() -> None:
    assert post(CHAT, {**HELLO, "stop": [" w"]}).json()["choices"][0]["message"]["content"] == "Hello,"


def test_tool_calls() -> None:
    script = Script(text=(), tool_calls=(ToolCall("weather", '{"city":"Rome"}'),))
    body = {**HELLO, "tools": [{"type": "function", "function": {"name": "weather"}}]}
    choice = post(CHAT, body, script).json()["choices"][0]
    assert choice["message"]["tool_calls"][0]["function"] == {"name": "weather", "arguments": '{"city":"Rome"}'}
    assert choice["finish_reason"] == "tool_calls"
    pieces = [
        call["function"]["arguments"]
        for chunk in stream(CHAT, body, script)[:-1]
        for call in chunk["choices"][0]["delta"].get("tool_calls", ())
    ]
    assert "".join(pieces) == '{"city":"Rome"}'


def test_thinking_and_logprobs() -> None:
    body = {**HELLO, "logprobs": True, "top_logprobs": 2, "reasoning_effort": "low"}
    choice = post(CHAT, body, Script(thinking=("h", "m"))).json()["choices"][0]
    assert choice["message"]["reasoning_content"] == "hm"
    assert len(choice["logprobs"]["content"][0]["top_logprobs"]) == 2
    assert stream(CHAT, body, Script(thinking=("h", "m")))[-1] == "[DONE]"


def test_completions() -> None:
    answer = post(COMPLETIONS, {**PROMPT, "prompt": ["a ", "b "], "n": 2, "echo": True}).json()
    assert [choice["text"] for choice in answer["choices"]] == [
        "a Hello, world!",
        "a Hello, world!",
        "b Hello, world!",
        "b Hello, world!",
    ]
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]


def test_token_ids_are_echoed_as_text() -> None:
    answer = post(COMPLETIONS, {**PROMPT, "prompt": list(b"Hey: "), "echo": True}).json()
    assert answer["choices"][0]["text"] == "Hey: Hello, world!"


def test_completions_streamed() -> None:
    chunks = stream(COMPLETIONS, {**PROMPT, "logprobs": 1})
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks[:-1]) == "Hello, world!"
    assert chunks[-2]["choices"][0]["finish_reason"] == "stop"


def test_embeddings() -> None:
    answer = post(EMBEDDINGS, {**TEXTS, "input": ["a", "b", "a"]}).json()
    one, other, again = (item["embedding"] for item in answer["data"])
    assert (len(one), one == again, one == other) == (8, True, False)
    assert [item["index"] for item in answer["data"]] == [0, 1, 2]
    assert answer["usage"] == {"prompt_tokens": 3, "total_tokens": 3}


def test_embeddings_in_base64_are_the_same_numbers() -> None:
    numbers = post(EMBEDDINGS, TEXTS).json()["data"][0]["embedding"]
    text = post(EMBEDDINGS, {**TEXTS, "encoding_format": "base64"}).json()["data"][0]["embedding"]
    assert struct.unpack("<8f", base64.b64decode(text)) == pytest.approx(numbers, abs=1e-6)


def test_fewer_dimensions_are_cut_and_have_unit_length() -> None:
    whole = post(EMBEDDINGS, TEXTS).json()["data"][0]["embedding"]
    cut = post(EMBEDDINGS, {**TEXTS, "dimensions": 3}).json()["data"][0]["embedding"]
    assert sum(value * value for value in cut) == pytest.approx(1)
    assert [a / b for a, b in zip(cut, whole[:3], strict=True)] == pytest.approx([cut[0] / whole[0]] * 3)


def test_more_dimensions_than_there_are() -> None:
    status, told = error(EMBEDDINGS, {**TEXTS, "dimensions": 9})
    assert (status, told["param"]) == (400, "dimensions")
    assert "8" in told["message"]


def test_models() -> None:
    aliased = scripted_model("hf.co/owner/repo:Q4", aliases=("big", "bigger"))

    async def steps(app: ScriptedApp) -> list[Reply]:
        return [await app.get(path) for path in ("/v1/models", "/v1/models/hf.co/owner/repo:Q4", "/v1/models/big")]

    listed, one, alias = run(steps, models=(aliased,))
    for path, reply in (("/v1/models", listed), ("/v1/models/x", one), ("/v1/models/x", alias)):
        checked(path, reply, "GET")
    names = [entry["id"] for entry in listed.json()["data"]]
    assert names == ["hf.co/owner/repo:Q4", "big", "bigger", "mini:latest", "tiny:latest"]
    assert listed.json()["data"][0]["owned_by"] == "owner"
    serving = one.json().pop("oprel")
    assert one.json() == {
        "id": "hf.co/owner/repo:Q4",
        "object": "model",
        "created": 1_700_000_000,
        "owned_by": "owner",
        "oprel": serving,
    }
    assert serving["driver"] == "scripted"
    assert {"chat", "complete", "tools"} <= set(serving["capabilities"])
    assert (serving["context_tokens"], serving["loaded"], "problem" in serving) == (4096, False, False)
    assert alias.json()["id"] == "big"


def test_a_loaded_model_shows_what_its_engine_can() -> None:
    script = Script(capabilities=Capabilities(chat=True, sampling=ALL_SAMPLING), context_tokens=77)

    async def steps(app: ScriptedApp) -> list[Reply]:
        return [await app.post(CHAT, HELLO), await app.get("/v1/models/tiny")]

    _, shown = run(steps, script)
    checked("/v1/models/x", shown, "GET")
    serving = shown.json()["oprel"]
    assert serving.pop("parameters").keys() == {"/v1/chat/completions", "/v1/responses"}
    assert serving == {
        "driver": "scripted",
        "capabilities": ["chat"],
        "context_tokens": 77,
        "loaded": True,
    }


def test_a_model_that_nothing_can_serve_says_why() -> None:
    strange = scripted_model("strange:latest", format="punched-cards")
    damaged = scripted_model("cut:latest", damage="its file is cut off")
    listed = run(lambda app: app.get("/v1/models"), models=(strange, damaged))
    checked("/v1/models", listed, "GET")
    told = {entry["id"]: entry["oprel"] for entry in listed.json()["data"]}
    assert "driver" not in told["strange:latest"]
    assert "strange:latest" in told["strange:latest"]["problem"]
    assert "cut off" in told["cut:latest"]["problem"]


def test_no_models_are_an_empty_list() -> None:
    async def steps(app: ScriptedApp) -> Reply:
        app.catalog.models.clear()
        return await app.get("/v1/models")

    assert run(steps).json() == {"object": "list", "data": []}


@pytest.mark.parametrize("name", ["nope", "a/b/nope:1"])
def test_an_unknown_model_is_not_found(name: str) -> None:
    reply = run(lambda app: app.get(f"/v1/models/{name}"))
    assert (reply.status, reply.json()["error"]["code"]) == (404, "model_not_found")
    status, told = error(CHAT, {**HELLO, "model": name})
    assert (status, told["code"], told["param"]) == (404, "model_not_found", "model")


REFUSALS = {
    "no model of that form": (CHAT, {**HELLO, "model": "../x"}, None, (400, "invalid_model_name", "model")),
    "text from an embedding model": (CHAT, {**HELLO, "model": "mini"}, None, (400, "unsupported_model", "model")),
    "a raw prompt to an embedding model": (
        COMPLETIONS,
        {**PROMPT, "model": "mini"},
        None,
        (400, "unsupported_model", "model"),
    ),
    "embeddings from a text model": (EMBEDDINGS, {**TEXTS, "model": "tiny"}, None, (400, "unsupported_model", "model")),
    "an image to a text model": (
        CHAT,
        {
            "model": "tiny",
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "see"},
                        {
                            "type": "image_url",
                            "image_url": {"url": IMAGE},
                        },
                    ],
                }
            ],
        },
        None,
        (400, "unsupported_parameter", "messages[0].content[1]"),
    ),
    "tools for a model without": (
        CHAT,
        {**HELLO, "tools": [{"type": "function", "function": {"name": "f"}}]},
        Script(capabilities=Capabilities(chat=True, sampling=frozenset({"temperature"}))),
        (400, "unsupported_parameter", "tools"),
    ),
    "a parameter that the engine does not know": (
        CHAT,
        {**HELLO, "seed": 1},
        Script(capabilities=Capabilities(chat=True, sampling=frozenset({"temperature"}))),
        (400, "unsupported_parameter", "seed"),
    ),
    "a prompt longer than the context": (
        CHAT,
        {**HELLO, "messages": [{"role": "user", "content": "word " * 100}]},
        Script(context_tokens=20),
        (400, "context_length_exceeded", "messages"),
    ),
    "a raw prompt longer than the context": (
        COMPLETIONS,
        {**PROMPT, "prompt": "word " * 100},
        Script(context_tokens=20),
        (400, "context_length_exceeded", "prompt"),
    ),
    "an engine that does not start": (
        CHAT,
        HELLO,
        Script(refusals=("engine",) * 9),
        (500, "engine_start_failed", None),
    ),
    "an engine that dies at once": (CHAT, HELLO, Script(dies_at=0), (502, "engine_failed", None)),
    "a keep-alive that is none": (CHAT, {**HELLO, "keep_alive": "x"}, None, (400, None, "keep_alive")),
    "no body": (EMBEDDINGS, b"", None, (400, None, None)),
}


@pytest.mark.parametrize("is_streamed", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize(("path", "body", "script", "told"), REFUSALS.values(), ids=REFUSALS.keys())
def test_refusals_have_their_status_streamed_or_not(
    path: str, body: Any, script: Script | None, told: tuple[int, str | None, str | None], is_streamed: bool
) -> None:
    if is_streamed and isinstance(body, dict) and path != EMBEDDINGS:
        body = {**body, "stream": True}
    status, found = error(path, body, script)
    assert (status, found["code"], found["param"]) == told, found


def test_both_numbers_of_a_context_are_told() -> None:
    long = {**HELLO, "messages": [{"role": "user", "content": "word " * 100}]}
    _, told = error(CHAT, long, Script(context_tokens=20))
    assert "20 tokens" in told["message"] and "101 tokens" in told["message"]


def test_a_model_without_a_template_is_refused_for_chat_and_not_for_text() -> None:
    bare = scripted_model("bare:latest", chat_template=None)
    status, told = error(CHAT, {**HELLO, "model": "bare"}, models=(bare,))
    assert (status, told["param"], told["code"]) == (400, "model", "unsupported_model")
    assert post(COMPLETIONS, {**PROMPT, "model": "bare"}, models=(bare,)).status == 200


def test_a_model_with_only_a_go_template_chats() -> None:
    go = scripted_model("go:latest", chat_template=None, template="<{{ range .Messages }}{{ .Content }}{{ end }}>")
    told = post(CHAT, {**HELLO, "model": "go"}, models=(go,)).json()
    assert told["choices"][0]["message"]["content"] == "Hello, world!"
    assert told["usage"]["prompt_tokens"] == 1, "the prompt is one word, and goes to the model as it is"


def test_a_template_that_can_not_be_applied_is_the_models_fault() -> None:
    broken = scripted_model("go:latest", chat_template=None, template="{{ range .Messages }}")
    status, told = error(CHAT, {**HELLO, "model": "go"}, models=(broken,))
    assert (status, told["code"], told["message"]) == (500, "template_error", "template: :1: unexpected EOF")


def test_a_damaged_model() -> None:
    broken = scripted_model("broken:latest", damage="its weights are cut")
    status, told = error(CHAT, {**HELLO, "model": "broken"}, models=(broken,))
    assert (status, told["code"]) == (500, "model_damaged")


def test_a_full_queue_says_when_to_ask_again() -> None:
    async def steps(app: ScriptedApp) -> Reply:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(app.post(CHAT, HELLO))]
            await eventually(lambda: app.driver.engines and app.engine.running == 1)
            tasks.append(group.create_task(app.post(CHAT, HELLO)))
            await eventually(lambda: app.scheduler.loaded()[0].queued == 1)
            reply = await app.post(CHAT, HELLO)
            for task in tasks:
                task.cancel()
        return reply

    reply = checked(CHAT, run(steps, Script(silent=True, slots=1), settings=Settings(max_queue=1)))
    assert (reply.status, reply.json()["error"]["code"]) == (503, "server_busy")
    assert int(reply.header("retry-after") or 0) >= 1


def test_an_engine_that_dies_in_a_stream_is_its_last_event() -> None:
    *chunks, last = stream(CHAT, HELLO, Script(dies_at=2))
    assert [chunk["choices"][0]["delta"]["content"] for chunk in chunks[1:]] == ["Hello", ","]
    assert last["error"]["code"] == "engine_failed"


def test_an_engine_that_breaks_off_is_a_failure_and_no_end() -> None:
    *_, last = stream(CHAT, HELLO, Script(broken="no_finish"))
    assert last["error"]["code"] == "engine_failed"
    assert error(CHAT, HELLO, Script(broken="no_finish"))[0] == 502


@pytest.mark.parametrize(
    ("script", "body", "writes"),
    [
        (Script(endless=True, token_delay_s=0.001), {**HELLO, "stream": True}, 3),
        (Script(silent=True), {**HELLO, "stream": True}, 0),
        (Script(silent=True), HELLO, 0),
        (Script(endless=True, token_delay_s=0.001), {**HELLO, "n": 3}, 0),
        (Script(start_delay_s=60), HELLO, 0),
    ],
    ids=["mid-stream", "before the first token", "not streamed", "several choices", "loading"],
)
def test_a_client_that_leaves_stops_the_engine(script: Script, body: dict[str, Any], writes: int) -> None:
    async def steps(app: ScriptedApp) -> list[Any]:
        await app.post(CHAT, body, leave_after_writes=writes)
        await eventually(lambda: all(engine.running == 0 for engine in app.driver.engines))
        return [call for engine in app.driver.engines for call in engine.calls]

    assert all(call.ended == "closed" for call in run(steps, script))


def test_a_method_that_is_not_taken() -> None:
    reply = run(lambda app: app.get(CHAT))
    assert reply.status == 405


@pytest.mark.parametrize(("path", "body"), [(CHAT, HELLO), (COMPLETIONS, PROMPT)], ids=["chat", "completions"])
def test_a_stream_gives_signs_of_life_while_its_prompt_is_read(path: str, body: dict[str, Any]) -> None:
    settings = Settings(ping_interval=0.01)
    reply = run(lambda app: app.post(path, {**body, "stream": True}), Script(prompt_delay_s=0.3), settings=settings)
    assert reply.writes[0] == b": still working\n\n"
    assert reply.header("content-type") == "text/event-stream; charset=utf-8"
    late = next(piece for piece in reply.writes if b"x-oprel-driver" in piece)
    assert late.startswith(b": x-oprel-driver: scripted\n: x-oprel-device: cpu\n: server-timing: load;dur=")
    assert late.endswith(b"\n\n")
    assert reply.writes[-1].endswith(b"data: [DONE]\n\n")


def test_a_whole_answer_that_takes_long_says_nothing_before_it_is_there() -> None:
    reply = run(lambda app: app.post(CHAT, HELLO), Script(prompt_delay_s=0.1), settings=Settings(ping_interval=0.01))
    assert reply.json()["choices"][0]["message"]["content"] == "Hello, world!"


@pytest.mark.parametrize("streams", [True, False], ids=["streamed", "whole"])
def test_the_time_to_the_first_token_is_told(streams: bool) -> None:
    """Of the first token, not of the whole answer."""
    script = Script(text=("a", "b", "c"), prompt_delay_s=0.05, token_delay_s=0.1)
    since = time.monotonic()
    reply = run(lambda app: app.post(CHAT, {**HELLO, "stream": streams}), script)
    elapsed_ms = (time.monotonic() - since) * 1000
    timing = dict(each.split(";dur=") for each in (reply.header("server-timing") or "").split(", "))
    assert timing.keys() == {"load", "queue", "first"}
    assert 50 <= float(timing["first"]) <= elapsed_ms - 200
