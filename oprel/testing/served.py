"""A driver as clients see it: asked through both dialects on a real socket, every answer and every streamed event held
against the documents in `specs/`. Make a class of it for your driver, as of `DriverContract`; `oprel drivers check`
does it for an installed one."""

from __future__ import annotations

import base64
import json
import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from oprel.config import Settings
from oprel.schema import ALL_SAMPLING
from oprel.testing import specs
from oprel.testing.live import LiveServer, live_server

__all__ = ["Served", "ServedContract", "served"]

_LIMIT_S = 180.0
_HELLO = [{"role": "user", "content": "Say hello."}]
_SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
_TOOL = {
    "type": "function",
    "function": {"name": "look", "description": "looks", "parameters": {"type": "object", "properties": {}}},
}
_PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJ"
    "RU5ErkJggg=="
)
_ASKING: dict[str, dict[str, Any]] = {
    "tools": {"tools": [_TOOL], "tool_choice": "auto"},
    "json_schema": {"response_format": {"type": "json_object"}},
    "logprobs": {"logprobs": True},
    "thinking": {"reasoning_effort": "low"},
    "vision": {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": _PIXEL}}]}]},
}


@dataclass
class Served:
    """`chat` and `embed` are names of models, where there are such. `faults` are the lines in which a wrapper told how
    the driver broke the contract."""

    server: LiveServer
    driver: str
    chat: str | None = None
    embed: str | None = None
    faults: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.client = httpx.Client(base_url=self.server.url, timeout=_LIMIT_S)

    def ask(self, path: str, body: Mapping[str, Any] | None = None, *, status: int = 200) -> Any:
        """One answer in one piece, held against its document."""
        method = "GET" if body is None else "POST"
        response = self.client.request(method, path, json=body)
        answer = response.json()
        specs.validate(_document(path), path, method, response.status_code, answer)
        assert response.status_code == status, f"{path} answered {response.status_code}: {answer}"
        return answer

    def stream(self, path: str, body: Mapping[str, Any]) -> list[Any]:
        """All events of a streamed answer, each held against its document."""
        with self.client.stream("POST", path, json={**body, "stream": True}) as response:
            content = response.read()
        assert response.status_code == 200, f"{path} answered {response.status_code}: {content[:500]!r}"
        events = _events(content) if path.startswith("/v1/") else [json.loads(line) for line in content.splitlines()]
        assert events, f"{path} streamed nothing"
        for event in events:
            specs.validate_event(_document(path), path, "POST", event)
        return events

    def can(self, model: str) -> frozenset[str]:
        return frozenset(self.ask(f"/v1/models/{model}")["oprel"]["capabilities"])


class ServedContract:
    """Subclass it with a `served` fixture of class scope."""

    @pytest.fixture(scope="class")
    @classmethod
    def served(cls) -> Served:
        raise NotImplementedError("a subclass gives what is served")

    @pytest.fixture
    def chat(self, served: Served) -> str:
        return served.chat or pytest.skip("there is no model to chat with")

    @pytest.fixture
    def embed(self, served: Served) -> str:
        return served.embed or pytest.skip("there is no embedding model")

    @pytest.fixture
    def any_model(self, served: Served) -> str:
        return served.chat or served.embed or pytest.skip("there is no model")

    # -- listings

    def test_models_are_listed_with_their_driver_and_what_they_can(self, served: Served, any_model: str) -> None:
        listed = {entry["id"]: entry for entry in served.ask("/v1/models")["data"]}
        one = served.ask(f"/v1/models/{any_model}")
        assert one["oprel"]["driver"] == served.driver
        assert "problem" not in one["oprel"], one["oprel"]["problem"]
        assert any_model in listed
        shown = served.ask("/api/show", {"model": any_model})["oprel"]
        assert shown["driver"] == served.driver
        assert shown["plan"]["reasons"]
        assert served.ask("/api/tags")["models"]

    def test_what_was_promised_is_what_the_engine_can(self, served: Served, any_model: str) -> None:
        """Told before it is loaded, and after."""
        served.ask("/api/generate" if any_model == served.chat else "/api/embed", {"model": any_model, "keep_alive": 0})
        before = served.can(any_model)
        body = {"model": any_model} if any_model == served.chat else {"model": any_model, "input": []}
        served.ask("/api/generate" if any_model == served.chat else "/api/embed", body)
        after = served.ask(f"/v1/models/{any_model}")["oprel"]
        assert after["loaded"]
        assert before <= frozenset(after["capabilities"])

    # -- OpenAI

    def test_openai_chat(self, served: Served, chat: str) -> None:
        self._needs(served, chat, "chat")
        answer = served.ask("/v1/chat/completions", {"model": chat, "messages": _HELLO, "max_tokens": 8})
        (choice,) = answer["choices"]
        message = choice["message"]
        assert message["content"] or message.get("reasoning_content")
        assert answer["usage"]["completion_tokens"] > 0
        assert answer["model"] == chat

    def test_openai_chat_streamed(self, served: Served, chat: str) -> None:
        self._needs(served, chat, "chat")
        body = {"model": chat, "messages": _HELLO, "max_tokens": 8, "stream_options": {"include_usage": True}}
        events = served.stream("/v1/chat/completions", body)
        assert events[-1]["usage"]["completion_tokens"] > 0
        assert [event for event in events if event["choices"] and event["choices"][0]["finish_reason"]]

    def test_openai_several_choices(self, served: Served, chat: str) -> None:
        self._needs(served, chat, "chat")
        body = {"model": chat, "messages": _HELLO, "max_tokens": 4, "n": 3}
        assert len(served.ask("/v1/chat/completions", body)["choices"]) == 3

    def test_openai_completion(self, served: Served, chat: str) -> None:
        self._needs(served, chat, "complete")
        body = {"model": chat, "prompt": "Once upon a time", "max_tokens": 8}
        assert served.ask("/v1/completions", body)["choices"][0]["text"]
        events = served.stream("/v1/completions", body)
        assert "".join(event["choices"][0]["text"] for event in events if event["choices"])

    def test_openai_json_schema(self, served: Served, chat: str) -> None:
        self._needs(served, chat, "chat", "json_schema")
        form = {"type": "json_schema", "json_schema": {"name": "place", "schema": _SCHEMA, "strict": True}}
        body = {"model": chat, "messages": _HELLO, "max_tokens": 100, "response_format": form, "temperature": 0}
        (choice,) = served.ask("/v1/chat/completions", body)["choices"]
        if choice["finish_reason"] == "stop":
            assert "city" in json.loads(choice["message"]["content"])

    def test_openai_logprobs(self, served: Served, chat: str) -> None:
        self._needs(served, chat, "chat", "logprobs")
        body = {"model": chat, "messages": _HELLO, "max_tokens": 4, "logprobs": True, "top_logprobs": 2}
        (choice,) = served.ask("/v1/chat/completions", body)["choices"]
        assert choice["logprobs"]["content"]
        served.stream("/v1/chat/completions", body)

    def test_openai_tools(self, served: Served, chat: str) -> None:
        self._needs(served, chat, "chat", "tools")
        body = {"model": chat, "messages": _HELLO, "max_tokens": 40, "tools": [_TOOL]}
        served.ask("/v1/chat/completions", body)
        served.stream("/v1/chat/completions", body)

    @pytest.mark.parametrize("capability", sorted(_ASKING))
    def test_openai_refuses_by_name_what_it_can_not_do(self, served: Served, chat: str, capability: str) -> None:
        """400, naming the driver; the engine isn't asked."""
        self._needs(served, chat, "chat")
        if capability in served.can(chat):
            pytest.skip(f"it can: {capability}")
        body = {"model": chat, "messages": _HELLO, "max_tokens": 4, **_ASKING[capability]}
        error = served.ask("/v1/chat/completions", body, status=400)["error"]
        assert served.driver in error["message"]

    def test_openai_refuses_a_prompt_that_is_too_long(self, served: Served, chat: str) -> None:
        self._needs(served, chat, "complete")
        context = served.ask(f"/v1/models/{chat}")["oprel"]["context_tokens"]
        body = {"model": chat, "prompt": "word " * (2 * context), "max_tokens": 4}
        error = served.ask("/v1/completions", body, status=400)["error"]
        assert error["code"] == "context_length_exceeded"

    def test_openai_embeddings(self, served: Served, embed: str) -> None:
        body = {"model": embed, "input": ["a cat", "the stock market"], "encoding_format": "float"}
        answer = served.ask("/v1/embeddings", body)
        first, second = (item["embedding"] for item in answer["data"])
        assert len(first) == len(second) > 1
        assert math.hypot(*first) == pytest.approx(1, abs=1e-3)
        assert first != second
        coded = served.ask("/v1/embeddings", {**body, "encoding_format": "base64"})
        assert len(base64.b64decode(coded["data"][0]["embedding"])) == 4 * len(first)

    def test_openai_refuses_to_chat_with_an_embedding_model(self, served: Served, embed: str) -> None:
        if "chat" in served.can(embed):
            pytest.skip("it can: chat")
        served.ask("/v1/chat/completions", {"model": embed, "messages": _HELLO}, status=400)

    # -- Ollama

    def test_ollama_chat(self, served: Served, chat: str) -> None:
        self._needs(served, chat, "chat")
        body = {"model": chat, "messages": _HELLO, "options": {"num_predict": 8}}
        answer = served.ask("/api/chat", {**body, "stream": False})
        assert answer["done"]
        assert answer["eval_count"] > 0
        lines = served.stream("/api/chat", body)
        assert [line["done"] for line in lines] == [False] * (len(lines) - 1) + [True]

    def test_ollama_generate(self, served: Served, chat: str) -> None:
        self._needs(served, chat, "complete")
        body = {"model": chat, "prompt": "Once upon a time", "raw": True, "options": {"num_predict": 8}}
        assert served.ask("/api/generate", {**body, "stream": False})["response"]
        assert served.stream("/api/generate", body)[-1]["done"]

    def test_ollama_options_that_it_does_not_honour_are_told(self, served: Served, chat: str) -> None:
        """Left out, and named in a header."""
        self._needs(served, chat, "chat")
        honoured = set(served.ask("/api/show", {"model": chat})["oprel"]["sampling"])
        missing = sorted(ALL_SAMPLING & {"top_k", "min_p", "typical_p", "repeat_last_n", "seed"} - honoured)
        if not missing:
            pytest.skip("it honours them all")
        body = {"model": chat, "messages": _HELLO, "stream": False, "options": {missing[0]: 1, "num_predict": 4}}
        response = served.client.post("/api/chat", json=body)
        assert response.status_code == 200
        assert missing[0] in response.headers["x-oprel-warning"]

    def test_ollama_embed(self, served: Served, embed: str) -> None:
        answer = served.ask("/api/embed", {"model": embed, "input": ["a cat", "the stock market"]})
        assert len(answer["embeddings"]) == 2
        single = served.ask("/api/embeddings", {"model": embed, "prompt": "a cat"})
        assert len(single["embedding"]) == len(answer["embeddings"][0])

    def test_ollama_embeds_a_text_that_is_too_long_as_far_as_it_goes(self, served: Served, embed: str) -> None:
        """Where the engine shows its tokens; else it is refused."""
        context = served.ask(f"/v1/models/{embed}")["oprel"]["context_tokens"]
        cuts = "tokenize" in served.can(embed)
        body = {"model": embed, "input": "word " * (2 * context)}
        served.ask("/api/embed", body, status=200 if cuts else 400)

    def test_ollama_lists_what_is_loaded(self, served: Served, any_model: str) -> None:
        loaded = served.ask("/api/ps")["models"]
        assert any(entry["oprel"]["driver"] == served.driver for entry in loaded)

    # -- ends

    def test_unloading_ends_the_engine(self, served: Served, any_model: str) -> None:
        for name in filter(None, (served.chat, served.embed)):
            served.ask("/api/embed" if name == served.embed else "/api/generate", {"model": name, "keep_alive": 0})
        assert served.ask("/api/ps")["models"] == []

    def test_the_contract_was_kept_all_the_while(self, served: Served, any_model: str) -> None:
        assert served.faults == []

    def _needs(self, served: Served, model: str, *capabilities: str) -> None:
        missing = [name for name in capabilities if name not in served.can(model)]
        if missing:
            pytest.skip(f"it can't: {', '.join(missing)}")


@contextmanager
def served(
    *, catalog: Any, registry: Any, settings: Settings, driver: str, chat: str | None, embed: str | None
) -> Iterator[Served]:
    """A server in this process for the time of the block; small, so that much of it runs side by side."""
    small = settings.model_copy(update={"driver": driver, "context": settings.context or 1024, "api_keys": ()})
    faults = _Faults()
    logger = logging.getLogger("oprel.drivers")
    logger.addHandler(faults)
    try:
        with live_server(catalog=catalog, registry=registry, settings=small) as server:
            found = Served(server, driver, chat, embed, faults.lines)
            try:
                yield found
            finally:
                found.client.close()
    finally:
        logger.removeHandler(faults)


class _Faults(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def _document(path: str) -> str:
    return "openai" if path.startswith("/v1/") else "ollama"


def _events(content: bytes) -> list[Any]:
    pieces = [piece.removeprefix("data: ") for piece in content.decode().split("\n\n") if piece]
    assert pieces[-1] == "[DONE]", f"a stream ended with {pieces[-1]!r} and not with [DONE]"
    return [json.loads(piece) for piece in pieces[:-1]]
