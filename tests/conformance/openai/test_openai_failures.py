"""What the official client makes of engines that fail, over a real socket with scripted engines."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from support.checking_proxy import checking_proxy
from support.servers import ScriptedServer, wait_until

from oprel.config import Settings
from oprel.testing import Script

HELLO: dict[str, Any] = {"model": "scripted", "messages": [{"role": "user", "content": "hi"}]}
Serve = Callable[..., ScriptedServer]


@contextmanager
def connected(server: ScriptedServer) -> Iterator[OpenAI]:
    """Through the proxy that holds what passes against the document."""
    with checking_proxy(server.url) as proxy:
        with OpenAI(base_url=f"{proxy.url}/v1", api_key="unused", max_retries=0, timeout=20) as client:
            yield client
        proxy.check()


@pytest.mark.parametrize("is_streamed", [False, True], ids=["whole", "streamed"])
def test_an_engine_that_dies_before_the_first_token(scripted_server: Serve, is_streamed: bool) -> None:
    with connected(scripted_server(Script(dies_at=0))) as client, pytest.raises(openai.InternalServerError) as caught:
        client.chat.completions.create(stream=is_streamed, **HELLO)
    assert (caught.value.status_code, caught.value.code) == (502, "engine_failed")


def test_an_engine_that_dies_in_a_stream(scripted_server: Serve) -> None:
    texts: list[str] = []
    with connected(scripted_server(Script(dies_at=2))) as client:
        stream = client.chat.completions.create(stream=True, **HELLO)
        with pytest.raises(openai.APIError) as caught:
            texts.extend(chunk.choices[0].delta.content or "" for chunk in stream)
    assert caught.value.code == "engine_failed"


def test_an_engine_that_does_not_start(scripted_server: Serve) -> None:
    server = scripted_server(Script(refusals=("engine",) * 9))
    with connected(server) as client, pytest.raises(openai.InternalServerError) as caught:
        client.chat.completions.create(**HELLO)
    assert caught.value.code == "engine_start_failed"


def test_a_full_queue_names_the_time_to_wait(scripted_server: Serve) -> None:
    server = scripted_server(Script(silent=True, slots=1), settings=Settings(max_queue=1))

    async def go() -> openai.InternalServerError:
        async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0, timeout=20) as client:
            waiting = [asyncio.create_task(client.chat.completions.create(**HELLO))]
            await asyncio.to_thread(wait_until, lambda: server.driver.engines and server.driver.engines[0].running)
            waiting.append(asyncio.create_task(client.chat.completions.create(**HELLO)))
            await asyncio.to_thread(wait_until, lambda: server.services.scheduler.loaded()[0].queued)
            try:
                with pytest.raises(openai.InternalServerError) as caught:
                    await client.chat.completions.create(**HELLO)
            finally:
                for task in waiting:
                    task.cancel()
                await asyncio.gather(*waiting, return_exceptions=True)
            return caught.value

    error = asyncio.run(go())
    assert (error.status_code, error.code) == (503, "server_busy")
    assert int(error.response.headers["retry-after"]) >= 1


def test_leaving_a_stream_stops_the_engine(scripted_server: Serve) -> None:
    server = scripted_server(Script(endless=True, token_delay_s=0.005))
    with OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0, timeout=20) as client:
        with client.chat.completions.create(stream=True, **HELLO) as stream:
            next(iter(stream))
        wait_until(lambda: server.driver.engines[0].calls[0].ended == "closed", limit_s=2, what="the engine to stop")


def test_a_client_that_times_out_stops_the_engine(scripted_server: Serve) -> None:
    server = scripted_server(Script(silent=True))
    with OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0, timeout=0.5) as client:
        with pytest.raises(openai.APITimeoutError):
            client.chat.completions.create(**HELLO)
        wait_until(lambda: server.driver.engines[0].calls[0].ended == "closed", limit_s=2, what="the engine to stop")


def test_tools_thinking_and_choices(scripted_server: Serve) -> None:
    from oprel.schema import ToolCall

    script = Script(thinking=("hm",), text=(), tool_calls=(ToolCall("weather", '{"city":"Rome"}'),))
    tools: Any = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
    with connected(scripted_server(script)) as client:
        whole = client.chat.completions.create(tools=tools, n=2, **HELLO)
        with client.chat.completions.stream(tools=tools, **HELLO) as stream:
            final = stream.get_final_completion()
    for choice in (*whole.choices, *final.choices):
        assert choice.finish_reason == "tool_calls"
        assert choice.message.tool_calls is not None
        call: Any = choice.message.tool_calls[0]
        assert (call.function.name, call.function.arguments) == ("weather", '{"city":"Rome"}')
    assert getattr(whole.choices[1].message, "reasoning_content", None) == "hm"
