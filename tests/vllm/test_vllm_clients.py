"""What both official clients get from a real vLLM through Oprel, beyond what tests/conformance asks of any driver."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import ollama
import openai
import pytest
from support.models import CHAT_MODEL, EMBED_MODEL
from support.servers import RealServer, wait_until

# The model is sure of this answer's words, whatever the processor makes of its last bits.
QUESTION: list[Any] = [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]
WEATHER: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather of a city for some days.",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "maxLength": 30}, "days": {"type": "integer"}},
                "required": ["city", "days"],
                "additionalProperties": False,
            },
        },
    },
    {"type": "function", "function": {"name": "get_time", "parameters": {"type": "object", "properties": {}}}},
]
ASKED: list[Any] = [{"role": "user", "content": "What is the weather in Paris for the next 3 days?"}]
SURE: dict[str, Any] = {"temperature": 0, "max_tokens": 100}


@pytest.fixture
def client(vllm: RealServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{vllm.url}/v1", api_key="unused", max_retries=0, timeout=120) as client:
        yield client


@pytest.fixture
def old(vllm: RealServer) -> Iterator[ollama.Client]:
    with ollama.Client(vllm.url, timeout=120) as client:
        yield client


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
@pytest.mark.parametrize("stream", [False, True])
def test_calls_are_held_to_their_schema_without_strict(client: openai.OpenAI, choice: Any, stream: bool) -> None:
    asked: dict[str, Any] = {"model": CHAT_MODEL, "messages": ASKED, "tools": WEATHER, "tool_choice": choice, **SURE}
    if stream:
        chunks = [chunk.choices[0] for chunk in client.chat.completions.create(stream=True, **asked) if chunk.choices]
        deltas = [call for choice in chunks for call in choice.delta.tool_calls or ()]
        name = deltas[0].function.name
        arguments = "".join(call.function.arguments or "" for call in deltas)
        reason = chunks[-1].finish_reason
    else:
        answer = client.chat.completions.create(**asked).choices[0]
        (call,) = answer.message.tool_calls or ()
        name, arguments, reason = call.function.name, call.function.arguments, answer.finish_reason
    assert (name, reason) == ("get_weather", "tool_calls")
    given = json.loads(arguments)
    assert set(given) == {"city", "days"}
    assert isinstance(given["days"], int)
    assert isinstance(given["city"], str)


def test_a_conversation_with_a_tool_goes_on(client: openai.OpenAI) -> None:
    first = client.chat.completions.create(
        model=CHAT_MODEL, messages=ASKED, tools=WEATHER, tool_choice="required", **SURE
    )
    message = first.choices[0].message
    assert message.tool_calls
    answers = [{"role": "tool", "tool_call_id": call.id, "content": "Sunny."} for call in message.tool_calls]
    second = client.chat.completions.create(
        model=CHAT_MODEL, messages=[*ASKED, message.model_dump(exclude_none=True), *answers], tools=WEATHER, **SURE
    )
    assert second.choices[0].message.content or second.choices[0].message.tool_calls


def test_a_schema_holds(client: openai.OpenAI, old: ollama.Client) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}, "people": {"type": "integer", "minimum": 1}},
        "required": ["city", "people"],
        "additionalProperties": False,
    }
    shape: Any = {"type": "json_schema", "json_schema": {"name": "city", "schema": schema}}
    text = client.chat.completions.create(model=CHAT_MODEL, messages=QUESTION, response_format=shape, **SURE)
    assert set(json.loads(text.choices[0].message.content or "")) == {"city", "people"}
    other = old.chat(CHAT_MODEL, QUESTION, format=schema, options={"temperature": 0, "num_predict": 100})
    assert set(json.loads(other.message.content or "")) == {"city", "people"}


def test_logprobs_are_the_likeliest_whatever_was_drawn(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=CHAT_MODEL, messages=QUESTION, temperature=2, max_tokens=24, seed=3, logprobs=True, top_logprobs=20
    )
    told = answer.choices[0].logprobs
    assert told is not None and told.content
    for token in told.content:
        logprobs = [top.logprob for top in token.top_logprobs]
        assert len(logprobs) == 20
        assert logprobs == sorted(logprobs, reverse=True)
        assert token.logprob <= logprobs[0]
    assert any(token.token != token.top_logprobs[0].token for token in told.content), "at this temperature, some must"


def test_choices_are_drawn_apart(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=CHAT_MODEL, messages=QUESTION, n=3, temperature=1.5, max_tokens=16)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in answer.choices}) > 1


def test_more_tokens_than_there_are_is_what_is_left(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=CHAT_MODEL, messages=QUESTION, temperature=0, max_tokens=1_000_000, stop=["."]
    )
    assert answer.choices[0].finish_reason == "stop"
    assert "Paris" in (answer.choices[0].message.content or "")


def test_a_prompt_that_is_too_long_is_told_so(client: openai.OpenAI) -> None:
    for words in (10_000, 300_000):  # counted in tokens, and refused by its characters alone
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(
                model=CHAT_MODEL, messages=[{"role": "user", "content": "word " * words}], max_tokens=4
            )
        assert caught.value.code == "context_length_exceeded"


def test_ollama_drops_the_oldest_turns(old: ollama.Client) -> None:
    turns = [{"role": "user", "content": "word " * 3000}, {"role": "assistant", "content": "Yes."}] * 4
    answer = old.chat(CHAT_MODEL, [*turns, *QUESTION], options={"temperature": 0, "num_predict": 4})
    assert 20 < (answer.prompt_eval_count or 0) < 8192


def test_ollama_streams_and_counts(old: ollama.Client) -> None:
    parts = list(old.chat(CHAT_MODEL, QUESTION, stream=True, options={"temperature": 0, "num_predict": 24}))
    assert "Paris" in "".join(part.message.content or "" for part in parts)
    assert parts[-1].done_reason in ("stop", "length")
    assert parts[-1].eval_count and parts[-1].prompt_eval_count and parts[-1].eval_duration


def test_a_folder_is_shown_as_any_model(old: ollama.Client) -> None:
    shown = old.show(CHAT_MODEL)
    assert shown.details is not None and shown.modelinfo is not None
    assert (shown.details.format, shown.details.family) == ("safetensors", "llama")
    assert shown.modelinfo["llama.context_length"] == 8192
    assert {"completion", "tools"} <= set(shown.capabilities or ())
    assert {CHAT_MODEL, EMBED_MODEL} <= {model.model for model in old.list().models}


def test_embeddings_mean_what_they_should(client: openai.OpenAI, old: ollama.Client) -> None:
    texts = ["The cat sits on the mat.", "A cat is sitting on a rug.", "Stock prices fell."]
    one, other, far = (row.embedding for row in client.embeddings.create(model=EMBED_MODEL, input=texts).data)
    assert len(one) == 384
    assert _dot(one, one) == pytest.approx(1, abs=1e-4)
    assert _dot(one, other) > 0.6 > _dot(one, far)
    again = old.embed(EMBED_MODEL, texts)
    assert list(again.embeddings[0]) == pytest.approx(one, abs=1e-3)
    many = old.embed(EMBED_MODEL, [f"text {number}" for number in range(130)])
    assert len(many.embeddings) == 130


def test_one_driver_refuses_what_the_model_can_not(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="embedding"):
        client.embeddings.create(model=CHAT_MODEL, input="x")
    with pytest.raises(openai.BadRequestError, match="embedding model"):
        client.chat.completions.create(model=EMBED_MODEL, messages=QUESTION)


def test_a_client_that_leaves_stops_the_work(vllm: RealServer, client: openai.OpenAI) -> None:
    def busy() -> int:
        with urllib.request.urlopen(f"{vllm.url}/api/ps", timeout=5) as answer:
            rows = json.load(answer)["models"]
        return sum(row["oprel"]["slots_in_use"] for row in rows)

    story: list[Any] = [{"role": "user", "content": "Count from one to ten thousand, in words."}]
    with client.chat.completions.create(model=CHAT_MODEL, messages=story, stream=True, max_tokens=4000) as stream:
        next(iter(stream))
        assert busy() == 1
    left = time.monotonic()
    wait_until(lambda: busy() == 0, limit_s=5, what="the slot to be free")
    answer = client.chat.completions.create(model=CHAT_MODEL, messages=QUESTION, temperature=0, max_tokens=8)
    assert "Paris" in (answer.choices[0].message.content or "")
    assert time.monotonic() - left < 10, "the engine still works for the one who left"


def _dot(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))
