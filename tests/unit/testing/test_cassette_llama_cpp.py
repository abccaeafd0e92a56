"""What llama.cpp's engine really answered, pinned: `cassettes/llama_cpp.jsonl` was recorded from it.

To record it anew, with `smollm2:135m` and `all-minilm` in the store:

    OPREL_MODELS=STORE OPREL_CONTEXT=512 OPREL_PARALLEL=1 pytest --oprel-record -k cassette_llama_cpp
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from operator import mul
from pathlib import Path
from typing import Any

import httpx
import pytest

from oprel.testing import specs
from oprel.testing.live import LiveServer

CASSETTE = Path(__file__).parent / "cassettes" / "llama_cpp.jsonl"
CHAT = "/v1/chat/completions"
PLAIN = {"model": "smollm2:135m", "temperature": 0, "seed": 1}


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest) -> Iterator[LiveServer]:
    from oprel.testing.cassette_server import played, recorded

    is_recording = request.config.getoption("oprel_record")
    with recorded(CASSETTE) if is_recording else played(CASSETTE) as server:
        yield server


def ask(server: LiveServer, path: str, body: dict[str, Any], *, status: int = 200) -> Any:
    response = httpx.post(f"{server.url}{path}", json=body, timeout=60)
    assert response.status_code == status, response.text
    specs.validate("openai" if path.startswith("/v1") else "ollama", path, "POST", status, response.json())
    return response.json()


def stream(server: LiveServer, path: str, body: dict[str, Any]) -> list[Any]:
    content = httpx.post(f"{server.url}{path}", json={**body, "stream": True}, timeout=60).text
    pieces = [piece.removeprefix("data: ") for piece in content.split("\n\n") if piece]
    assert pieces.pop() == "[DONE]"
    events = [json.loads(piece) for piece in pieces]
    for event in events:
        specs.validate_event("openai", path, "POST", event)
    return events


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def text_of(events: list[Any], key: str = "delta") -> str:
    return "".join(event["choices"][0][key].get("content") or "" for event in events if event["choices"])


def test_a_chat_and_the_second_time_its_prompt_is_cached(server: LiveServer) -> None:
    body = {**PLAIN, "messages": said("Say hello."), "max_tokens": 12, "stream_options": {"include_usage": True}}
    first, second = (stream(server, CHAT, body) for _ in range(2))
    assert text_of(first) == text_of(second) != ""
    cached = [events[-1]["usage"]["prompt_tokens_details"]["cached_tokens"] for events in (first, second)]
    assert cached[0] < cached[1] < second[-1]["usage"]["prompt_tokens"], "its last token is always read again"


def test_a_token_that_is_half_a_character_never_comes_alone(server: LiveServer) -> None:
    body = {**PLAIN, "prompt": "🙂🙃🙂🙃🙂🙃", "max_tokens": 12}
    events = stream(server, "/v1/completions", body)
    pieces = [event["choices"][0]["text"] for event in events if event["choices"]]
    assert pieces == ["🙃", "🙃", "🙃", "🙃", ""], "three tokens for each"


def test_a_stop_string_is_cut_from_the_text(server: LiveServer) -> None:
    body = {**PLAIN, "prompt": "1, 2, 3, 4, 5, 6,", "max_tokens": 24, "stop": ["10"]}
    (choice,) = ask(server, "/v1/completions", body)["choices"]
    assert choice["text"].rstrip().endswith("9,")
    assert choice["finish_reason"] == "stop"


def test_a_schema_holds_even_a_small_model(server: LiveServer) -> None:
    schema = {"type": "object", "properties": {"city": {"enum": ["Rome", "Oslo"]}}, "required": ["city"]}
    form = {"type": "json_schema", "json_schema": {"name": "place", "schema": schema, "strict": True}}
    body = {**PLAIN, "messages": said("Name a city."), "max_tokens": 40, "response_format": form}
    (choice,) = ask(server, CHAT, body)["choices"]
    assert json.loads(choice["message"]["content"])["city"] in ("Rome", "Oslo")


def test_logprobs_are_of_the_tokens_bytes(server: LiveServer) -> None:
    body = {**PLAIN, "messages": said("Say yes."), "max_tokens": 3, "logprobs": True, "top_logprobs": 2}
    (choice,) = ask(server, CHAT, body)["choices"]
    told = choice["logprobs"]["content"]
    assert b"".join(bytes(entry["bytes"]) for entry in told).decode().startswith(choice["message"]["content"])
    assert all(len(entry["top_logprobs"]) == 2 for entry in told)


def test_a_prompt_that_is_too_long_is_counted(server: LiveServer) -> None:
    body = {**PLAIN, "prompt": "word " * 600, "max_tokens": 2}
    error = ask(server, "/v1/completions", body, status=400)["error"]
    assert error["code"] == "context_length_exceeded"
    assert "512 tokens" in error["message"]


def test_vectors_have_unit_length_and_alike_texts_are_near(server: LiveServer) -> None:
    body = {"model": "all-minilm", "input": ["a cat", "a kitten", "the stock market"]}
    cat, kitten, market = ask(server, "/api/embed", body)["embeddings"]
    assert math.hypot(*cat) == pytest.approx(1, abs=1e-4)
    assert sum(map(mul, cat, kitten)) > 0.6 > sum(map(mul, cat, market))


def test_the_cassette_names_no_place_and_no_key(server: LiveServer) -> None:
    text = CASSETTE.read_text()
    assert len(text) < 100_000
    for word in ("/home", "/root", "/tmp", "site-packages", "api_key", "sk-", str(Path.home())):
        assert word not in text
