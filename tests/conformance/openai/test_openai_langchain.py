"""langchain-openai, unchanged, against a real server and a real engine."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel, SecretStr
from support.models import CHAT_MODEL

QUESTION = "What is the capital of France? Answer in one sentence."
KEY = SecretStr("unused")


@pytest.fixture
def chat(base_url: str) -> ChatOpenAI:
    options: dict[str, Any] = {"max_tokens": 24, "timeout": 60, "max_retries": 0, "stream_usage": True}
    return ChatOpenAI(model=CHAT_MODEL, base_url=base_url, api_key=KEY, temperature=0, **options)


def test_invoke(chat: ChatOpenAI) -> None:
    answer = chat.invoke([("system", "You answer briefly."), ("human", QUESTION)])
    assert "Paris" in str(answer.content)
    assert answer.response_metadata["finish_reason"] in ("stop", "length")
    assert getattr(answer, "usage_metadata")["output_tokens"] > 0  # noqa: B009  # not every message type has it


def test_stream(chat: ChatOpenAI) -> None:
    chunks = list(chat.stream(QUESTION))
    assert len(chunks) > 3
    assert "Paris" in "".join(str(chunk.content) for chunk in chunks)


def test_batch(chat: ChatOpenAI) -> None:
    answers = chat.batch([QUESTION, "What is 1 + 1?"])
    assert len(answers) == 2
    assert "Paris" in str(answers[0].content)


def test_asynchronous(chat: ChatOpenAI) -> None:
    async def go() -> tuple[str, str]:
        whole = await chat.ainvoke(QUESTION)
        pieces = [str(chunk.content) async for chunk in chat.astream(QUESTION)]
        return str(whole.content), "".join(pieces)

    whole, streamed = asyncio.run(go())
    assert "Paris" in whole
    assert "Paris" in streamed


class City(BaseModel):
    """A city."""

    name: str
    country: str


def test_structured_output(chat: ChatOpenAI) -> None:
    shaped = chat.model_copy(update={"max_tokens": 200}).with_structured_output(City, method="json_schema")
    assert isinstance(shaped.invoke("Describe Paris as JSON with name and country."), City)


def test_embeddings(base_url: str) -> None:
    embeddings = OpenAIEmbeddings(
        model="all-minilm", base_url=base_url, api_key=KEY, check_embedding_ctx_length=False, max_retries=0
    )
    one, other = embeddings.embed_documents(["A cat.", "A dog."])
    assert (len(one), len(other)) == (384, 384)
    assert embeddings.embed_query("A cat.") == pytest.approx(one, abs=1e-4)
