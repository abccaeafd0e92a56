"""What the official client makes of tools and of engines that fail, over a real socket with scripted engines."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anthropic
import pytest
from anthropic import Anthropic
from support.servers import ScriptedServer

from oprel.schema import ChatRequest, ToolCall
from oprel.testing import Script

Serve = Callable[..., ScriptedServer]
HELLO: dict[str, Any] = {"model": "scripted", "max_tokens": 50}
QUESTION: Any = {"role": "user", "content": "weather?"}
TOOL: Any = {"name": "weather", "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}}}
CALL = Script(thinking=("hm",), text=(), tool_calls=(ToolCall("weather", '{"city":"Rome"}'),))


def connected(server: ScriptedServer) -> Anthropic:
    return Anthropic(base_url=server.url, api_key="unused", max_retries=0, timeout=20)


def test_a_tools_round_trip(scripted_server: Serve) -> None:
    server = scripted_server(CALL)
    with connected(server) as client:
        asked: Any = {**HELLO, "tools": [TOOL]}
        whole = client.messages.create(messages=[QUESTION], **asked)
        with client.messages.stream(messages=[QUESTION], **asked) as stream:
            final = stream.get_final_message()
        assert [block.type for block in final.content] == [block.type for block in whole.content]
        assert whole.stop_reason == final.stop_reason == "tool_use"
        call: Any = final.content[-1]
        assert (call.name, call.input) == ("weather", {"city": "Rome"})
        result: Any = {"type": "tool_result", "tool_use_id": call.id, "content": "sunny"}
        turns: Any = [QUESTION, {"role": "assistant", "content": final.content}, {"role": "user", "content": [result]}]
        client.messages.create(messages=turns, **asked)
    request = server.driver.engines[0].calls[-1].request
    assert isinstance(request, ChatRequest)
    assert [message.role for message in request.messages] == ["user", "assistant", "tool"]
    assert (request.messages[1].thinking, request.messages[2].tool_name) == ("hm", "weather")


def test_an_engine_that_dies_in_a_stream(scripted_server: Serve) -> None:
    with connected(scripted_server(Script(dies_at=2))) as client, pytest.raises(anthropic.APIStatusError) as caught:
        list(client.messages.create(messages=[QUESTION], stream=True, **HELLO))
    assert "api_error" in str(caught.value)
