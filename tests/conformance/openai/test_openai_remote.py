"""The official clients through an Oprel whose models another Oprel runs, with a key, on a real engine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import ollama
import pytest
from openai import AuthenticationError, OpenAI
from support.checking_proxy import CheckingProxy, checking_proxy
from support.models import CHAT_MODEL, EMBED_MODEL
from support.servers import RealServer
from support.servers import real_server as start

QUESTION: list[Any] = [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]
SURE: dict[str, Any] = {"temperature": 0, "max_tokens": 24, "seed": 1}
KEY = "sk-canary-4f1d2c3b5a697887"


@pytest.fixture(scope="module")
def engine_server(real_models_dir: Path) -> Iterator[RealServer]:
    """What the remote is: an Oprel that wants a key."""
    with start(models_dir=real_models_dir, environ={"OPREL_API_KEY": KEY}) as server:
        yield server


@pytest.fixture(scope="module")
def front(engine_server: RealServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    """In front of it: one remote with local names, one that lists its models itself, one whose key is wrong."""
    config = tmp_path_factory.mktemp("front") / "config.toml"
    config.write_text(
        f"""
        [remote.named]
        url = "{engine_server.url}"
        key_env = "CANARY"
        models = {{ france = "{CHAT_MODEL}", "team/vectors:v1" = "{EMBED_MODEL}", gone = "no-such-model" }}

        [remote.listed]
        url = "{engine_server.url}/v1"
        key_env = "CANARY"

        [remote.refused]
        url = "{engine_server.url}/v1"
        key_env = "WRONG"
        models = {{ refused = "{CHAT_MODEL}" }}

        [remote.keyless]
        url = "{engine_server.url}/v1"
        key_env = "NOBODY_SET_THIS"
        models = {{ keyless = "{CHAT_MODEL}" }}
        """
    )
    environ = {"OPREL_CONFIG": str(config), "CANARY": KEY, "WRONG": f"{KEY}-wrong"}
    with start("--verbose", environ=environ) as server:
        yield server
        assert KEY not in server.output, "a key is in the log"


@pytest.fixture(scope="module")
def proxy(front: RealServer) -> Iterator[CheckingProxy]:
    with checking_proxy(front.url) as proxy:
        yield proxy


@pytest.fixture
def client(proxy: CheckingProxy) -> Iterator[OpenAI]:
    proxy.exchanges.clear()
    with OpenAI(base_url=f"{proxy.url}/v1", api_key="unused", max_retries=0, timeout=60) as client:
        yield client
    proxy.check()


@pytest.fixture
def ollama_client(proxy: CheckingProxy) -> Iterator[ollama.Client]:
    proxy.exchanges.clear()
    with ollama.Client(host=proxy.url, timeout=60) as client:
        yield client
    proxy.check()


def test_chat(client: OpenAI) -> None:
    """The same text as one token after the other, and as the engine itself says it."""
    raw = client.chat.completions.with_raw_response.create(model="france", messages=QUESTION, **SURE)
    whole = raw.parse()
    assert (raw.headers["x-oprel-driver"], raw.headers["x-oprel-device"]) == ("openai", "remote")
    assert "Paris" in (whole.choices[0].message.content or "")
    assert whole.model == "france"
    assert whole.usage is not None and whole.usage.prompt_tokens > 5 and whole.usage.completion_tokens > 2
    options = {"include_usage": True}
    chunks = list(
        client.chat.completions.create(model="france", messages=QUESTION, stream=True, stream_options=options, **SURE)
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    usage = chunks[-1].usage
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens) == (whole.usage.prompt_tokens, whole.usage.completion_tokens)


def test_choices_and_logprobs(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model="france", messages=QUESTION, n=2, logprobs=True, top_logprobs=2, max_tokens=4, temperature=0
    )
    assert [choice.index for choice in answer.choices] == [0, 1]
    content = answer.choices[0].logprobs.content if answer.choices[0].logprobs else None
    assert content and all(len(token.top_logprobs) <= 2 for token in content)


def test_completions_with_logprobs_of_the_legacy_shape(client: OpenAI) -> None:
    answer = client.completions.create(model="france", prompt="Once upon a", max_tokens=4, temperature=0, logprobs=2)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None and logprobs.tokens and logprobs.token_logprobs and logprobs.top_logprobs
    assert "".join(logprobs.tokens) == answer.choices[0].text
    assert all(value is not None and value <= 0 for value in logprobs.token_logprobs)


def test_embeddings(client: OpenAI, engine_server: RealServer) -> None:
    made = client.embeddings.create(model="team/vectors:v1", input=["a cat", "a dog"])
    assert [len(row.embedding) for row in made.data] == [384, 384]
    with OpenAI(base_url=f"{engine_server.url}/v1", api_key=KEY) as direct:
        expected = direct.embeddings.create(model=EMBED_MODEL, input=["a cat", "a dog"])
    assert made.data[0].embedding == pytest.approx(expected.data[0].embedding, abs=1e-5)
    assert made.usage == expected.usage


def test_models_that_are_listed(client: OpenAI) -> None:
    """Those that the settings name, and those that the remote lists, under its names."""
    listed = {model.id for model in client.models.list()}
    assert {"france:latest", "team/vectors:v1", CHAT_MODEL, f"{EMBED_MODEL.partition(':')[0]}:latest"} <= listed
    assert client.models.retrieve("france").owned_by
    answer = client.chat.completions.create(model=CHAT_MODEL, messages=QUESTION, **SURE)
    assert "Paris" in (answer.choices[0].message.content or "")


def test_a_key_that_is_refused(client: OpenAI) -> None:
    with pytest.raises(
        Exception, match=r"refuses its key \(status 401\): look at the environment variable WRONG"
    ) as at:
        client.chat.completions.create(model="refused", messages=QUESTION, **SURE)
    assert not isinstance(at.value, AuthenticationError), "the client's own key is good"
    assert KEY not in str(at.value)


def test_a_key_that_is_missing(client: OpenAI) -> None:
    with pytest.raises(Exception, match=r"the key of remote 'keyless' is missing.*NOBODY_SET_THIS isn't set"):
        client.chat.completions.create(model="keyless", messages=QUESTION, **SURE)


def test_a_model_that_the_remote_does_not_have(client: OpenAI) -> None:
    with pytest.raises(Exception, match="the remote 'named' doesn't have the model 'no-such-model'"):
        client.chat.completions.create(model="gone", messages=QUESTION, **SURE)


class TestOllama:
    def test_chat_and_generate(self, ollama_client: ollama.Client) -> None:
        """Options that the remote takes and others: Ollama's defaults never make a request fail."""
        options = {"temperature": 0, "num_predict": 24, "repeat_last_n": 32, "num_ctx": 100_000}
        answer = ollama_client.chat("france", messages=QUESTION, options=options)
        assert "Paris" in (answer.message.content or "")
        pieces = list(ollama_client.chat("france", messages=QUESTION, options=options, stream=True))
        assert "".join(piece.message.content or "" for piece in pieces) == answer.message.content
        assert (pieces[-1].done_reason, pieces[-1].eval_count) == (answer.done_reason, answer.eval_count)
        raw = ollama_client.generate("france", prompt="Once upon a", raw=True, options=options)
        assert raw.response

    def test_embeddings(self, ollama_client: ollama.Client) -> None:
        made = ollama_client.embed("team/vectors:v1", input=["a cat"])
        old = ollama_client.embeddings("team/vectors:v1", prompt="a cat")
        assert list(old.embedding) == pytest.approx(list(made.embeddings[0]), abs=1e-5)

    def test_listings_are_complete(self, ollama_client: ollama.Client, front: RealServer) -> None:
        """No null where a client expects something, and no key anywhere."""
        ollama_client.generate("france", prompt="Hi", options={"num_predict": 1})
        for path in ("/api/tags", "/api/ps", "/v1/models"):
            text = httpx.get(f"{front.url}{path}", timeout=30).text
            assert "null" not in text
            assert KEY not in text
        shown = httpx.post(f"{front.url}/api/show", json={"model": "france"}, timeout=30)
        assert "null" not in shown.text and KEY not in shown.text
        details = shown.json()["details"]
        assert (details["format"], details["family"], details["families"]) == ("remote", "remote", ["remote"])
        assert shown.json()["capabilities"] == ["completion"]
        running = {model["name"]: model for model in httpx.get(f"{front.url}/api/ps").json()["models"]}
        own = running["france:latest"]["oprel"]
        assert (own["driver"], own["engine"], own["device"], own["state"]) == ("openai", "named", "remote", "ready")
        assert ollama_client.show("france").capabilities == ["completion"]
        assert {model.model for model in ollama_client.list().models} >= {"france:latest"}

    def test_it_cannot_be_deleted(self, ollama_client: ollama.Client) -> None:
        with pytest.raises(ollama.ResponseError, match="is on another server"):
            ollama_client.delete("france")

    def test_options_that_the_remote_does_not_take_are_told(self, front: RealServer) -> None:
        body = {"model": "france", "prompt": "Hi", "stream": False, "options": {"typical_p": 0.5, "num_predict": 1}}
        answer = httpx.post(f"{front.url}/api/generate", json=body, timeout=60)
        assert answer.status_code == 200
        assert "parameter_ignored; the driver 'openai' doesn't take: options.typical_p" in answer.headers.get_list(
            "x-oprel-warning"
        )
        assert json.loads(answer.text)["done"]
