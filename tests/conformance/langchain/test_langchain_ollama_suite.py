"""LangChain's own standard suites of tests, on `langchain-ollama` and Oprel, on the engines of `langchain-openai`'s.

Ollama's API can't ask for a call: whether a tool is called is the model's choice.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from langchain_ollama import ChatOllama, OllamaEmbeddings
from langchain_tests.integration_tests import EmbeddingsIntegrationTests
from support.langchain_suites import HTTP, MODEL, StandardChat
from support.models import EMBED_MODEL

pytestmark = pytest.mark.anyio


class ChatSuite(StandardChat):
    unrepeated: Mapping[str, Any] = {"repeat_penalty": 1.1}
    url: str

    @property
    def chat_model_class(self) -> type[ChatOllama]:
        return ChatOllama

    @property
    def chat_model_params(self) -> dict[str, Any]:
        own = {
            "model": MODEL,
            "base_url": self.url,
            "temperature": 0,
            "num_predict": self.most_tokens,
            "client_kwargs": HTTP,
        }
        return {**own, **self.against_repetition}

    @property
    def has_tool_choice(self) -> bool:
        return False

    @property
    def supports_json_mode(self) -> bool:
        return True


NO_CALL = "it never calls a tool of its own accord, and Ollama's API can't ask for a call"


class TestOnARealEngine(ChatSuite):
    unable: Mapping[str, str] = {
        "test_json_mode": "it writes JSON, but not the two keys that it is asked for in words",
        "test_structured_output_pydantic_2_v1": "the schema leaves other keys open, and it writes those",
        "test_tool_calling": NO_CALL,
        "test_tool_calling_async": NO_CALL,
        "test_tool_calling_with_no_arguments": NO_CALL,
        "test_bind_runnables_as_tools": NO_CALL,
        "test_unicode_tool_call_integration": NO_CALL,
        "test_agent_loop": NO_CALL,
    }

    @pytest.fixture(autouse=True)
    def _reached(self, real_url: str) -> None:
        self.url = real_url


class TestOnAScriptedEngine(ChatSuite):
    @pytest.fixture(autouse=True)
    def _reached(self, scripted_url: str) -> None:
        self.url = scripted_url


class TestEmbeddings(EmbeddingsIntegrationTests):
    @pytest.fixture(autouse=True)
    def _reached(self, real_url: str) -> None:
        self.url = real_url

    @property
    def embeddings_class(self) -> type[OllamaEmbeddings]:
        return OllamaEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {"model": EMBED_MODEL, "base_url": self.url, "client_kwargs": HTTP}
