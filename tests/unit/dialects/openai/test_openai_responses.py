"""`/v1/responses` over a real scheduler and a scripted engine; every answer and event keeps specs/openai.yaml."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from support.asgi import Reply, call
from support.scripted_app import ScriptedApp, scripted_app

from oprel.config import Settings
from oprel.dialects.openai import router
from oprel.schema import Capabilities, NamedTool, TextPart, ToolCall, events
from oprel.testing import Script, specs

RESPONSES = "/v1/responses"
HELLO: dict[str, Any] = {"model": "tiny", "input": "hi"}
WEATHER = {"type": "function", "name": "weather", "parameters": {"type": "object"}, "strict": True}
TEXT = {"type": "input_text", "text": "a"}
CALL = ToolCall("weather", '{"city":"Rome"}', id="call_7")
PNG = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJ"
    "RU5ErkJggg=="
)

Steps = Callable[[ScriptedApp], Awaitable[Any]]


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Any]:
    def run(steps: Steps, script: Script | None = None) -> Any:
        async def go() -> Any:
            async with scripted_app(router, script, settings=Settings(state_dir=tmp_path)) as app:
                return await steps(app)

        return asyncio.run(go())

    return run


async def post(app: ScriptedApp, body: dict[str, Any], status: int = 200) -> Any:
    reply = await app.post(RESPONSES, body)
    specs.validate("openai", RESPONSES, "POST", reply.status, reply.json())
    assert reply.status == status, reply.body
    return reply.json()


async def stream(app: ScriptedApp, body: dict[str, Any]) -> list[Any]:
    reply = await app.post(RESPONSES, {**body, "stream": True})
    assert reply.status == 200, reply.body
    assert reply.header("content-type") == "text/event-stream; charset=utf-8"
    return told(reply)


def told(reply: Reply) -> list[Any]:
    """The events, each checked, numbered without a gap and named by its line."""
    found = []
    for number, piece in enumerate(reply.body.decode().split("\n\n")[:-1]):
        name, _, data = piece.partition("\n")
        event = Reply(200, [], [data.removeprefix("data: ").encode()]).json()
        specs.validate_event("openai", RESPONSES, "POST", event)
        assert name == f"event: {event['type']}"
        assert event["sequence_number"] == number
        found.append(event)
    return found


def types(found: list[Any]) -> list[str]:
    """Without repetition of neighbours (deltas)."""
    names = [event["type"].removeprefix("response.") for event in found]
    return [name for at, name in enumerate(names) if at == 0 or names[at - 1] != name]


async def get(app: ScriptedApp, path: str, method: str = "GET") -> Reply:
    reply = await call(app.app, method, f"{RESPONSES}/{path}")
    specs.validate("openai", f"{RESPONSES}/{path}", method, reply.status, reply.json())
    return reply


def test_a_text(run: Callable[..., Any]) -> None:
    answer = run(lambda app: post(app, HELLO))
    assert answer["status"] == "completed" and answer["error"] is None
    (item,) = answer["output"]
    assert (item["type"], item["role"], item["status"]) == ("message", "assistant", "completed")
    assert item["content"] == [{"type": "output_text", "text": "Hello, world!", "annotations": [], "logprobs": []}]
    assert answer["usage"] == {
        "input_tokens": 2,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": 4,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 6,
    }


def test_what_was_asked_comes_back(run: Callable[..., Any]) -> None:
    asked = {
        "instructions": "Be brief.", "metadata": {"a": "b"}, "temperature": 0.5, "tools": [WEATHER], "user": "u",
        "tool_choice": {"type": "function", "name": "weather"}, "max_output_tokens": 99, "truncation": "auto",
        "parallel_tool_calls": False, "reasoning": {"effort": "low", "summary": "auto"},
        "text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True}},
    }  # fmt: skip
    answer = run(lambda app: post(app, {**HELLO, **asked}))
    for name in ("instructions", "metadata", "temperature", "tool_choice", "max_output_tokens", "truncation", "user"):
        assert answer[name] == asked[name], name
    assert answer["parallel_tool_calls"] is False
    assert answer["reasoning"] == {"effort": "low", "summary": "auto"}
    assert answer["text"]["format"] == {
        "type": "json_schema",
        "name": "n",
        "schema": {"type": "object"},
        "strict": True,
    }
    assert answer["tools"] == [{**WEATHER, "description": None}]
    assert answer["top_p"] == 1.0  # what was in effect


def test_the_events_of_a_text(run: Callable[..., Any]) -> None:
    found = run(lambda app: stream(app, HELLO))
    assert types(found) == [
        "created", "in_progress", "output_item.added", "content_part.added", "output_text.delta", "output_text.done",
        "content_part.done", "output_item.done", "completed",
    ]  # fmt: skip
    text = "".join(event["delta"] for event in found if event["type"] == "response.output_text.delta")
    assert text == "Hello, world!" == found[-1]["response"]["output"][0]["content"][0]["text"]
    assert found[-2]["item"] == found[-1]["response"]["output"][0]
    assert found[0]["response"]["status"] == "in_progress" and "usage" not in found[0]["response"]


@pytest.mark.parametrize(
    ("summary", "names"),
    [
        (None, ["reasoning_text.delta", "reasoning_text.done"]),
        (
            "auto",
            ["reasoning_summary_part.added", "reasoning_summary_text.delta", "reasoning_summary_text.done",
             "reasoning_summary_part.done"],
        ),
    ],
)  # fmt: skip
def test_the_events_of_thinking_and_calls(run: Callable[..., Any], summary: str | None, names: list[str]) -> None:
    script = Script(thinking=("h", "m"), text=(), tool_calls=(CALL, ToolCall("weather", "{}", id="call_8")))
    body = {**HELLO, "tools": [WEATHER], "reasoning": {"summary": summary}}
    found = run(lambda app: stream(app, body), script)
    call_names = ["output_item.added", "function_call_arguments.delta"]
    done = ["function_call_arguments.done", "output_item.done"]
    assert types(found) == [
        "created", "in_progress", "output_item.added", *names, "output_item.done", *call_names, *call_names, *done,
        *done, "completed",
    ]  # fmt: skip
    thought, first, second = found[-1]["response"]["output"]
    assert (thought["summary"] if summary else thought["content"])[0]["text"] == "hm"
    assert (first["call_id"], first["name"], first["arguments"]) == ("call_7", "weather", '{"city":"Rome"}')
    assert (second["call_id"], second["arguments"]) == ("call_8", "{}")


def test_streamed_and_whole_are_the_same(run: Callable[..., Any]) -> None:
    script = Script(thinking=("hm",), tool_calls=(CALL,))
    body = {**HELLO, "tools": [WEATHER]}

    async def both(app: ScriptedApp) -> Any:
        return await post(app, body), (await stream(app, body))[-1]["response"]

    whole, streamed = run(both, script)
    for answer in (whole, streamed):
        del answer["id"], answer["created_at"], answer["completed_at"]
        for item in answer["output"]:
            del item["id"]
    assert whole == streamed


def test_logprobs(run: Callable[..., Any]) -> None:
    body = {**HELLO, "include": ["message.output_text.logprobs"], "top_logprobs": 2}
    found = run(lambda app: stream(app, body))
    deltas = [event for event in found if event["type"] == "response.output_text.delta"]
    assert all(len(event["logprobs"][0]["top_logprobs"]) == 2 for event in deltas)
    assert len(found[-1]["response"]["output"][0]["content"][0]["logprobs"]) == 4


def test_opaque_thinking_goes_and_comes_back(run: Callable[..., Any]) -> None:
    async def steps(app: ScriptedApp) -> Any:
        answer = await post(app, {**HELLO, "include": ["reasoning.encrypted_content"], "store": False})
        thought = answer["output"][0]
        kept = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": thought["encrypted_content"]}
        await post(app, {**HELLO, "input": [kept, answer["output"][1], {"role": "user", "content": "go on"}]})
        return app.engine.calls[-1].request.messages

    assistant, user = run(steps, Script(thinking=("hm",)))
    assert (assistant.thinking, assistant.text, user.text) == ("hm", "Hello, world!", "go on")


@pytest.mark.parametrize("text", ["not ours", base64.b64encode(b"theirs").decode()])
def test_thinking_that_was_made_elsewhere_is_refused(run: Callable[..., Any], text: str) -> None:
    item = {"type": "reasoning", "summary": [], "encrypted_content": text}
    error = run(lambda app: post(app, {**HELLO, "input": [item]}, 400))["error"]
    assert error["param"] == "input[0].encrypted_content"


@pytest.mark.parametrize(
    ("script", "more", "reason"),
    [
        (Script(endless=True), {"max_output_tokens": 3}, "max_output_tokens"),
        (Script(finish="content_filter"), {}, "content_filter"),
    ],
)
def test_what_is_cut_short_is_incomplete(
    run: Callable[..., Any], script: Script, more: dict[str, Any], reason: str
) -> None:
    *_, last = run(lambda app: stream(app, {**HELLO, **more}), script)
    assert last["type"] == "response.incomplete"
    assert last["response"]["incomplete_details"] == {"reason": reason}
    assert last["response"]["output"][-1]["status"] == "incomplete"
    assert last["response"]["completed_at"] is None


def test_items_become_a_conversation(run: Callable[..., Any]) -> None:
    items = [
        {"role": "developer", "content": "D"},
        {"type": "message", "role": "user", "content": [TEXT, {"type": "input_text", "text": "b"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "hm"}]},
        {"type": "message", "role": "assistant", "id": "m", "status": "completed",
         "content": [{"type": "output_text", "text": "c", "annotations": []}]},
        {"type": "function_call", "call_id": "1", "name": "weather", "arguments": '{"x":1}'},
        {"type": "function_call", "call_id": "2", "name": "weather", "arguments": ""},
        {"type": "function_call_output", "call_id": "2", "output": "two"},
        {"type": "function_call_output", "call_id": "1", "output": [{"type": "input_text", "text": "one"}]},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
    ]  # fmt: skip

    async def steps(app: ScriptedApp) -> Any:
        await post(app, {**HELLO, "instructions": "I", "input": items})
        return app.engine.calls[0].request.messages

    messages = run(steps)
    assert [message.role for message in messages] == [
        "system", "developer", "user", "assistant", "tool", "tool", "assistant",
    ]  # fmt: skip
    assert [message.text for message in messages] == ["I", "D", "ab", "c", "two", "one", "no"]
    spoken = messages[3]
    assert spoken.thinking == "hm"
    assert [(c.id, c.arguments) for c in spoken.tool_calls] == [("1", '{"x":1}'), ("2", "{}")]
    assert [(m.tool_call_id, m.tool_name) for m in messages[4:6]] == [("2", "weather"), ("1", "weather")]


def test_the_engine_gets_the_translated_request(run: Callable[..., Any]) -> None:
    async def steps(app: ScriptedApp) -> Any:
        choice = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "weather"}]}
        await post(app, {
            **HELLO, "tools": [WEATHER, {**WEATHER, "name": "other"}], "tool_choice": choice, "truncation": "auto",
            "reasoning": {"effort": "none"}, "max_output_tokens": 9, "options": {"top_k": 3, "seed": 5},
            "text": {"format": {"type": "json_object"}},
        })  # fmt: skip
        await post(app, {**HELLO, "tools": [WEATHER], "tool_choice": {"type": "function", "name": "weather"}})
        return [made.request for made in app.engine.calls]

    first, second = run(steps)
    assert [tool.name for tool in first.tools] == ["weather"] and first.tools[0].strict
    assert (first.tool_choice, second.tool_choice) == ("required", NamedTool("weather"))
    assert first.truncate and not second.truncate
    assert first.thinking is not None and not first.thinking.enabled
    assert type(first.format).__name__ == "JsonObject"
    assert (first.sampling.max_tokens, first.sampling.top_k, first.sampling.seed) == (9, 3, 5)


def test_a_conversation_goes_on(run: Callable[..., Any]) -> None:
    """With the tools' calls and outputs, and without the instructions."""

    async def steps(app: ScriptedApp) -> Any:
        first = await post(app, {**HELLO, "instructions": "once", "tools": [WEATHER]})
        output = {"type": "function_call_output", "call_id": "call_7", "output": "sunny"}
        second = await post(app, {**HELLO, "input": [output], "previous_response_id": first["id"]})
        third = await stream(app, {**HELLO, "input": "thanks", "previous_response_id": second["id"]})
        assert third[-1]["response"]["previous_response_id"] == second["id"]
        return app.engine.calls[-1].request.messages

    messages = run(steps, Script(text=("Hm.",), tool_calls=(CALL,)))
    assert [message.role for message in messages] == ["user", "assistant", "tool", "assistant", "user"]
    assert messages[1].tool_calls == (CALL,)
    assert messages[2].content == (TextPart("sunny"),)


def test_a_reference_is_the_item(run: Callable[..., Any]) -> None:
    async def steps(app: ScriptedApp) -> Any:
        first = await post(app, HELLO)
        reference = {"type": "item_reference", "id": first["output"][0]["id"]}
        await post(app, {**HELLO, "input": [reference, {"role": "user", "content": "go on"}]})
        messages = app.engine.calls[-1].request.messages
        error = (await post(app, {**HELLO, "input": [{"id": "msg_nothing"}]}, 404))["error"]
        return messages, error

    messages, error = run(steps)
    assert [message.text for message in messages] == ["Hello, world!", "go on"]
    assert error["param"] == "input[0].id"


def test_what_is_kept_is_read_listed_and_deleted(run: Callable[..., Any]) -> None:
    items = [{"role": "user", "content": name} for name in "abc"]

    async def steps(app: ScriptedApp) -> None:
        made = await post(app, {**HELLO, "input": items})
        assert (await get(app, made["id"])).json() == made
        page = (await get(app, f"{made['id']}/input_items?limit=2")).json()
        assert [item["content"][0]["text"] for item in page["data"]] == ["c", "b"] and page["has_more"]
        rest = (await get(app, f"{made['id']}/input_items?after={page['last_id']}")).json()
        assert [item["content"][0]["text"] for item in rest["data"]] == ["a"] and not rest["has_more"]
        upwards = (await get(app, f"{made['id']}/input_items?order=asc")).json()
        assert [item["id"] for item in upwards["data"]] == [i["id"] for i in (*rest["data"], *page["data"][::-1])]
        gone = await get(app, made["id"], "DELETE")
        assert gone.json() == {"id": made["id"], "object": "response", "deleted": True}
        for path, method in ((made["id"], "GET"), (made["id"], "DELETE"), (f"{made['id']}/input_items", "GET")):
            assert (await get(app, path, method)).status == 404
        error = (await post(app, {**HELLO, "previous_response_id": made["id"]}, 404))["error"]
        assert (error["param"], error["code"]) == ("previous_response_id", "response_not_found")

    run(steps)


@pytest.mark.parametrize("query", ["limit=0", "limit=101", "limit=x", "order=up", "after=nobody"])
def test_a_page_that_is_none(run: Callable[..., Any], query: str) -> None:
    async def steps(app: ScriptedApp) -> Reply:
        return await get(app, f"{(await post(app, HELLO))['id']}/input_items?{query}")

    reply = run(steps)
    assert reply.status == 400
    assert reply.json()["error"]["param"] == query.partition("=")[0]


def test_what_is_not_to_be_kept_is_not(run: Callable[..., Any], tmp_path: Path) -> None:
    async def steps(app: ScriptedApp) -> Reply:
        return await get(app, (await post(app, {**HELLO, "store": False}))["id"])

    assert run(steps).status == 404
    assert list(tmp_path.glob("responses/resp_*")) == []


@pytest.mark.parametrize("name", ["..", "%2e%2e", "resp_" + "0" * 48, "resp_../../etc/passwd", "x" * 5000])
def test_no_id_leads_out_of_the_folder(run: Callable[..., Any], name: str) -> None:
    async def steps(app: ScriptedApp) -> Any:
        await post(app, HELLO)
        return (await post(app, {**HELLO, "previous_response_id": name}, 404))["error"]

    assert run(steps)["param"] == "previous_response_id"


def test_cancelling_and_streaming_again_are_refused_by_name(run: Callable[..., Any]) -> None:
    async def steps(app: ScriptedApp) -> Any:
        made = (await post(app, HELLO))["id"]
        return await get(app, f"{made}/cancel", "POST"), await get(app, f"{made}?stream=true")

    for reply, param in zip(run(steps), ("background", "stream"), strict=True):
        assert (reply.status, reply.json()["error"]["param"]) == (400, param)


def test_a_failure_in_a_stream_is_its_last_event_and_is_kept(run: Callable[..., Any]) -> None:
    async def steps(app: ScriptedApp) -> Any:
        found = await stream(app, HELLO)
        return found, (await get(app, found[0]["response"]["id"])).json()

    found, kept = run(steps, Script(dies_at=2))
    assert types(found)[-2:] == ["error", "failed"]
    assert found[-2]["code"] == "engine_failed"
    assert found[-1]["response"]["error"]["code"] == "server_error"
    assert kept == found[-1]["response"]
    assert kept["output"][0]["status"] == "incomplete"


def test_a_failure_before_the_stream_has_its_own_status(run: Callable[..., Any]) -> None:
    error = run(lambda app: post(app, {**HELLO, "stream": True}, 502), Script(dies_at=0))["error"]
    assert error["code"] == "engine_failed"


def test_a_client_that_leaves_stops_the_engine_and_nothing_is_kept(run: Callable[..., Any], tmp_path: Path) -> None:
    async def steps(app: ScriptedApp) -> str:
        await call(app.app, "POST", RESPONSES, {**HELLO, "stream": True}, leave_after_writes=1)
        return app.engine.calls[0].ended

    assert run(steps, Script(endless=True)) == "closed"
    assert list(tmp_path.glob("responses/resp_*")) == []


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "background": ({"background": True}, "background"),
    "conversation": ({"conversation": "conv_1"}, "conversation"),
    "prompt": ({"prompt": {"id": "p"}}, "prompt"),
    "moderation": ({"moderation": {}}, "moderation"),
    "web search": ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
    "file search": ({"tools": [{"type": "file_search", "vector_store_ids": []}]}, "tools[0].type"),
    "a tool without a type": ({"tools": [{"name": "f"}]}, "tools[0].type"),
    "a tool without a name": ({"tools": [{"type": "function"}]}, "tools[0].name"),
    "a tool's bad schema": ({"tools": [{**WEATHER, "parameters": {"pattern": "("}}]}, "tools[0].parameters.pattern"),
    "too many tools": ({"tools": [WEATHER] * 129}, "tools"),
    "a tool that isn't there": (
        {"tools": [WEATHER], "tool_choice": {"type": "function", "name": "x"}},
        "tool_choice.name",
    ),
    "required without tools": ({"tool_choice": "required"}, "tool_choice"),
    "another choice": ({"tool_choice": {"type": "web_search_preview"}}, "tool_choice.type"),
    "verbosity": ({"text": {"verbosity": "low"}}, "text.verbosity"),
    "a format": ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
    "a schema": (
        {"text": {"format": {"type": "json_schema", "name": "n", "schema": {"pattern": "("}}}},
        "text.format.schema.pattern",
    ),
    "no schema": ({"text": {"format": {"type": "json_schema", "name": "n"}}}, "text.format.schema"),
    "effort": ({"reasoning": {"effort": "huge"}}, "reasoning.effort"),
    "summary": ({"reasoning": {"summary": "huge"}}, "reasoning.summary"),
    "include": ({"include": ["everything"]}, "include"),
    "truncation": ({"truncation": "middle"}, "truncation"),
    "metadata": ({"metadata": {"a": "b" * 513}}, "metadata"),
    "top_logprobs": ({"top_logprobs": 21}, "top_logprobs"),
    "no input": ({"input": []}, "input"),
    "an item of no type": ({"input": [{}]}, "input[0].type"),
    "an item of another type": ({"input": [{"type": "web_search_call", "id": "x"}]}, "input[0].type"),
    "an item's missing field": (
        {"input": [{"type": "function_call", "call_id": "1", "name": "f"}]},
        "input[0].arguments",
    ),
    "arguments": (
        {"input": [{"type": "function_call", "call_id": "1", "name": "f", "arguments": "["}]},
        "input[0].arguments",
    ),
    "a role": ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role"),
    "a part's type": (
        {"input": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]},
        "input[0].content[0].type",
    ),
    "a file": (
        {"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}]},
        "input[0].content[0]",
    ),
    "an image elsewhere": (
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "http://x/y"}]}]},
        "input[0].content[0].image_url",
    ),
    "an image's file": (
        {"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]},
        "input[0].content[0].file_id",
    ),
    "an image to a text model": (
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": PNG}]}]},
        "input",
    ),
    "a mistaken type": ({"input": 5}, "input"),
    "options": ({"options": {"temperature": "hot"}}, "options.temperature"),
    "two contexts": ({"num_ctx": 100, "options": {"num_ctx": 200}}, "options.num_ctx"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_can_not_be_done_is_refused_by_name(run: Callable[..., Any], case: str) -> None:
    more, param = REFUSED[case]

    async def steps(app: ScriptedApp) -> Any:
        error = (await post(app, {**HELLO, **more}, 400))["error"]
        assert (await post(app, HELLO))["status"] == "completed", "the next request is answered"
        return error

    assert run(steps)["param"] == param


def test_what_the_model_can_not_do_names_the_field(run: Callable[..., Any]) -> None:
    script = Script(capabilities=Capabilities(chat=True, sampling=frozenset({"temperature", "top_p"})))

    async def steps(app: ScriptedApp) -> list[str]:
        bodies: list[dict[str, Any]] = [
            {"text": {"format": {"type": "json_object"}}},
            {"reasoning": {"effort": "low"}},
            {"top_logprobs": 1},
            {"max_output_tokens": 4},
        ]
        return [(await post(app, {**HELLO, **more}, 400))["error"]["param"] for more in bodies]

    assert run(steps, script) == ["text.format", "reasoning.effort", "top_logprobs", "max_output_tokens"]


def test_unknown_fields_are_named_wherever_they_are(run: Callable[..., Any]) -> None:
    async def steps(app: ScriptedApp) -> Reply:
        items = [{"role": "user", "content": [{"type": "input_text", "text": "a", "zip": 1}], "zap": 1}]
        return await app.post(RESPONSES, {**HELLO, "input": items, "zop": 1, "max_tool_calls": 3})

    warnings = " ".join(run(steps).all("x-oprel-warning"))
    for path in ("zop", "input[].zap", "input[].content[].zip"):
        assert f"'{path}'" in warnings
    assert "max_tool_calls" not in warnings


def test_chat_and_responses_end_alike(run: Callable[..., Any]) -> None:
    """The same conversation with tools and thinking: one text, the same calls, the same usage."""
    script = Script(thinking=("hm", "m"), text=("a", "b"), tool_calls=(CALL,), cached_tokens=1)
    function = {key: WEATHER[key] for key in ("name", "parameters", "strict")}
    asked = {
        "role": "assistant",
        "tool_calls": [{"id": "1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}],
    }
    chat_body = {
        "model": "tiny",
        "messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "hi"}, asked,
                     {"role": "tool", "tool_call_id": "1", "content": "ok"}],
        "tools": [{"type": "function", "function": function}],
    }  # fmt: skip
    body = {
        "model": "tiny",
        "instructions": "S",
        "input": [{"role": "user", "content": "hi"},
                  {"type": "function_call", "call_id": "1", "name": "weather", "arguments": "{}"},
                  {"type": "function_call_output", "call_id": "1", "output": "ok"}],
        "tools": [WEATHER],
    }  # fmt: skip

    async def steps(app: ScriptedApp) -> Any:
        chat = (await app.post("/v1/chat/completions", chat_body)).json()
        response = await post(app, body)
        one, other = (made.request for made in app.engine.calls)
        assert one == other, "the engine is asked the same"
        return chat, response

    chat, response = run(steps, script)
    message = chat["choices"][0]["message"]
    thought, text, made = response["output"]
    assert thought["content"][0]["text"] == message["reasoning_content"]
    assert text["content"][0]["text"] == message["content"]
    assert (made["call_id"], made["name"], made["arguments"]) == (
        message["tool_calls"][0]["id"],
        *(message["tool_calls"][0]["function"][key] for key in ("name", "arguments")),
    )
    usage, told_usage = chat["usage"], response["usage"]
    assert told_usage["input_tokens"] == usage["prompt_tokens"]
    assert told_usage["output_tokens"] == usage["completion_tokens"]
    assert told_usage["input_tokens_details"]["cached_tokens"] == usage["prompt_tokens_details"]["cached_tokens"] == 1
    assert told_usage["output_tokens_details"] == usage["completion_tokens_details"] == {"reasoning_tokens": 3}


def test_thinking_is_counted_only_where_there_is_a_tokenizer(run: Callable[..., Any]) -> None:
    script = Script(thinking=("hm",), capabilities=Capabilities(chat=True, thinking=True))
    assert run(lambda app: post(app, HELLO), script)["usage"]["output_tokens_details"] == {}


def test_the_engines_warnings_are_headers(run: Callable[..., Any]) -> None:
    script = Script(warnings=(events.Warning("prompt_truncated", "the oldest turns left"),))
    reply = run(lambda app: app.post(RESPONSES, {**HELLO, "stream": True}), script)
    assert reply.header("x-oprel-warning") == "prompt_truncated; the oldest turns left"
