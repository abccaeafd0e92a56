"""One conversation, said in every dialect, reaches the engine as one request and comes back as one answer.

It has a system message, an earlier call with its result, tools, a schema and thinking.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
from litestar import Router
from msgspec import Struct
from msgspec.structs import replace
from support.asgi import Reply
from support.scripted_app import scripted_app

from oprel.dialects import anthropic, ollama, openai
from oprel.schema import ALL_SAMPLING, Capabilities, ChatRequest, ToolCall
from oprel.testing import Script, scripted_model

SCHEMA = {"type": "object", "properties": {"sky": {"type": "string"}}, "required": ["sky"]}
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
CALLED = {"city": "Paris"}
SCRIPT = Script(
    thinking=("Let me", " see"),
    text=('{"sky":', '"blue"}'),
    tool_calls=(ToolCall("weather", json.dumps({"city": "Rome"}), id="call_2"),),
    capabilities=Capabilities(
        chat=True, tools=True, thinking=True, json_schema=True, tokenize=True, sampling=ALL_SAMPLING
    ),
)
ABLE = scripted_model("able:latest", capabilities=frozenset({"completion", "tools", "thinking"}))
MOST = {"temperature": 0.5, "top_p": 0.9}


class Told(Struct, frozen=True):
    """What an answer comes to, whatever words it came in. `calls` are names with their decoded arguments."""

    text: str
    thinking: str
    calls: tuple[tuple[str, str], ...]
    prompt_tokens: int
    completion_tokens: int
    called: bool


def call(name: str, arguments: Any) -> tuple[str, str]:
    decoded = json.loads(arguments) if isinstance(arguments, str) else arguments
    return name, json.dumps(decoded, sort_keys=True)


FUNCTION = {"name": "weather", "description": "The weather.", "parameters": PARAMETERS}
EARLIER = {"name": "weather", "arguments": json.dumps(CALLED)}

CHAT = {
    "model": "able",
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Paris?"},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "c1", "type": "function", "function": EARLIER}]},
        {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
        {"role": "user", "content": "And Rome?"},
    ],
    "tools": [{"type": "function", "function": FUNCTION}],
    "response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}},
    "reasoning_effort": "low",
    "max_tokens": 50,
    **MOST,
}
RESPONSES = {
    "model": "able",
    "instructions": "Be brief.",
    "input": [
        {"role": "user", "content": "Paris?"},
        {"type": "function_call", "call_id": "c1", **EARLIER},
        {"type": "function_call_output", "call_id": "c1", "output": "sunny"},
        {"role": "user", "content": "And Rome?"},
    ],
    "tools": [{"type": "function", **FUNCTION, "strict": False}],
    "text": {"format": {"type": "json_schema", "name": "answer", "schema": SCHEMA}},
    "reasoning": {"effort": "low"},
    "max_output_tokens": 50,
    "store": False,
    **MOST,
}
MESSAGES = {
    "model": "able",
    "system": "Be brief.",
    "messages": [
        {"role": "user", "content": "Paris?"},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "c1", "name": "weather", "input": CALLED}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1", "content": "sunny"}]},
        {"role": "user", "content": "And Rome?"},
    ],
    "tools": [{"name": "weather", "description": "The weather.", "input_schema": PARAMETERS}],
    "output_config": {"format": {"type": "json_schema", "schema": SCHEMA}, "effort": "low"},
    "thinking": {"type": "enabled", "budget_tokens": 1024},
    "max_tokens": 50,
    **MOST,
}
OLLAMA = {
    "model": "able",
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Paris?"},
        {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "weather", "arguments": CALLED}}]},
        {"role": "tool", "tool_name": "weather", "content": "sunny"},
        {"role": "user", "content": "And Rome?"},
    ],
    "tools": [{"type": "function", "function": FUNCTION}],
    "format": SCHEMA,
    "think": "low",
    "options": {"num_predict": 50, **MOST},
}


def chat_told(reply: Reply) -> Told:
    body = reply.json()
    message, usage = body["choices"][0]["message"], body["usage"]
    calls = tuple(call(**each["function"]) for each in message.get("tool_calls", ()))
    return Told(
        message["content"], message["reasoning"], calls, usage["prompt_tokens"], usage["completion_tokens"],
        body["choices"][0]["finish_reason"] == "tool_calls",
    )  # fmt: skip


def chat_streamed(reply: Reply) -> Told:
    text, thinking, names, arguments, reason, usage = "", "", dict[int, str](), dict[int, str](), "", {}
    for event in reply.events()[:-1]:
        usage = event["usage"] or usage
        for choice in event["choices"]:
            delta = choice["delta"]
            text += delta.get("content") or ""
            thinking += delta.get("reasoning") or ""
            reason = choice["finish_reason"] or reason
            for piece in delta.get("tool_calls", ()):
                names.setdefault(piece["index"], piece["function"].get("name"))
                arguments[piece["index"]] = arguments.get(piece["index"], "") + piece["function"]["arguments"]
    calls = tuple(call(names[at], arguments[at]) for at in names)
    return Told(text, thinking, calls, usage["prompt_tokens"], usage["completion_tokens"], reason == "tool_calls")


def response_told(body: dict[str, Any]) -> Told:
    text, thinking, calls = "", "", list[tuple[str, str]]()
    for item in body["output"]:
        match item["type"]:
            case "message":
                text += "".join(part["text"] for part in item["content"])
            case "reasoning":
                thinking += "".join(part["text"] for part in item["content"])
            case "function_call":
                calls.append(call(item["name"], item["arguments"]))
    usage = body["usage"]
    return Told(text, thinking, tuple(calls), usage["input_tokens"], usage["output_tokens"], bool(calls))


def sse(reply: Reply) -> list[dict[str, Any]]:
    lines = reply.body.decode().split("\n")
    return [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]


def response_streamed(reply: Reply) -> Told:
    """From its pieces; its last event must say the same."""
    events = sse(reply)
    text = "".join(each["delta"] for each in events if each["type"] == "response.output_text.delta")
    thinking = "".join(each["delta"] for each in events if each["type"] == "response.reasoning_text.delta")
    whole = response_told(events[-1]["response"])
    done = [each["item"] for each in events if each["type"] == "response.output_item.done"]
    calls = tuple(call(each["name"], each["arguments"]) for each in done if each["type"] == "function_call")
    assert (text, thinking, calls) == (whole.text, whole.thinking, whole.calls)
    return whole


def message_told(reply: Reply) -> Told:
    body = reply.json()
    return of_blocks(body["content"], body["usage"], body["stop_reason"])


def of_blocks(blocks: list[dict[str, Any]], usage: dict[str, int], reason: str) -> Told:
    return Told(
        "".join(block["text"] for block in blocks if block["type"] == "text"),
        "".join(block["thinking"] for block in blocks if block["type"] == "thinking"),
        tuple(call(block["name"], block["input"]) for block in blocks if block["type"] == "tool_use"),
        usage["input_tokens"],
        usage["output_tokens"],
        reason == "tool_use",
    )


def message_streamed(reply: Reply) -> Told:
    blocks, usage, reason = list[dict[str, Any]](), dict[str, int](), ""
    for event in sse(reply):
        match event["type"]:
            case "message_start":
                usage |= event["message"]["usage"]
            case "content_block_start":
                blocks.append({**event["content_block"], "json": ""})
            case "content_block_delta":
                delta, block = event["delta"], blocks[event["index"]]
                for field in ("text", "thinking"):
                    block[field] = block.get(field, "") + delta.get(field, "")
                block["json"] += delta.get("partial_json", "")
            case "content_block_stop" if blocks[event["index"]]["json"]:
                blocks[event["index"]]["input"] = blocks[event["index"]]["json"]
            case "message_delta":
                usage |= event["usage"]
                reason = event["delta"]["stop_reason"]
    return of_blocks(blocks, usage, reason)


def ollama_told(reply: Reply) -> Told:
    """Ollama says `stop` where a call was made as well."""
    lines = [json.loads(line) for line in reply.body.decode().splitlines()]
    messages = [line["message"] for line in lines]
    calls = [each["function"] for message in messages for each in message.get("tool_calls", ())]
    return Told(
        "".join(message["content"] for message in messages),
        "".join(message.get("thinking", "") for message in messages),
        tuple(call(each["name"], each["arguments"]) for each in calls),
        lines[-1]["prompt_eval_count"],
        lines[-1]["eval_count"],
        bool(calls) and lines[-1]["done_reason"] == "stop",
    )


Way = tuple[str, dict[str, Any], Callable[[Reply], Told]]

WAYS: dict[str, Way] = {
    "chat": ("/v1/chat/completions", CHAT, chat_told),
    "chat, streamed": (
        "/v1/chat/completions", {**CHAT, "stream": True, "stream_options": {"include_usage": True}}, chat_streamed
    ),
    "responses": ("/v1/responses", RESPONSES, lambda reply: response_told(reply.json())),
    "responses, streamed": ("/v1/responses", {**RESPONSES, "stream": True}, response_streamed),
    "anthropic": ("/v1/messages", MESSAGES, message_told),
    "anthropic, streamed": ("/v1/messages", {**MESSAGES, "stream": True}, message_streamed),
    "ollama": ("/api/chat", {**OLLAMA, "stream": False}, ollama_told),
    "ollama, streamed": ("/api/chat", OLLAMA, ollama_told),
}  # fmt: skip
PAIRS = list(itertools.combinations(WAYS, 2))


@cache
def said(way: str) -> tuple[ChatRequest, Told]:
    """The request that the engine got, and what its answer came to."""
    path, body, read = WAYS[way]

    def routers(services: Any) -> Router:
        handlers = [openai.router(services), ollama.router(services), anthropic.router(services)]
        return Router("/", route_handlers=handlers)

    async def go() -> tuple[ChatRequest, Reply]:
        async with scripted_app(routers, SCRIPT, models=(ABLE,)) as app:
            reply = await app.post(path, body)
            assert reply.status == 200, reply.body
            (asked,) = [each.request for each in app.engine.calls if each.kind == "chat"]
            assert isinstance(asked, ChatRequest)
            return asked, reply

    request, reply = asyncio.run(go())
    return request, read(reply)


def plain(request: ChatRequest) -> ChatRequest:
    """Without what only some dialects have words for: names of schemas, ids of calls, who may cut a conversation, what
    stands for "nothing said" in sampling; JSON text as one spelling."""
    messages = tuple(
        replace(
            message,
            tool_call_id=None,
            tool_name=None,
            tool_calls=tuple(ToolCall(*call(each.name, each.arguments)) for each in message.tool_calls),
        )
        for message in request.messages
    )
    tools = tuple(replace(tool, parameters=json.dumps(json.loads(tool.parameters or "{}"))) for tool in request.tools)
    sampling = replace(request.sampling, presence_penalty=0, frequency_penalty=0, time_limit_s=None)
    schema = json.dumps(json.loads(getattr(request.format, "schema", "{}")))
    return replace(
        request,
        messages=messages,
        tools=tools,
        tool_choice=None if request.tool_choice == "auto" else request.tool_choice,
        sampling=sampling,
        format=replace(request.format, name=None, strict=False, schema=schema),
        truncate=False,
    )


def test_the_answer_is_what_the_engine_said() -> None:
    _, told = said("chat")
    assert told.text == '{"sky":"blue"}'
    assert told.thinking == "Let me see"
    assert told.calls == (call("weather", {"city": "Rome"}),)
    assert told.called
    assert told.prompt_tokens > 0
    assert told.completion_tokens > 0


@pytest.mark.parametrize(("one", "other"), PAIRS, ids=[f"{one} | {other}" for one, other in PAIRS])
def test_two_ways_to_say_it_end_in_the_same(one: str, other: str) -> None:
    (request, told), (other_request, other_told) = said(one), said(other)
    assert told == other_told
    assert plain(request) == plain(other_request)
