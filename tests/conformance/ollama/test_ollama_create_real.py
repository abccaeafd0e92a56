"""Models that are made of others and of files, by the `ollama` package and curl, on a real server and engine."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import ollama
import pytest
from support.curl import curl
from support.lora import write_lora
from support.models import CHAT_MODEL, make_store
from support.servers import TEST_DRIVER, RealServer, real_server
from support.store_checks import assert_valid_store

pytestmark = pytest.mark.skipif(TEST_DRIVER != "llama_cpp", reason="GGUF files run on llama.cpp")

QUESTION = {"role": "user", "content": "What is the capital of France? Answer in one sentence."}
GREEDY = {"temperature": 0, "num_predict": 16, "seed": 1}


@pytest.fixture(scope="module")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("create") / "models", embed=False, linked=True)


@pytest.fixture(scope="module")
def server(models_dir: Path) -> Iterator[RealServer]:
    with real_server("--driver", "llama_cpp", models_dir=models_dir) as server:
        yield server


@pytest.fixture
def client(server: RealServer) -> Iterator[ollama.Client]:
    with ollama.Client(host=server.url, timeout=100) as client:
        yield client


def rendered(server: RealServer, model: str, *messages: dict[str, str]) -> str:
    """The text that the model would be given."""
    body = {"model": model, "messages": [*messages], "stream": False, "_debug_render_only": True}
    answer = httpx.post(f"{server.url}/api/chat", json=body, timeout=60).json()
    return str(answer["_debug_info"]["rendered_template"])


def by_openai(server: RealServer, model: str, *messages: dict[str, str]) -> Any:
    body = {"model": model, "messages": [*messages], "temperature": 0, "max_tokens": 16, "seed": 1}
    return httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60).json()


def test_a_model_of_another_answers_as_it_was_made(client: ollama.Client, server: RealServer) -> None:
    steps = list(
        client.create(
            "pirate",
            from_=CHAT_MODEL,
            system="You are a pirate.",
            parameters={"num_predict": 3, "num_ctx": 512, "temperature": 0, "stop": ["<nothing>"]},
            messages=[{"role": "user", "content": "Ahoy?"}, {"role": "assistant", "content": "Arr!"}],
            license="Anyone's",
            stream=True,
        )
    )
    assert [step.status for step in steps][-2:] == ["writing manifest", "success"]
    text = rendered(server, "pirate", QUESTION)
    places = [text.index(said) for said in ("You are a pirate.", "Ahoy?", "Arr!", "capital of France")]
    assert places == sorted(places)
    assert "You are a pirate." not in rendered(server, "pirate", {"role": "system", "content": "No."}, QUESTION)
    answer = client.chat("pirate", [QUESTION])
    assert (answer.eval_count, answer.done_reason) == (3, "length")
    (running,) = [model for model in client.ps().models if model.name == "pirate:latest"]
    assert running.context_length == 512
    shown = client.show("pirate")
    assert shown.license and shown.license.endswith("Anyone's")
    assert "PARAMETER num_ctx 512" in (shown.modelfile or "")
    assert (shown.details and shown.details.parent_model) == CHAT_MODEL
    assert (shown.modelinfo or {})["general.architecture"] == "llama"
    said = [("system", "You are a pirate."), ("user", "Ahoy?"), ("assistant", "Arr!")]
    opening = [{"role": role, "content": text} for role, text in said]
    by_hand = by_openai(server, CHAT_MODEL, *opening, QUESTION)
    assert by_openai(server, "pirate", QUESTION)["usage"]["prompt_tokens"] == by_hand["usage"]["prompt_tokens"]
    assert client.generate("pirate", "What is the capital of France?").eval_count == 3


def test_a_model_of_an_uploaded_file_with_an_adapter_answers_otherwise(
    client: ollama.Client, server: RealServer, models_dir: Path, smollm2_path: Path, tmp_path: Path
) -> None:
    weights = client.create_blob(smollm2_path)
    assert weights == f"sha256:{hashlib.sha256(smollm2_path.read_bytes()).hexdigest()}"
    adapter = client.create_blob(write_lora(tmp_path / "lora.gguf"))
    nothing = client.create_blob(write_lora(tmp_path / "nothing.gguf", strength=0))
    files = {"smollm2.gguf": weights}
    client.create("tuned", files=files, adapters={"lora.gguf": adapter})
    client.create("untuned", from_=CHAT_MODEL, adapters={"nothing.gguf": nothing})

    def by_ollama(model: str) -> str:
        return client.chat(model, [QUESTION], options=GREEDY).message.content or ""

    base = by_ollama(CHAT_MODEL)
    assert "Paris" in base
    assert by_ollama("tuned") != base
    assert by_ollama("untuned") == base
    tuned, untuned = (
        by_openai(server, name, QUESTION)["choices"][0]["message"]["content"] for name in ("tuned", "untuned")
    )
    assert (tuned == by_ollama("tuned"), untuned == base) == (True, True)
    assert by_ollama(CHAT_MODEL) == base, "the base has an engine of its own"
    shown = httpx.post(f"{server.url}/api/show", json={"model": "tuned"}, timeout=60).json()
    assert "lora" in shown["oprel"]["capabilities"]
    assert shown["modelfile"].count("\nADAPTER /") == 1
    assert_valid_store(models_dir)


def test_a_template_is_what_the_model_is_asked_with(client: ollama.Client, server: RealServer) -> None:
    template = "{{ range .Messages }}<{{ .Role }}>{{ .Content }}\n{{ end }}<assistant>"
    client.create("templated", from_=CHAT_MODEL, template=template, parameters={"stop": ["<user>"], "num_predict": 8})
    text = rendered(server, "templated", {"role": "user", "content": "Two plus two?"})
    assert text.endswith("<user>Two plus two?\n<assistant>")
    assert client.show("templated").template == template
    assert client.chat("templated", [QUESTION]).message.content
    assert by_openai(server, "templated", QUESTION)["usage"]["prompt_tokens"] != 42
    with pytest.raises(ollama.ResponseError, match="template error: template: :1: unclosed action"):
        client.create("bad", from_=CHAT_MODEL, template="{{ .Prompt")


def test_a_large_upload_is_not_held_in_memory(server: RealServer, tmp_path: Path) -> None:
    size = 300_000_000
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.write(os.urandom(1 << 20))
        file.truncate(size)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    before = server.rss_bytes
    curl("-T", str(path), "-X", "POST", f"{server.url}/api/blobs/sha256:{digest}")
    assert server.rss_bytes - before < 64_000_000
    head = curl("--head", f"{server.url}/api/blobs/sha256:{digest}")
    assert head.startswith("HTTP/1.1 200")


def test_curl_makes_a_model(server: RealServer) -> None:
    body = json.dumps({"model": "by-curl", "from": CHAT_MODEL, "system": "S"})
    lines: list[Any] = [json.loads(line) for line in curl(f"{server.url}/api/create", "-d", body).splitlines()]
    assert lines[-1] == {"status": "success"}


def test_a_mistake_is_an_error_with_its_status(client: ollama.Client) -> None:
    with pytest.raises(ollama.ResponseError, match="unknown parameter 'nonsense'") as raised:
        client.create("m", from_=CHAT_MODEL, parameters={"nonsense": 1})
    assert raised.value.status_code == 400
