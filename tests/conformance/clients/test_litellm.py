"""litellm as a client of OpenAI's, Ollama's and Anthropic's APIs, on a real server and a real engine."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.checking_proxy import CheckingProxy
from support.client_env import run_client
from support.models import CHAT_MODEL, EMBED_MODEL
from support.servers import scripted_catalog, scripted_server

from oprel.schema import ToolCall
from oprel.testing import Script, scripted_model

SCRIPT = Path(__file__).parent / "scripts" / "litellm_client.py"
PROVIDERS = ("openai", "ollama", "ollama_chat", "anthropic")
WAYS = ("a tool", "a tool, streamed")

pytestmark = pytest.mark.timeout(1500)  # the first run makes the environment


@pytest.fixture(scope="module")
def told(proxy: CheckingProxy, tell: Callable[[Any], Any], typed_clients: Path) -> Any:
    script = Script(text=(), tool_calls=(ToolCall("weather", '{"city": "Rome"}', "call_1"),))
    with_tools = scripted_model(capabilities=frozenset({"completion", "tools"}))
    with scripted_server(script, catalog=scripted_catalog(with_tools)) as scripted:
        arguments = (proxy.url, CHAT_MODEL, EMBED_MODEL, scripted.url, with_tools.name)
        return tell(run_client(typed_clients, SCRIPT, *arguments))


@pytest.mark.parametrize("provider", PROVIDERS)
def test_text_is_the_same_whole_and_streamed(told: Any, provider: str) -> None:
    whole, streamed = told[f"{provider}: whole"], told[f"{provider}: streamed"]
    assert "Paris" in whole["text"]
    assert whole["reason"] in ("stop", "length")
    assert min(whole["tokens"]) > 0
    assert streamed.pop("chunks") > 4
    assert streamed == whole


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("provider", ["openai", "anthropic"])
def test_a_named_tool_is_called(told: Any, provider: str, way: str) -> None:
    answer = told[f"{provider}: {way}"]
    ((name, arguments),) = answer["calls"]
    assert (name, json.loads(arguments)["city"] in ("Rome", "Oslo")) == ("weather", True)
    assert answer["reason"] == "tool_calls"


@pytest.mark.parametrize("way", WAYS)
def test_a_tool_over_ollamas_chat(told: Any, way: str) -> None:
    answer = told[f"ollama_chat: {way}"]
    ((name, arguments),) = answer["calls"]
    assert (name, json.loads(arguments)) == ("weather", {"city": "Rome"})
    assert answer["reason"] == "tool_calls"


@pytest.mark.parametrize("provider", ["openai", "ollama_chat"])
def test_an_answer_keeps_a_schema(told: Any, provider: str) -> None:
    assert json.loads(told[f"{provider}: a schema"]["text"])["name"] in ("Rome", "Oslo")


@pytest.mark.parametrize("provider", ["openai", "ollama"])
def test_embeddings(told: Any, provider: str) -> None:
    assert told[f"{provider}: embeddings"] == [384, 384]


def test_a_streamed_response(told: Any) -> None:
    text, last = told["openai: a response"]
    assert "Paris" in text
    assert last in ("response.completed", "response.incomplete")


def test_a_completion(told: Any) -> None:
    assert "Paris" in told["openai: a completion"]


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("what", ["absent", "absent, streamed"])
def test_a_model_that_is_not_here(told: Any, provider: str, what: str) -> None:
    kind, status, message = told.errors[f"{provider}: {what}"]
    assert (kind, status, "absent" in message) == ("NotFoundError", 404, True)


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
def test_what_is_refused_keeps_its_kind(told: Any, provider: str) -> None:
    """Programs shorten what was too long, and take another model, by the class of the error."""
    too_hot, too_long = (told.errors[f"{provider}: {what}"] for what in ("too hot", "too long"))
    assert (too_hot[:2], "temperature" in too_hot[2]) == (["BadRequestError", 400], True)
    assert (too_long[:2], "8192" in too_long[2]) == (["ContextWindowExceededError", 400], True)
