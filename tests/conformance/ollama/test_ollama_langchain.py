"""langchain-ollama, unchanged, against a real server and a real engine."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from langchain_ollama import ChatOllama, OllamaEmbeddings, OllamaLLM
from support.models import CHAT_MODEL, EMBED_MODEL

QUESTION = "What is the capital of France? Answer in one sentence."


@contextmanager
def closed(client: Any) -> Iterator[Any]:
    """None of these closes its connections by itself."""
    yield client
    client._client.close()


@pytest.fixture
def chat(host: str) -> Iterator[ChatOllama]:
    options: dict[str, Any] = {"temperature": 0, "num_predict": 24, "client_kwargs": {"timeout": 60}}
    with closed(ChatOllama(model=CHAT_MODEL, base_url=host, **options)) as chat:
        yield chat


def test_invoke(chat: ChatOllama) -> None:
    answer = chat.invoke([("system", "You answer briefly."), ("human", QUESTION)])
    assert "Paris" in str(answer.content)
    assert answer.response_metadata["done_reason"] in ("stop", "length")
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["output_tokens"] > 0


def test_stream(chat: ChatOllama) -> None:
    chunks = list(chat.stream(QUESTION))
    assert len(chunks) > 3
    assert "Paris" in "".join(str(chunk.content) for chunk in chunks)


def test_batch(chat: ChatOllama) -> None:
    first, second = chat.batch([QUESTION, "What is 1 + 1?"])
    assert "Paris" in str(first.content)
    assert second.content


def test_asynchronous(chat: ChatOllama) -> None:
    async def go() -> tuple[str, str]:
        whole = await chat.ainvoke(QUESTION)
        pieces = [str(chunk.content) async for chunk in chat.astream(QUESTION)]
        await chat._async_client.close()
        return str(whole.content), "".join(pieces)

    whole, streamed = asyncio.run(go())
    assert "Paris" in whole
    assert "Paris" in streamed


def test_a_plain_prompt(host: str) -> None:
    with closed(OllamaLLM(model=CHAT_MODEL, base_url=host, temperature=0, num_predict=24)) as llm:
        assert "Paris" in llm.invoke(QUESTION)


def test_embeddings(host: str) -> None:
    with closed(OllamaEmbeddings(model=EMBED_MODEL, base_url=host)) as embeddings:
        one, other = embeddings.embed_documents(["A cat.", "A dog."])
        assert (len(one), len(other)) == (384, 384)
        assert embeddings.embed_query("A cat.") == pytest.approx(one, abs=1e-4)
