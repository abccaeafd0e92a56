"""LangChain's own standard suites of tests, on `langchain-openai` and Oprel.

On a real engine, with all that a model of 135M parameters can; and on a scripted one, whose model does what it is
asked to. The packages' unit suites are not here: they ask no server.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from langchain_core.messages import AIMessage
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from langchain_tests.integration_tests import EmbeddingsIntegrationTests
from support.langchain_suites import HTTP, MODEL, StandardChat
from support.models import EMBED_MODEL

pytestmark = [
    pytest.mark.anyio,
    # Both are the package's own: it hands a parsed answer to a serializer that expects none, and it says that a schema
    # of Pydantic 1 becomes a function to call.
    pytest.mark.filterwarnings("ignore:Pydantic serializer warnings:UserWarning"),
    pytest.mark.filterwarnings("ignore:Received a Pydantic BaseModel V1 schema:UserWarning"),
]


@contextmanager
def reached(url: str) -> Iterator[dict[str, Any]]:
    """Parameters that lead a client to the server."""
    with httpx.Client(**HTTP) as client:
        yield {
            "base_url": f"{url}/v1",
            "api_key": "unused",
            "max_retries": 0,
            "http_client": client,
            "http_async_client": httpx.AsyncClient(**HTTP),
        }


class ChatSuite(StandardChat):
    unrepeated: Mapping[str, Any] = {"extra_body": {"options": {"repeat_penalty": 1.1}}}
    parameters: Mapping[str, Any]

    @property
    def chat_model_class(self) -> type[ChatOpenAI]:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        own = {"model": MODEL, "temperature": 0, "max_tokens": self.most_tokens, "stream_usage": True}
        return {**own, **self.against_repetition, **self.parameters}

    @property
    def structured_output_kwargs(self) -> dict[str, Any]:
        """A schema that isn't strict leaves other keys open, and the model would write those."""
        return {"strict": True}

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def supports_anthropic_inputs(self) -> bool:
        return True

    @property
    def supported_usage_metadata_details(self) -> Any:
        details = ["cache_read_input", "reasoning_output"]
        return {"invoke": details, "stream": details}

    def invoke_with_cache_read_input(self, *, stream: bool = False) -> AIMessage:
        return self._asked(stream)

    def invoke_with_reasoning_output(self, *, stream: bool = False) -> AIMessage:
        return self._asked(stream)

    def _asked(self, stream: bool) -> AIMessage:
        model = ChatOpenAI(**self.chat_model_params, streaming=stream)
        return model.invoke("Hello")


class TestOnARealEngine(ChatSuite):
    unable: Mapping[str, str] = {
        "test_json_mode": "it writes JSON, but not the two keys that it is asked for in words",
        "test_agent_loop": "it never calls a tool of its own accord, and answers a question about the weather itself",
    }

    @pytest.fixture(autouse=True)
    def _reached(self, real_url: str) -> Iterator[None]:
        with reached(real_url) as self.parameters:
            yield


class TestOnAScriptedEngine(ChatSuite):
    @pytest.fixture(autouse=True)
    def _reached(self, scripted_url: str) -> Iterator[None]:
        with reached(scripted_url) as self.parameters:
            yield


class TestEmbeddings(EmbeddingsIntegrationTests):
    @pytest.fixture(autouse=True)
    def _reached(self, real_url: str) -> Iterator[None]:
        with reached(real_url) as self.parameters:
            yield

    @property
    def embeddings_class(self) -> type[OpenAIEmbeddings]:
        return OpenAIEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {"model": EMBED_MODEL, "check_embedding_ctx_length": False, **self.parameters}
