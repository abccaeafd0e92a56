"""Thinking, text and a call, however the engine cuts them: every dialect tells the same, streamed and not.

Two engines: one that completes text, whose answer with its tags is read on its way (as with models that have a Go
template), and one that tells thinking, text and calls apart itself.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from litestar import Router
from support.asgi import Reply
from support.parity import Heard, Talk, Told, call, ways
from support.scripted_app import ScriptedApp, scripted_app

from oprel.dialects import anthropic, ollama, openai
from oprel.schema import (
    ALL_SAMPLING,
    Capabilities,
    ChatRequest,
    CompletionRequest,
    Event,
    Finish,
    Text,
    ToolCallDelta,
    Usage,
    events,
)
from oprel.testing import Script, scripted_model

CALLED = {"city": 'Rome 🙂 "é\\n" } </tool_call>', "days": [1, {"a": "{"}]}
THOUGHT = "Hm < 3 🙂, is it </thin or é?"
SAID = 'So: {"a": 1} <tool 🙂 é'
RAW = f"<think>{THOUGHT}</think>{SAID}"
CALL_TEXT = json.dumps({"name": "weather", "arguments": CALLED}, ensure_ascii=False)
GO_TEMPLATE = (
    "{{ range .Messages }}{{ if .Thinking }}<think>{{ .Thinking }}</think>{{ end }}{{ .Content }}"
    '{{ if .ToolCalls }}<tool_call>{{ range .ToolCalls }}{"name": "{{ .Function.Name }}", "arguments": '
    "{{ .Function.Arguments }}}{{ end }}</tool_call>{{ end }};{{ end }}{{ if .Tools }}{{ json .Tools }}{{ end }}"
)
ABILITIES = frozenset({"completion", "tools", "thinking"})
MODELS = (
    scripted_model("raw:latest", chat_template=None, template=GO_TEMPLATE, capabilities=ABILITIES),
    scripted_model("able:latest", capabilities=ABILITIES),
)
WHOLE = Capabilities(
    chat=True, complete=True, tools=True, thinking=True, json_schema=True, tokenize=True, sampling=ALL_SAMPLING
)
WAYS = {model: ways(Talk(model, think=True, tools=True, max_tokens=1000)) for model in ("raw", "able")}
NAMES = list(WAYS["raw"])


class Relay:
    """The app, in a loop of its own; `pieces` are what the engine says next."""

    def __init__(self) -> None:
        self.pieces: tuple[Any, ...] = ()
        self._runner = asyncio.Runner()
        script = Script(text=lambda _: self.pieces, capabilities=WHOLE)
        self._entered = scripted_app(_routers, script, models=MODELS)
        self._app: ScriptedApp = self._runner.run(self._entered.__aenter__())

    def told(self, model: str, name: str) -> Told:
        way = WAYS[model][name]
        reply: Reply = self._runner.run(self._ask(model, way.path, way.body))
        assert reply.status == 200, reply.body
        return way.read(Heard(reply.body))

    async def _ask(self, model: str, path: str, body: dict[str, Any]) -> Reply:
        if model == "able":
            async with self._app.scheduler.lease("able", need="chat") as lease:
                lease.engine.chat = self._chat  # type: ignore[method-assign]  # its own script has one order of things
        return await self._app.post(path, body)

    async def _chat(self, request: ChatRequest | CompletionRequest) -> AsyncGenerator[tuple[Event, ...], None]:
        for batch in self.pieces:
            yield batch

    def close(self) -> None:
        self._runner.run(self._entered.__aexit__(None, None, None))
        self._runner.close()


def _routers(services: Any) -> Router:
    return Router("/", route_handlers=[openai.router(services), ollama.router(services), anthropic.router(services)])


@pytest.fixture(scope="module")
def relay() -> Iterator[Relay]:
    made = Relay()
    yield made
    made.close()


def cut(text: str, data: st.DataObject) -> list[str]:
    cuts = sorted(data.draw(st.sets(st.integers(1, len(text) - 1), max_size=12)))
    return [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]


def agreed(told: Told) -> tuple[str, str, tuple[tuple[str, str], ...], str]:
    return told.thinking, told.text, told.calls, told.reason


@given(st.sampled_from(NAMES), st.data())
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_tags_and_json_may_be_cut_anywhere(relay: Relay, name: str, data: st.DataObject) -> None:
    """One character for each piece is among them."""
    text = f"{RAW}<tool_call>{CALL_TEXT}</tool_call>"
    relay.pieces = tuple(text) if data.draw(st.booleans()) else tuple(cut(text, data))
    assert agreed(relay.told("raw", name)) == (THOUGHT, SAID, (call("weather", CALLED),), "tool_calls")


@given(st.sampled_from(NAMES), st.data())
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_events_may_come_in_any_pieces_and_batches(relay: Relay, name: str, data: st.DataObject) -> None:
    arguments = json.dumps(CALLED, ensure_ascii=False)
    first, *others = cut(arguments, data)
    said: list[Event] = [
        *(events.Thinking(piece) for piece in cut(THOUGHT, data)),
        *(Text(piece) for piece in cut(SAID, data)),
        ToolCallDelta(0, first if data.draw(st.booleans()) else "", id="call_1", name="weather"),
    ]
    if said[-1] == ToolCallDelta(0, "", id="call_1", name="weather"):
        others = [first, *others]
    said += [*(ToolCallDelta(0, piece) for piece in others), Finish(("tool_calls",), Usage(9, len(said)))]
    edges = sorted(data.draw(st.sets(st.integers(1, len(said) - 1), max_size=12)))
    relay.pieces = tuple(tuple(said[a:b]) for a, b in zip([0, *edges], [*edges, len(said)], strict=True))
    assert agreed(relay.told("able", name)) == (THOUGHT, SAID, (call("weather", CALLED),), "tool_calls")
