"""The endpoints over a real scheduler and a scripted engine; every answer and event keeps specs/anthropic.yaml."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from support.asgi import Reply
from support.scripted_app import ScriptedApp, scripted_app

from oprel.config import Settings
from oprel.dialects.anthropic import router
from oprel.schema import ALL_SAMPLING, Capabilities, Model, NamedTool, Thinking, ToolCall, Usage, events
from oprel.testing import Script, eventually, scripted_model, specs

MESSAGES, COUNT, MODELS = "/v1/messages", "/v1/messages/count_tokens", "/anthropic/v1/models"
USER = [{"role": "user", "content": "hi"}]
COUNTED: dict[str, Any] = {"model": "tiny", "messages": USER}
HELLO: dict[str, Any] = {**COUNTED, "max_tokens": 50}
TOOL = {"name": "weather", "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}}}
CALL = Script(text=("Let me ",), tool_calls=(ToolCall("weather", '{"city":"Rome"}'),))
PLAIN = Capabilities(chat=True, sampling=ALL_SAMPLING)


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


def post(body: Any, script: Script | None = None, *, path: str = MESSAGES, **options: Any) -> Reply:
    reply: Reply = run(lambda app: app.post(path, body), script, **options)
    return checked(path, reply)


def checked(path: str, reply: Reply, method: str = "POST") -> Reply:
    if (reply.header("content-type") or "").startswith("text/event-stream"):
        for event in reply.events():
            specs.validate_event("anthropic", path, method, event)
        names = [line.removeprefix("event: ") for line in reply.body.decode().split("\n") if line.startswith("event: ")]
        assert names == [event["type"] for event in reply.events()]
    else:
        assert reply.header("content-length") == str(len(reply.body))
        specs.validate("anthropic", path, method, reply.status, reply.json())
    return reply


def stream(body: dict[str, Any], script: Script | None = None, **options: Any) -> list[Any]:
    reply = post({**body, "stream": True}, script, **options)
    assert reply.status == 200, reply.body
    return reply.events()


def error(body: Any, script: Script | None = None, **options: Any) -> tuple[int, str, str]:
    reply = post(body, script, **options)
    told = reply.json()["error"]
    return reply.status, told["type"], told["message"]


def sent(body: dict[str, Any], script: Script | None = None) -> Any:
    """What the engine was asked."""

    async def steps(app: ScriptedApp) -> Any:
        reply = await app.post(MESSAGES, body)
        assert reply.status == 200, reply.body
        return app.engine.calls[-1].request

    return run(steps, script)


def test_a_message() -> None:
    reply = post(HELLO)
    told = reply.json()
    assert told["content"] == [{"type": "text", "text": "Hello, world!"}]
    assert (told["model"], told["stop_reason"], told["stop_sequence"]) == ("tiny", "end_turn", None)
    assert (reply.header("x-oprel-driver"), reply.header("x-oprel-device")) == ("scripted", "cpu")


def test_the_same_below_a_base_url_of_its_own() -> None:
    reply: Reply = run(lambda app: app.post(f"/anthropic{MESSAGES}", HELLO))
    assert checked(MESSAGES, reply).json()["stop_reason"] == "end_turn"


def test_the_order_of_a_streams_events() -> None:
    found = stream(HELLO)
    kinds = [event["type"] for event in found]
    deltas = kinds.count("content_block_delta")
    assert kinds == [
        "message_start",
        "ping",
        "content_block_start",
        *["content_block_delta"] * deltas,
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    text = "".join(event["delta"]["text"] for event in found if event["type"] == "content_block_delta")
    assert text == "Hello, world!"
    assert found[-2]["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}


def test_thinking_text_and_calls_are_blocks_in_their_order() -> None:
    script = Script(
        thinking=("I ", "see"),
        text=("Let me ", "look."),
        tool_calls=(ToolCall("weather", '{"city":"Rome"}'), ToolCall("weather", "{}")),
    )
    body = {**HELLO, "tools": [TOOL]}
    whole = post(body, script).json()
    kinds = [block["type"] for block in whole["content"]]
    assert kinds == ["thinking", "text", "tool_use", "tool_use"]
    assert whole["content"][2]["input"] == {"city": "Rome"}
    assert whole["stop_reason"] == "tool_use"
    starts = [e["content_block"] for e in stream(body, script) if e["type"] == "content_block_start"]
    assert [(block["type"], block.get("name")) for block in starts] == [
        (block["type"], block.get("name")) for block in whole["content"]
    ]


def test_arguments_come_in_pieces() -> None:
    found = stream({**HELLO, "tools": [TOOL]}, CALL)
    pieces = [e["delta"]["partial_json"] for e in found if e.get("delta", {}).get("type") == "input_json_delta"]
    assert len(pieces) == 2
    assert "".join(pieces) == '{"city":"Rome"}'


def test_usage_counts_what_came_from_the_cache_apart() -> None:
    script = Script(usage=Usage(prompt=30, completion=5, cached=20))
    expected = {
        "input_tokens": 10,
        "output_tokens": 5,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 20,
    }
    assert post(HELLO, script).json()["usage"] == expected
    assert stream(HELLO, script)[-2]["usage"] == expected


STOPS = {
    "the end": ({}, None, ("end_turn", None)),
    "the limit": ({"max_tokens": 2}, None, ("max_tokens", None)),
    "a stop string": ({"stop_sequences": ["zzz", "wor"]}, None, ("stop_sequence", "wor")),
    "a filter": ({}, Script(finish="content_filter"), ("refusal", None)),
    "the context": (
        {},
        Script(finish="length", usage=Usage(prompt=4000, completion=10), context_tokens=4010),
        ("model_context_window_exceeded", None),
    ),
    "nothing wanted": ({"max_tokens": 0}, None, ("max_tokens", None)),
}


@pytest.mark.parametrize(("more", "script", "told"), STOPS.values(), ids=STOPS.keys())
def test_why_it_ended(more: dict[str, Any], script: Script | None, told: tuple[str, str | None]) -> None:
    whole = post({**HELLO, **more}, script).json()
    last = stream({**HELLO, **more}, script)[-2]["delta"]
    assert (whole["stop_reason"], whole["stop_sequence"]) == told
    assert (last["stop_reason"], last["stop_sequence"]) == told


def test_no_answer_is_wanted() -> None:
    told = post({**HELLO, "max_tokens": 0}).json()
    assert (told["content"], told["usage"]["output_tokens"]) == ([], 0)


def test_thinking_can_be_left_out_of_sight() -> None:
    body = {**HELLO, "thinking": {"type": "adaptive", "display": "omitted"}}
    script = Script(thinking=("secret",))
    assert post(body, script).json()["content"][0]["thinking"] == ""
    assert "secret" not in str(stream(body, script))


def test_signatures_are_the_same_streamed_or_not() -> None:
    script = Script(thinking=("a", "b"))
    whole = post(HELLO, script).json()["content"][0]
    found = stream(HELLO, script)
    (signature,) = [e["delta"]["signature"] for e in found if e.get("delta", {}).get("type") == "signature_delta"]
    assert (whole["thinking"], whole["signature"]) == ("ab", signature)


THINKING = {
    "not said": ({}, PLAIN, None),
    "off": ({"thinking": {"type": "disabled"}}, PLAIN, Thinking(enabled=False)),
    "on": ({"thinking": {"type": "enabled", "budget_tokens": 2048}}, None, Thinking(enabled=True)),
    "as it can": ({"thinking": {"type": "adaptive"}}, None, Thinking(enabled=True)),
    "as it can't": ({"thinking": {"type": "adaptive"}}, PLAIN, None),
    "an effort": ({"output_config": {"effort": "xhigh"}}, None, Thinking(enabled=True, effort="max")),
    "an effort in vain": ({"output_config": {"effort": "low"}}, PLAIN, None),
}


@pytest.mark.parametrize(("more", "can", "thinking"), THINKING.values(), ids=THINKING.keys())
def test_thinking(more: dict[str, Any], can: Capabilities | None, thinking: Thinking | None) -> None:
    assert sent({**HELLO, **more}, Script(capabilities=can)).thinking == thinking


def test_an_effort_in_vain_is_said() -> None:
    reply = post({**HELLO, "output_config": {"effort": "low"}}, Script(capabilities=PLAIN))
    assert [text for text in reply.all("x-oprel-warning") if text.startswith("parameter_ignored; ")]


def test_an_answer_goes_on_from_where_it_was_begun() -> None:
    request = sent({**HELLO, "messages": [*USER, {"role": "assistant", "content": "The answer is ("}]})
    assert request.messages[-1].text == "The answer is ("
    assert request.thinking == Thinking(enabled=False)


def test_an_engine_that_cannot_go_on_refuses_by_name() -> None:
    body = {**HELLO, "messages": [*USER, {"role": "assistant", "content": "The"}]}
    status, kind, text = error(body, Script(capabilities=PLAIN))
    assert (status, kind) == (400, "invalid_request_error")
    assert "prefill" in text and "'scripted'" in text


def test_defaults_are_anthropics_above_the_models() -> None:
    assert sent(HELLO).sampling.temperature == 1.0
    assert sent({**HELLO, "temperature": 0.2, "top_k": 5, "top_p": 0.5}).sampling.top_k == 5


def test_a_tool_that_is_named() -> None:
    request = sent({**HELLO, "tools": [TOOL], "tool_choice": {"type": "tool", "name": "weather"}}, CALL)
    assert request.tool_choice == NamedTool("weather")


def test_unknown_fields_are_named() -> None:
    body = {
        **HELLO,
        "nonsense": 1,
        "messages": [{"role": "user", "content": [{"type": "text", "text": "hi", "odd": 1}], "name": "x"}],
        "tools": [{**TOOL, "strange": True}],
    }
    told = " ".join(post(body).all("x-oprel-warning"))
    for name in ("nonsense", "messages[].content[].odd", "messages[].name", "tools[].strange"):
        assert f"'{name}'" in told


def test_what_the_engine_warns_of_is_a_header() -> None:
    warning = events.Warning("gpu_fallback", "on the CPU")
    assert post(HELLO, Script(warnings=(warning,))).all("x-oprel-warning") == ["gpu_fallback; on the CPU"]


def test_counting_is_by_the_engines_template_and_tokenizer() -> None:
    """The scripted engine's tokens are bytes, and one more at the start."""
    found = post({**COUNTED, "system": "Be brief"}, path=COUNT).json()
    assert found == {"input_tokens": 1 + len("system: Be brief\nuser: hi\n")}


def test_what_cannot_be_counted_is_refused() -> None:
    status, kind, text = error(COUNTED, Script(capabilities=PLAIN), path=COUNT)
    assert (status, kind) == (400, "invalid_request_error")
    assert "'scripted'" in text


def test_models() -> None:
    aliased = scripted_model("hf.co/owner/repo:Q4", aliases=("claude-tiny",))

    async def steps(app: ScriptedApp) -> list[Reply]:
        paths = ("", "/claude-tiny", "/hf.co/owner/repo:Q4", "?limit=2", "?after_id=claude-tiny", "?before_id=nope")
        return [await app.get(MODELS + path) for path in paths]

    listed, alias, one, page, after, wrong = run(steps, models=(aliased,))
    for reply, path in ((listed, ""), (alias, "/x"), (one, "/x"), (page, ""), (after, ""), (wrong, "")):
        checked(f"/v1/models{path}", reply, "GET")
    names = [entry["id"] for entry in listed.json()["data"]]
    assert names == ["hf.co/owner/repo:Q4", "claude-tiny", "mini:latest", "tiny:latest"]
    assert (listed.json()["first_id"], listed.json()["last_id"]) == (names[0], names[-1])
    assert not listed.json()["has_more"]
    assert alias.json()["id"] == "claude-tiny"
    assert one.json()["created_at"] == "2023-11-14T22:13:20Z"
    assert ([entry["id"] for entry in page.json()["data"]], page.json()["has_more"]) == (names[:2], True)
    assert [entry["id"] for entry in after.json()["data"]] == names[2:]
    assert wrong.status == 400


REFUSALS = {
    "no body": (b"", None, (400, "invalid_request_error", "no body")),
    "no limit": (COUNTED, None, (400, "invalid_request_error", "'max_tokens' is required")),
    "no such model": ({**HELLO, "model": "nope"}, None, (404, "not_found_error", "nope")),
    "no model of that form": ({**HELLO, "model": "../x"}, None, (400, "invalid_request_error", "../x")),
    "text from an embedding model": ({**HELLO, "model": "mini"}, None, (400, "invalid_request_error", "mini")),
    "tools for a model without": (
        {**HELLO, "tools": [TOOL]},
        Script(capabilities=PLAIN),
        (400, "invalid_request_error", "can't call tools"),
    ),
    "thinking by a model that doesn't": (
        {**HELLO, "thinking": {"type": "enabled", "budget_tokens": 1024}},
        Script(capabilities=PLAIN),
        (400, "invalid_request_error", "'thinking'"),
    ),
    "a prompt that is too long": (
        {**HELLO, "messages": [{"role": "user", "content": "word " * 100}]},
        Script(context_tokens=20),
        (400, "invalid_request_error", "prompt is too long: 101 tokens > 20 maximum"),
    ),
    "an engine that does not start": (HELLO, Script(refusals=("engine",) * 9), (500, "api_error", "")),
    "an engine that dies at once": (HELLO, Script(dies_at=0), (500, "api_error", "died")),
    "an engine that breaks off": (HELLO, Script(broken="no_finish"), (500, "api_error", "without saying so")),
    "a keep-alive that is none": ({**HELLO, "keep_alive": "x"}, None, (400, "invalid_request_error", "keep_alive")),
}


@pytest.mark.parametrize(("body", "script", "told"), REFUSALS.values(), ids=REFUSALS.keys())
def test_refusals(body: Any, script: Script | None, told: tuple[int, str, str]) -> None:
    status, kind, text = error(body, script)
    assert (status, kind) == told[:2]
    assert told[2] in text


def test_an_engine_that_dies_in_a_stream_is_its_last_event() -> None:
    *_, last = stream(HELLO, Script(dies_at=2))
    assert (last["type"], last["error"]["type"]) == ("error", "api_error")


def test_a_full_queue_says_when_to_ask_again() -> None:
    async def steps(app: ScriptedApp) -> Reply:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(app.post(MESSAGES, HELLO))]
            await eventually(lambda: app.driver.engines and app.engine.running == 1)
            tasks.append(group.create_task(app.post(MESSAGES, HELLO)))
            await eventually(lambda: app.scheduler.loaded()[0].queued == 1)
            reply = await app.post(MESSAGES, HELLO)
            for task in tasks:
                task.cancel()
        return reply

    reply = checked(MESSAGES, run(steps, Script(silent=True, slots=1), settings=Settings(max_queue=1)))
    assert (reply.status, reply.json()["error"]["type"]) == (529, "overloaded_error")
    assert int(reply.header("retry-after") or 0) >= 1


@pytest.mark.parametrize(
    ("script", "body", "writes"),
    [
        (Script(endless=True, token_delay_s=0.001), {**HELLO, "max_tokens": 10**6, "stream": True}, 3),
        (Script(silent=True), {**HELLO, "stream": True}, 0),
        (Script(silent=True), HELLO, 0),
    ],
    ids=["mid-stream", "before the first token", "not streamed"],
)
def test_a_client_that_leaves_stops_the_engine(script: Script, body: dict[str, Any], writes: int) -> None:
    async def steps(app: ScriptedApp) -> list[Any]:
        await app.post(MESSAGES, body, leave_after_writes=writes)
        await eventually(lambda: all(engine.running == 0 for engine in app.driver.engines))
        return [call for engine in app.driver.engines for call in engine.calls]

    assert all(call.ended == "closed" for call in run(steps, script))
