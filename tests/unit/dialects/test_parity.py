"""One conversation, said in every dialect, reaches the engine as one request and comes back as one answer.

It has a system message, an earlier call with its result, tools, a schema and thinking. What the engine gets is compared
here; `tests/conformance/test_parity_drivers.py` compares what comes back from each driver.
"""

from __future__ import annotations

import asyncio
import json
from functools import cache
from typing import Any

import pytest
from litestar import Router
from msgspec.structs import replace
from support.asgi import Reply
from support.parity import ANSWER, CALL, THOUGHT, Heard, Talk, Told, call, pairs, ways
from support.scripted_app import scripted_app

from oprel.dialects import anthropic, ollama, openai
from oprel.schema import ALL_SAMPLING, Capabilities, ChatRequest, ToolCall, Usage
from oprel.testing import Script, scripted_model

SCRIPT = Script(
    thinking=("Let me", " see"),
    text=('{"sky":', '"blue"}'),
    tool_calls=(ToolCall(CALL[0], json.dumps(CALL[1]), id="call_2"),),
    usage=Usage(40, 9, 30),
    capabilities=Capabilities(
        chat=True, tools=True, thinking=True, json_schema=True, tokenize=True, sampling=ALL_SAMPLING
    ),
)
ABLE = scripted_model("able:latest", capabilities=frozenset({"completion", "tools", "thinking"}))
TALKS = {
    "all": Talk("able", tools=True, schema=True, think=True, temperature=0.5),
    "none": Talk("able", think=False),
}
SCRIPTS = {"all": SCRIPT, "none": replace(SCRIPT, thinking=(), tool_calls=())}
WAYS = {name: ways(talk) for name, talk in TALKS.items()}
PAIRS = [(name, *pair) for name in TALKS for pair in pairs(WAYS[name])]


@cache
def said(talk: str, name: str) -> tuple[ChatRequest, Told]:
    """The request that the engine got, and what its answer came to."""
    way = WAYS[talk][name]

    def routers(services: Any) -> Router:
        handlers = [openai.router(services), ollama.router(services), anthropic.router(services)]
        return Router("/", route_handlers=handlers)

    async def go() -> tuple[ChatRequest, Reply]:
        async with scripted_app(routers, SCRIPTS[talk], models=(ABLE,)) as app:
            reply = await app.post(way.path, way.body)
            assert reply.status == 200, reply.body
            (asked,) = [each.request for each in app.engine.calls if each.kind == "chat"]
            assert isinstance(asked, ChatRequest)
            return asked, reply

    request, reply = asyncio.run(go())
    return request, way.read(Heard(reply.body))


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
    schema = getattr(request.format, "schema", None)
    return replace(
        request,
        messages=messages,
        tools=tools,
        tool_choice=None if request.tool_choice == "auto" else request.tool_choice,
        sampling=sampling,
        format=request.format
        if schema is None
        else replace(request.format, name=None, strict=False, schema=json.dumps(json.loads(schema))),
        truncate=False,
    )


def test_the_answer_is_what_the_engine_said() -> None:
    _, told = said("all", "chat")
    assert told == Told(ANSWER, THOUGHT, (call(*CALL),), 40, 30, 9, "tool_calls")


@pytest.mark.parametrize(("talk", "one", "other"), PAIRS, ids=[" | ".join(each) for each in PAIRS])
def test_two_ways_to_say_it_end_in_the_same(talk: str, one: str, other: str) -> None:
    (request, told), (other_request, other_told) = said(talk, one), said(talk, other)
    assert told.agrees(other_told), (told, other_told)
    assert plain(request) == plain(other_request)
