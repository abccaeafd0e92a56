"""The official Python client, unchanged, against a real server and a real engine."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel
from support.models import CHAT_MODEL
from support.servers import TEST_DRIVER

EMBED_MODEL = "all-minilm"
QUESTION: list[Any] = [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]
SURE: dict[str, Any] = {"temperature": 0, "max_tokens": 24, "seed": 1}


@pytest.fixture
def client(base_url: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=base_url, api_key="unused", max_retries=0, timeout=60) as client:
        yield client


def test_chat(client: OpenAI) -> None:
    answer = client.chat.completions.create(model=CHAT_MODEL, messages=QUESTION, **SURE)
    assert "Paris" in (answer.choices[0].message.content or "")
    assert (answer.object, answer.model, answer.choices[0].message.role) == ("chat.completion", CHAT_MODEL, "assistant")
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert 0 < answer.usage.completion_tokens <= 24


def test_chat_streamed_is_the_same_text(client: OpenAI) -> None:
    whole = client.chat.completions.create(model=CHAT_MODEL, messages=QUESTION, **SURE)
    chunks = list(
        client.chat.completions.create(
            model=CHAT_MODEL, messages=QUESTION, stream=True, stream_options={"include_usage": True}, **SURE
        )
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert len({chunk.id for chunk in chunks}) == 1
    usage = chunks[-1].usage
    assert usage is not None and whole.usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens) == (whole.usage.prompt_tokens, whole.usage.completion_tokens)


def test_asynchronous(base_url: str) -> None:
    async def go() -> list[str]:
        async with AsyncOpenAI(base_url=base_url, api_key="unused", max_retries=0, timeout=60) as client:
            whole = await client.chat.completions.create(model=CHAT_MODEL, messages=QUESTION, **SURE)
            stream = await client.chat.completions.create(model=CHAT_MODEL, messages=QUESTION, stream=True, **SURE)
            pieces = [chunk.choices[0].delta.content or "" async for chunk in stream]
            return [whole.choices[0].message.content or "", "".join(pieces)]

    whole, streamed = asyncio.run(go())
    assert whole == streamed
    assert "Paris" in whole


def test_many_at_once(base_url: str) -> None:
    async def go() -> list[str | None]:
        async with AsyncOpenAI(base_url=base_url, api_key="unused", max_retries=0, timeout=60) as client:
            answers = await asyncio.gather(
                *(client.chat.completions.create(model=CHAT_MODEL, messages=QUESTION, **SURE) for _ in range(8))
            )
            return [answer.choices[0].message.content for answer in answers]

    assert all("Paris" in (text or "") for text in asyncio.run(go()))


def test_raw_responses_tell_the_driver(client: OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(model=CHAT_MODEL, messages=QUESTION, **SURE)
    assert raw.headers["x-oprel-driver"] == TEST_DRIVER
    assert raw.headers["x-oprel-device"] in ("cpu", "gpu", "gpu+cpu")
    assert "Paris" in (raw.parse().choices[0].message.content or "")


def test_unknown_fields_are_named(client: OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model=CHAT_MODEL, messages=QUESTION, extra_body={"mirostat": 2}, **SURE
    )
    assert "'mirostat'" in raw.headers["x-oprel-warning"]


def test_streaming_responses(client: OpenAI) -> None:
    with client.chat.completions.with_streaming_response.create(
        model=CHAT_MODEL, messages=QUESTION, stream=True, **SURE
    ) as response:
        lines = [line for line in response.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    assert response.headers["content-type"].startswith("text/event-stream")


def test_a_stream_may_be_left(client: OpenAI) -> None:
    with client.chat.completions.create(
        model=CHAT_MODEL, messages=[{"role": "user", "content": "Count to a thousand."}], stream=True
    ) as stream:
        next(iter(stream))
    answer = client.chat.completions.create(model=CHAT_MODEL, messages=QUESTION, **SURE)
    assert answer.choices


def test_choices_stop_and_logprobs(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model=CHAT_MODEL, messages=QUESTION, n=3, stop=[".", ""], logprobs=True, top_logprobs=2, **SURE
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    for choice in answer.choices:
        assert "." not in (choice.message.content or "")
        assert choice.logprobs is not None and choice.logprobs.content
        assert len(choice.logprobs.content[0].top_logprobs) == 2


class City(BaseModel):
    name: str
    country: str


def test_a_schema_shapes_the_answer(client: OpenAI) -> None:
    answer = client.chat.completions.parse(
        model=CHAT_MODEL,
        messages=[{"role": "user", "content": "Describe Paris as JSON with name and country."}],
        response_format=City,
        temperature=0,
        max_tokens=100,
    )
    assert isinstance(answer.choices[0].message.parsed, City)


PATTERNS = [r"^\d{3}-\d{4}$", r"^[\w.-]{1,8}$", r"^a\.b$", "^abc", r"^[a-z]+(-[a-z]+)*$", "^é{2}$", r"^(?:foo|\S)$"]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns_are_kept(client: OpenAI, pattern: str) -> None:
    """Engines pass over some forms of patterns in silence; they get none of those."""
    schema = {"type": "object", "properties": {"a": {"type": "string", "pattern": pattern}}, "required": ["a"]}
    shape: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    answer = client.chat.completions.create(
        model=CHAT_MODEL,
        messages=QUESTION,
        response_format=shape,
        temperature=1.2,
        seed=1,
        max_tokens=60,
    )
    if answer.choices[0].finish_reason == "stop":
        assert re.search(pattern, json.loads(answer.choices[0].message.content or "")["a"])


def test_json_objects(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model=CHAT_MODEL,
        messages=[{"role": "user", "content": "Give a JSON object with the key a and the value 1."}],
        response_format={"type": "json_object"},
        temperature=0,
        max_tokens=200,
    )
    if answer.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(answer.choices[0].message.content or ""), dict)
    assert (answer.choices[0].message.content or "").lstrip().startswith("{")


def test_no_tokens(client: OpenAI) -> None:
    answer = client.chat.completions.create(model=CHAT_MODEL, messages=QUESTION, max_tokens=0)
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("", "length")


def test_completions(client: OpenAI) -> None:
    answer = client.completions.create(model=CHAT_MODEL, prompt="The capital of France is", logprobs=2, **SURE)
    choice = answer.choices[0]
    assert "Paris" in choice.text
    assert choice.logprobs is not None and choice.logprobs.tokens is not None
    assert "".join(choice.logprobs.tokens) == choice.text
    chunks = list(client.completions.create(model=CHAT_MODEL, prompt="The capital of France is", stream=True, **SURE))
    assert "".join(chunk.choices[0].text for chunk in chunks) == choice.text


def test_several_prompts_echoed(client: OpenAI) -> None:
    prompts = ["The capital of France is", "The capital of Italy is"]
    answer = client.completions.create(model=CHAT_MODEL, prompt=prompts, echo=True, **SURE)
    assert [choice.text.startswith(prompt) for choice, prompt in zip(answer.choices, prompts, strict=True)] == [
        True
    ] * 2


def test_an_empty_prompt(client: OpenAI) -> None:
    assert client.completions.create(model=CHAT_MODEL, prompt="", max_tokens=4).choices


def test_embeddings(client: OpenAI) -> None:
    """The client asks for base64 on its own; numbers are the same."""
    texts = ["The cat sits on the mat.", "A cat is sitting on a rug.", "Stock prices fell."]
    packed = client.embeddings.create(model=EMBED_MODEL, input=texts)
    plain = client.embeddings.create(model=EMBED_MODEL, input=texts, encoding_format="float")
    one, other, far = (item.embedding for item in packed.data)
    assert len(one) == 384
    assert one == pytest.approx(plain.data[0].embedding, abs=1e-6)
    assert _dot(one, one) == pytest.approx(1, abs=1e-4)
    assert _dot(one, other) > 0.6 > _dot(one, far)
    assert packed.usage.prompt_tokens > 10


def test_fewer_dimensions(client: OpenAI) -> None:
    vector = client.embeddings.create(model=EMBED_MODEL, input="x", dimensions=64).data[0].embedding
    assert len(vector) == 64
    assert _dot(vector, vector) == pytest.approx(1, abs=1e-4)


def _dot(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


def test_models(client: OpenAI) -> None:
    names = [model.id for model in client.models.list()]
    assert CHAT_MODEL in names
    assert client.models.retrieve(CHAT_MODEL).owned_by
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("nope")
    assert caught.value.code == "model_not_found"


REFUSED: dict[str, tuple[type[openai.APIStatusError], str, dict[str, Any], str | None, str | None]] = {
    "unknown model": (openai.NotFoundError, "chat", {"model": "nope"}, "model", "model_not_found"),
    "out of range": (openai.BadRequestError, "chat", {"temperature": 3}, "temperature", None),
    "text from an embedding model": (
        openai.BadRequestError,
        "chat",
        {"model": EMBED_MODEL},
        "model",
        "unsupported_model",
    ),
    "embeddings from a text model": (
        openai.BadRequestError,
        "embed",
        {"model": CHAT_MODEL},
        "model",
        "unsupported_model",
    ),
    "a prompt too long": (
        openai.BadRequestError,
        "chat",
        {"messages": [{"role": "user", "content": "word " * 40_000}]},
        "messages",
        "context_length_exceeded",
    ),
    "an image": (
        openai.BadRequestError,
        "chat",
        {
            "messages": [
                {
                    "role": "user",
                    "content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1:9/x.png"}}],
                }
            ]
        },
        "messages[0].content[0].image_url.url",
        None,
    ),
    "a schema that would wedge the engine": (
        openai.BadRequestError,
        "chat",
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "x", "schema": {"type": "string", "pattern": "^((a?){20}){20}$"}},
            }
        },
        "response_format.json_schema.schema.pattern",
        None,
    ),
    "tools": (
        openai.BadRequestError,
        "chat",
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
        "tools",
        "unsupported_parameter",
    ),
}


@pytest.mark.parametrize(("error", "kind", "fields", "param", "code"), REFUSED.values(), ids=REFUSED.keys())
def test_refusals_are_the_clients_own_errors(
    client: OpenAI, error: type[openai.APIStatusError], kind: str, fields: dict[str, Any], param: str, code: str
) -> None:
    if "tools" in fields and TEST_DRIVER != "llama_cpp":
        pytest.skip("this driver's model has a template with tools")
    with pytest.raises(error) as caught:
        if kind == "chat":
            client.chat.completions.create(**{"model": CHAT_MODEL, "messages": QUESTION, **fields})
        else:
            client.embeddings.create(**{"input": "x", **fields})
    assert (caught.value.param, caught.value.code) == (param, code)
    with pytest.raises(error):
        if kind == "chat":
            client.chat.completions.create(**{"model": CHAT_MODEL, "messages": QUESTION, "stream": True, **fields})
        else:
            client.embeddings.create(**{"input": "x", **fields})
