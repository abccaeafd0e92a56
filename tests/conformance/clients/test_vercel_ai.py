"""Vercel's AI SDK on a real server and a real engine: OpenAI's chat and Responses, and Anthropic's messages."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.checking_proxy import CheckingProxy
from support.models import CHAT_MODEL, EMBED_MODEL
from support.node import node_packages, run_node

SCRIPT = Path(__file__).parents[1] / "node" / "ai_client.mjs"
# The newest that run on Node.js 18.
VERSIONS = {
    "ai": "6.0.326",
    "@ai-sdk/anthropic": "3.0.140",
    "@ai-sdk/openai": "3.0.141",
    "@ai-sdk/openai-compatible": "2.0.92",
    "zod": "4.6.7",
}
PROVIDERS = ("compatible", "chat", "responses", "anthropic")

pytestmark = [pytest.mark.node, pytest.mark.timeout(1500)]  # the first run installs the packages


@pytest.fixture(scope="module")
def told(proxy: CheckingProxy, tell: Callable[[Any], Any]) -> Any:
    return tell(run_node(SCRIPT, node_packages(VERSIONS), proxy.url, CHAT_MODEL, EMBED_MODEL))


@pytest.mark.parametrize("provider", PROVIDERS)
def test_text_is_the_same_whole_and_streamed(told: Any, provider: str) -> None:
    whole, streamed = told[f"{provider}: whole"], told[f"{provider}: streamed"]
    assert "Paris" in whole["text"]
    assert whole["reason"] in ("stop", "length")
    assert min(whole["tokens"]) > 0
    assert streamed["kinds"]["text-delta"] > 3
    assert {name: streamed[name] for name in whole} == whole


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_named_tool_is_called(told: Any, provider: str) -> None:
    whole, streamed = told[f"{provider}: a tool"], told[f"{provider}: a tool, streamed"]
    ((name, given),) = whole["calls"]
    assert (name, given["city"] in ("Rome", "Oslo")) == ("weather", True)
    assert whole["reason"] == "tool-calls"
    assert streamed["kinds"]["tool-input-delta"] > 1
    assert {name: streamed[name] for name in whole} == whole


@pytest.mark.parametrize("provider", ["compatible", "responses", "anthropic"])
def test_an_object(told: Any, provider: str) -> None:
    assert told[f"{provider}: a schema"]["name"] in ("Rome", "Oslo")


def test_an_object_in_parts(told: Any) -> None:
    parts = told["compatible: a schema, streamed"]
    assert len(parts) > 2
    assert parts[-1]["name"] in ("Rome", "Oslo")


def test_embeddings(told: Any) -> None:
    dimensions, tokens = told["compatible: embeddings"]
    assert (dimensions, tokens > 0) == ([384, 384], True)
    assert told["openai: embeddings"] == [384, 384]


@pytest.mark.parametrize("provider", ["compatible", "responses", "anthropic"])
@pytest.mark.parametrize("what", ["absent", "absent, streamed"])
def test_a_model_that_is_not_here(told: Any, provider: str, what: str) -> None:
    kind, status, message = told.errors[f"{provider}: {what}"]
    assert (kind, status) == ("AI_APICallError", 404)
    assert message == "Model 'absent' isn't here; get it with: oprel pull absent"
