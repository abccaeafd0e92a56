"""The official client's Responses, unchanged, against a real server and a real engine. What a small model can't be
trusted with, a call or a form, is certain because the engine is constrained."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal

import openai
import pytest
from openai import OpenAI
from pydantic import BaseModel
from support.models import CHAT_MODEL

QUESTION = "What is the capital of France? Answer in one sentence."
SURE: dict[str, Any] = {"model": CHAT_MODEL, "temperature": 0, "max_output_tokens": 24}
WEATHER: Any = {
    "type": "function",
    "name": "get_weather",
    "description": "The weather in a city",
    "strict": True,
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "enum": ["Rome", "Oslo"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
}


@pytest.fixture
def client(base_url: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=base_url, api_key="unused", max_retries=0, timeout=60) as client:
        yield client


def test_a_text(client: OpenAI) -> None:
    answer = client.responses.create(input=QUESTION, **SURE)
    assert "Paris" in answer.output_text
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens
    assert 0 < answer.usage.output_tokens <= 24
    assert answer.usage.output_tokens_details.reasoning_tokens == 0


def test_streamed_is_the_same_text(client: OpenAI) -> None:
    whole = client.responses.create(input=QUESTION, store=False, **SURE)
    found = list(client.responses.create(input=QUESTION, stream=True, **SURE))
    assert [event.sequence_number for event in found] == list(range(len(found)))
    text = "".join(event.delta for event in found if event.type == "response.output_text.delta")
    last = found[-1]
    assert last.type in ("response.completed", "response.incomplete")
    assert text == last.response.output_text == whole.output_text


def test_the_streaming_helper(client: OpenAI) -> None:
    with client.responses.stream(input=QUESTION, **SURE) as stream:
        kinds = {event.type for event in stream}
        answer = stream.get_final_response()
    assert "response.output_text.delta" in kinds
    assert "Paris" in answer.output_text


class City(BaseModel):
    name: Literal["Paris", "Rome"]
    is_capital: bool


def test_a_parsed_answer(client: OpenAI) -> None:
    answer = client.responses.parse(input=QUESTION, text_format=City, **{**SURE, "max_output_tokens": 64})
    assert isinstance(answer.output_parsed, City)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "name": "get_weather"}])
def test_a_tools_round_trip(client: OpenAI, choice: Any) -> None:
    """The template of this model knows no tools: the call comes all the same, and its output is read."""
    asked = {**SURE, "max_output_tokens": 64}
    first = client.responses.create(input="Weather in Rome?", tools=[WEATHER], tool_choice=choice, **asked)
    (call,) = first.output
    assert call.type == "function_call" and call.name == "get_weather"
    assert json.loads(call.arguments)["city"] in ("Rome", "Oslo")
    output: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "It is sunny, 21 degrees."}
    second = client.responses.create(input=[output], previous_response_id=first.id, **SURE)
    assert second.output_text and second.previous_response_id == first.id
    assert second.usage is not None and first.usage is not None
    assert second.usage.input_tokens > 20


def test_a_streamed_call(client: OpenAI) -> None:
    asked = {**SURE, "max_output_tokens": 64}
    found = list(
        client.responses.create(input="Weather in Rome?", tools=[WEATHER], tool_choice="required", stream=True, **asked)
    )
    pieces = [event.delta for event in found if event.type == "response.function_call_arguments.delta"]
    (done,) = [event for event in found if event.type == "response.function_call_arguments.done"]
    assert len(pieces) > 1 and "".join(pieces) == done.arguments
    assert json.loads(done.arguments)["city"] in ("Rome", "Oslo")


def test_chat_completions_force_the_same_call(client: OpenAI) -> None:
    function = {key: WEATHER[key] for key in ("name", "description", "parameters", "strict")}
    answer = client.chat.completions.create(
        model=CHAT_MODEL,
        messages=[{"role": "user", "content": "Weather in Rome?"}],
        tools=[{"type": "function", "function": function}],  # type: ignore[list-item]  # the shape is right
        tool_choice="required",
        temperature=0,
        max_tokens=64,
    )
    response = client.responses.create(
        input="Weather in Rome?", tools=[WEATHER], tool_choice="required", **{**SURE, "max_output_tokens": 64}
    )
    calls = answer.choices[0].message.tool_calls
    assert calls is not None and answer.choices[0].finish_reason == "tool_calls"
    one: Any = calls[0]
    other: Any = response.output[0]
    assert (one.function.name, one.function.arguments) == (other.name, other.arguments)
    assert answer.usage is not None and response.usage is not None
    assert answer.usage.prompt_tokens == response.usage.input_tokens
    assert answer.usage.completion_tokens == response.usage.output_tokens


def test_a_conversation_is_kept_read_and_forgotten(client: OpenAI) -> None:
    first = client.responses.create(input="My name is Ada. Say hello.", instructions="Be brief.", **SURE)
    second = client.responses.create(input="What is my name?", previous_response_id=first.id, **SURE)
    assert second.usage is not None and first.usage is not None
    assert second.usage.input_tokens > first.usage.input_tokens
    assert client.responses.retrieve(first.id).output_text == first.output_text
    (item,) = client.responses.input_items.list(second.id).data
    assert item.type == "message" and item.content[0].text == "What is my name?"  # type: ignore[union-attr]
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(first.id)
    with pytest.raises(openai.NotFoundError) as raised:
        client.responses.create(input="And now?", previous_response_id=second.id, **SURE)
    assert raised.value.param == "previous_response_id"


def test_what_is_refused_names_its_field(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        client.responses.create(input=QUESTION, tools=[{"type": "web_search"}], **SURE)
    assert (raised.value.param, raised.value.code) == ("tools[0].type", "unsupported_parameter")
