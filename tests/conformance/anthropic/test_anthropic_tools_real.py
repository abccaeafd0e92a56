"""Tools with the official `anthropic` package and a real engine, whose model's template knows of no tools: a call that
is asked for is certain, since the engine can write nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from anthropic import Anthropic
from support.checking_proxy import checking_proxy
from support.models import CHAT_MODEL
from support.servers import TEST_DRIVER, real_server

CITIES = ("Rome", "Oslo")
WEATHER: Any = {
    "name": "weather",
    "description": "The weather of a city.",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string", "enum": list(CITIES)}},
        "required": ["city"],
        "additionalProperties": False,
    },
}
CLOCK: Any = {"name": "clock", "input_schema": {"type": "object", "properties": {}, "additionalProperties": False}}
QUESTION: Any = {"role": "user", "content": "What is the weather in Rome?"}
ASKED: dict[str, Any] = {
    "model": CHAT_MODEL,
    "max_tokens": 128,
    "tools": [WEATHER, CLOCK],
    "extra_body": {"temperature": 0},
}

pytestmark = pytest.mark.skipif(TEST_DRIVER == "openai", reason="the remote is declared without tools")


@pytest.fixture
def client(base_url: str) -> Iterator[Anthropic]:
    with Anthropic(base_url=base_url, api_key="unused", max_retries=0, timeout=60) as made:
        yield made


def asked_for(client: Anthropic, choice: Any, *, is_streamed: bool, **more: Any) -> Any:
    asked: dict[str, Any] = {**ASKED, "messages": [QUESTION], "tool_choice": choice, **more}
    if not is_streamed:
        return client.messages.create(**asked)
    with client.messages.stream(**asked) as stream:
        return stream.get_final_message()


def calls(message: Any) -> list[Any]:
    return [block for block in message.content if block.type == "tool_use"]


@pytest.mark.parametrize("is_streamed", [False, True], ids=["whole", "streamed"])
def test_a_named_tool_is_called(client: Anthropic, is_streamed: bool) -> None:
    message = asked_for(client, {"type": "tool", "name": "weather"}, is_streamed=is_streamed)
    (call,) = calls(message)
    assert message.stop_reason == "tool_use"
    assert call.name == "weather" and call.input["city"] in CITIES


@pytest.mark.parametrize("is_streamed", [False, True], ids=["whole", "streamed"])
def test_any_tool_is_called(client: Anthropic, is_streamed: bool) -> None:
    message = asked_for(client, {"type": "any", "disable_parallel_tool_use": True}, is_streamed=is_streamed)
    (call,) = calls(message)
    assert message.stop_reason == "tool_use"
    assert call.name in ("weather", "clock")


def test_a_round_trip(client: Anthropic) -> None:
    """The call's result comes back as a turn, and the model answers in words."""
    first = asked_for(client, {"type": "tool", "name": "weather"}, is_streamed=True)
    (call,) = calls(first)
    result: Any = {"type": "tool_result", "tool_use_id": call.id, "content": "It is sunny, 24 degrees."}
    turns: Any = [QUESTION, {"role": "assistant", "content": first.content}, {"role": "user", "content": [result]}]
    answer = asked_for(client, {"type": "none"}, is_streamed=False, messages=turns)
    assert not calls(answer)
    assert any(block.type == "text" and block.text for block in answer.content)
    assert answer.stop_reason in ("end_turn", "max_tokens")


def test_the_input_comes_in_pieces(client: Anthropic) -> None:
    choice: Any = {"type": "tool", "name": "weather"}
    with client.messages.stream(**ASKED, messages=[QUESTION], tool_choice=choice) as stream:
        pieces = [event.partial_json for event in stream if event.type == "input_json"]
        (call,) = calls(stream.get_final_message())
    assert "".join(pieces).replace(" ", "") == f'{{"city":"{call.input["city"]}"}}'


@pytest.mark.skipif(TEST_DRIVER != "llama_cpp", reason="one server of its own, with the bundled engine")
def test_a_stream_shows_life_while_the_model_loads(real_models_dir: Path) -> None:
    """Comments come before the first event, and the client passes over them."""
    environ = {"OPREL_PING_INTERVAL": "0.02"}
    with (
        real_server("--driver", "llama_cpp", models_dir=real_models_dir, environ=environ) as server,
        checking_proxy(server.url) as proxy,
        Anthropic(base_url=proxy.url, api_key="unused", max_retries=0, timeout=60) as client,
    ):
        message = asked_for(client, {"type": "tool", "name": "weather"}, is_streamed=True)
        (exchange,) = proxy.exchanges
        silence, _, said = exchange.body.partition(b"event: message_start")
        assert silence.count(b": still working\n\n") > 1
        assert b"message_stop" in said
        assert calls(message)[0].name == "weather"
        proxy.check()
