"""The official `anthropic` package against a real engine."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import anthropic
import pytest
from anthropic import Anthropic, AsyncAnthropic
from support.models import CHAT_MODEL
from support.servers import TEST_DRIVER

COUNT: Any = {"role": "user", "content": "Count: one two three four five six"}
ASKED: dict[str, Any] = {"model": CHAT_MODEL, "max_tokens": 16, "messages": [COUNT], "extra_body": {"temperature": 0}}
CITY: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"enum": ["Rome", "Oslo"]}},
    "required": ["city"],
    "additionalProperties": False,
}

llama_cpp_only = pytest.mark.skipif(TEST_DRIVER != "llama_cpp", reason="a remote doesn't tell, and vLLM has no prefill")


@pytest.fixture
def client(base_url: str) -> Iterator[Anthropic]:
    with Anthropic(base_url=base_url, api_key="unused", max_retries=0, timeout=60) as made:
        yield made


def text(message: Any) -> str:
    return "".join(block.text for block in message.content if block.type == "text")


def test_a_message(client: Anthropic) -> None:
    message = client.messages.create(**ASKED)
    assert text(message)
    assert (message.role, message.model, message.type) == ("assistant", CHAT_MODEL, "message")
    assert message.usage.output_tokens > 0
    assert message._request_id


def test_a_stream_comes_to_the_same(client: Anthropic) -> None:
    whole = client.messages.create(**ASKED)
    with client.messages.stream(**ASKED) as stream:
        pieces = list(stream.text_stream)
        final = stream.get_final_message()
    assert len(pieces) > 1
    assert "".join(pieces) == text(final) == text(whole)
    assert final.stop_reason == whole.stop_reason
    assert _prompt(final.usage) == _prompt(whole.usage)
    assert final.usage.output_tokens == whole.usage.output_tokens


def test_raw_events(client: Anthropic) -> None:
    kinds = [event.type for event in client.messages.create(stream=True, **ASKED)]
    assert kinds[0] == "message_start" and kinds[-2:] == ["message_delta", "message_stop"]


def test_async(base_url: str) -> None:
    async def go() -> tuple[str, str]:
        async with AsyncAnthropic(base_url=base_url, api_key="unused", max_retries=0, timeout=60) as client:
            whole = await client.messages.create(**ASKED)
            async with client.messages.stream(**ASKED) as stream:
                return text(whole), await stream.get_final_text()

    whole, streamed = asyncio.run(go())
    assert whole == streamed != ""


def test_system_and_earlier_turns_change_the_prompt(client: Anthropic) -> None:
    short = client.messages.create(**ASKED).usage
    turns = [COUNT, {"role": "assistant", "content": "seven"}, COUNT]
    longer = client.messages.create(**{**ASKED, "messages": turns}, system="Be brief.").usage
    assert _prompt(longer) > _prompt(short)


@llama_cpp_only
def test_which_stop_sequence_it_was(client: Anthropic) -> None:
    message = client.messages.create(stop_sequences=["zzz", "o"], **ASKED)
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", "o")
    assert "o" not in text(message)


def test_the_limit(client: Anthropic) -> None:
    message = client.messages.create(**{**ASKED, "max_tokens": 2})
    assert (message.stop_reason, message.usage.output_tokens) == ("max_tokens", 2)


@llama_cpp_only
@pytest.mark.parametrize("is_streamed", [False, True], ids=["whole", "streamed"])
def test_an_answer_goes_on_from_where_it_was_begun(client: Anthropic, is_streamed: bool) -> None:
    begun = "The numbers are: one, two, thr"
    asked = {**ASKED, "messages": [COUNT, {"role": "assistant", "content": begun}]}
    if is_streamed:
        with client.messages.stream(**asked) as stream:
            told = stream.get_final_text()
    else:
        told = text(client.messages.create(**asked))
    assert told and begun not in told
    assert told[0].isalpha()


@llama_cpp_only
def test_counting_is_exact(client: Anthropic) -> None:
    asked: dict[str, Any] = {"model": CHAT_MODEL, "messages": [COUNT], "system": "Be brief."}
    counted = client.messages.count_tokens(**asked).input_tokens
    assert counted == _prompt(client.messages.create(max_tokens=1, **asked).usage)


def test_an_answer_held_to_a_schema(client: Anthropic) -> None:
    form: Any = {"format": {"type": "json_schema", "schema": CITY}}
    message = client.messages.create(output_config=form, **{**ASKED, "max_tokens": 64})
    assert json.loads(text(message))["city"] in ("Rome", "Oslo")


def test_models(client: Anthropic) -> None:
    names = [model.id for model in client.models.list()]
    assert CHAT_MODEL in names
    assert client.models.retrieve(CHAT_MODEL).display_name == CHAT_MODEL


PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
ERRORS: dict[str, tuple[dict[str, Any], type[anthropic.APIStatusError], str]] = {
    "no such model": ({"model": "claude-nope"}, anthropic.NotFoundError, "claude-nope"),
    "a prompt that is too long": (
        {"messages": [{"role": "user", "content": "word " * 20_000}]},
        anthropic.BadRequestError,
        "prompt is too long",
    ),
    "an image to a text model": (
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {
                            "type": "image",
                            "source": {
                                "type": "base64",
                                "media_type": "image/png",
                                "data": PIXEL,
                            },
                        }
                    ],
                }
            ]
        },
        anthropic.BadRequestError,
        "images",
    ),
    "a server's tool": (
        {"tools": [{"type": "web_search_20250305", "name": "web_search"}]},
        anthropic.BadRequestError,
        "web_search",
    ),
}


@pytest.mark.parametrize(("more", "kind", "told"), ERRORS.values(), ids=ERRORS.keys())
def test_errors(client: Anthropic, more: dict[str, Any], kind: type[anthropic.APIStatusError], told: str) -> None:
    with pytest.raises(kind, match=told):
        client.messages.create(**{**ASKED, **more})


def _prompt(usage: Any) -> int:
    found: int = usage.input_tokens + (usage.cache_read_input_tokens or 0)
    return found
