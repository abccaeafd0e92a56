"""Each endpoint, asked in its ways: what comes back is what its document says. Rules for `class TestX(SpecRules)`.

What a driver can't do is asked as well: then the refusal is held against the document.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from msgspec import Struct

from oprel.testing.strict import Observed, departures, document_of
from support.driven import Ability, Driven, DrivenRules
from support.parity import SCHEMA, Talk, ways

__all__ = ["SpecRules"]

_MODEL, _EMBEDDER = "{model}", "{embedder}"
_TINY = {"temperature": 0, "max_tokens": 8}
_HI = [{"role": "user", "content": "hi"}]
_LONG = [{"role": "user", "content": "word " * 5000}]


class Ask(Struct, frozen=True):
    """One request. `status`: of a driver that has all that it `needs`; others refuse it."""

    name: str
    path: str
    body: dict[str, Any] | None = None
    needs: tuple[Ability, ...] = ()
    status: int = 200
    document: str = ""

    @property
    def method(self) -> str:
        return "GET" if self.body is None else "POST"


def _talks() -> Iterator[Ask]:
    """All that a conversation may have, in each dialect, streamed and not."""
    talks: dict[str, tuple[tuple[Ability, ...], Talk]] = {
        "plain": ((), Talk(_MODEL, think=None, max_tokens=8)),
        "thinking": (("think",), Talk(_MODEL, think=True, schema=True)),
        "a schema": ((), Talk(_MODEL, think=False, schema=True)),
        "a call": (("call",), Talk(_MODEL, think=False, tools=True)),
        "a call after thinking": (("think", "call"), Talk(_MODEL, think=True, tools=True)),
        "a call that must come": ((), Talk(_MODEL, think=None, tools=True, choice="required")),
        "a call cut off": (("call",), Talk(_MODEL, think=False, tools=True, max_tokens=3)),
        "a stop string": ((), Talk(_MODEL, think=False, schema=True, stop=("blue",))),
    }
    for name, (needs, talk) in talks.items():
        for way, asked in ways(talk).items():
            more = ("call",) if talk.choice and asked.dialect == "ollama" else ()
            yield Ask(f"{way}: {name}", asked.path, asked.body, (*needs, *more))


def _openai() -> Iterator[Ask]:
    chat: dict[str, Any] = {"model": _MODEL, "messages": _HI, **_TINY}
    text: dict[str, Any] = {"model": _MODEL, "prompt": '{"sky":', **_TINY}
    vectors: dict[str, Any] = {"model": _EMBEDDER, "input": ["a", "b"]}
    response: dict[str, Any] = {"model": _MODEL, "input": "hi", "temperature": 0, "max_output_tokens": 8}
    for stream in (False, True):
        way = "streamed" if stream else "whole"
        flag = {"stream": stream}
        usage: dict[str, Any] = {"stream_options": {"include_usage": True}} if stream else {}
        told = {"logprobs": True, "top_logprobs": 2}
        included = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
        yield Ask(f"chat: choices, {way}", "/v1/chat/completions", {**chat, **flag, **usage, "n": 2})
        yield Ask(f"chat: logprobs, {way}", "/v1/chat/completions", {**chat, **flag, **told}, ("logprobs",))
        yield Ask(f"chat: no tokens, {way}", "/v1/chat/completions", {**chat, **flag, "max_tokens": 0})
        yield Ask(f"chat: json, {way}", "/v1/chat/completions",
                  {**chat, **flag, "response_format": {"type": "json_object"}})  # fmt: skip
        yield Ask(f"chat: too long, {way}", "/v1/chat/completions", {**chat, **flag, "messages": _LONG}, status=400)
        yield Ask(f"completions: prompts, {way}", "/v1/completions",
                  {**text, **flag, **usage, "prompt": ["a", "b"], "n": 2, "echo": True})  # fmt: skip
        yield Ask(f"completions: logprobs, {way}", "/v1/completions", {**text, **flag, "logprobs": 2}, ("logprobs",))
        yield Ask(f"completions: tokens, {way}", "/v1/completions", {**text, **flag, "prompt": [65, 66]})
        yield Ask(f"responses: logprobs, {way}", "/v1/responses", {**response, **flag, **included}, ("logprobs",))
        yield Ask(f"responses: kept, {way}", "/v1/responses", {**response, **flag, "store": True})
        yield Ask(f"responses: too long, {way}", "/v1/responses", {**response, **flag, "input": _LONG}, status=400)
    yield Ask("chat: no such model", "/v1/chat/completions", {**chat, "model": "nobody"}, status=404)
    yield Ask("chat: no messages", "/v1/chat/completions", {**chat, "messages": []}, status=400)
    yield Ask("chat: hot", "/v1/chat/completions", {**chat, "temperature": 9}, status=400)
    yield Ask("completions: no such model", "/v1/completions", {**text, "model": "nobody"}, status=404)
    yield Ask("responses: no such model", "/v1/responses", {**response, "model": "nobody"}, status=404)
    yield Ask("embeddings: floats", "/v1/embeddings", {**vectors, "encoding_format": "float"}, ("embed",))
    yield Ask("embeddings: base64", "/v1/embeddings", {**vectors, "encoding_format": "base64"}, ("embed",))
    yield Ask("embeddings: dimensions", "/v1/embeddings", {**vectors, "dimensions": 8}, ("embed",))
    yield Ask("embeddings: of a chat model", "/v1/embeddings", {**vectors, "model": _MODEL}, status=400)
    yield Ask("tokenize", "/tokenize", {"model": _MODEL, "prompt": "hi"}, ("tokenize",))
    yield Ask("detokenize", "/detokenize", {"model": _MODEL, "tokens": [71, 72]}, ("tokenize",))
    yield Ask("rerank", "/v1/rerank", {"model": _MODEL, "query": "a", "documents": ["b"]}, status=400)
    yield Ask("models", "/v1/models")
    yield Ask("a model", f"/v1/models/{_MODEL}")
    yield Ask("no such model", "/v1/models/nobody", status=404)


def _anthropic() -> Iterator[Ask]:
    body: dict[str, Any] = {"model": _MODEL, "messages": _HI, **_TINY}
    said = [*_HI, {"role": "assistant", "content": '{"sky":'}]
    yield Ask("anthropic: counted", "/v1/messages/count_tokens", {"model": _MODEL, "messages": _HI}, ("tokenize",))
    yield Ask("anthropic: no such model", "/v1/messages", {**body, "model": "nobody"}, status=404)
    yield Ask("anthropic: hot", "/v1/messages", {**body, "temperature": 9}, status=400)
    yield Ask("anthropic: too long", "/v1/messages", {**body, "messages": _LONG}, status=400)
    yield Ask("anthropic: models", "/v1/models", document="anthropic")
    yield Ask("anthropic: a model", f"/v1/models/{_MODEL}", document="anthropic")
    for stream in (False, True):
        asked = {**body, "messages": said, "stream": stream}
        yield Ask(f"anthropic: gone on, {'streamed' if stream else 'whole'}", "/v1/messages", asked, ("prefill",))


def _ollama() -> Iterator[Ask]:
    options = {"temperature": 0, "num_predict": 8}
    for stream in (False, True):
        way = "streamed" if stream else "whole"
        base: dict[str, Any] = {"model": _MODEL, "stream": stream, "options": options}
        text = {**base, "prompt": "hi"}
        told = {"logprobs": True, "top_logprobs": 2}
        yield Ask(f"generate: plain, {way}", "/api/generate", text)
        yield Ask(f"generate: raw, {way}", "/api/generate", {**text, "raw": True})
        yield Ask(f"generate: a format, {way}", "/api/generate", {**text, "format": SCHEMA, "think": False})
        yield Ask(f"generate: thinking, {way}", "/api/generate", {**text, "think": True}, ("think",))
        yield Ask(f"generate: logprobs, {way}", "/api/generate", {**text, **told}, ("logprobs",))
        yield Ask(f"chat: logprobs, {way} (Ollama)", "/api/chat", {**base, "messages": _HI, **told}, ("logprobs",))
        yield Ask(f"chat: no such model, {way}", "/api/chat", {**base, "model": "nobody", "messages": _HI}, status=404)
    loading = {"model": _MODEL, "stream": False}
    yield Ask("generate: loading", "/api/generate", loading)
    yield Ask("chat: loading (Ollama)", "/api/chat", loading)
    yield Ask("embed", "/api/embed", {"model": _EMBEDDER, "input": ["a", "b"]}, ("embed",))
    yield Ask("embed: shorter", "/api/embed", {"model": _EMBEDDER, "input": "a", "dimensions": 8}, ("embed",))
    yield Ask("embeddings (Ollama)", "/api/embeddings", {"model": _EMBEDDER, "prompt": "a"}, ("embed",))
    yield Ask("show", "/api/show", {"model": _MODEL})
    yield Ask("show: no such model", "/api/show", {"model": "nobody"}, status=404)
    for path in ("/api/tags", "/api/ps", "/api/version", "/health", "/ready"):
        yield Ask(path, path)


ASKS = {ask.name: ask for ask in (*_talks(), *_openai(), *_anthropic(), *_ollama())}


class SpecRules(DrivenRules):
    @pytest.mark.parametrize("name", ASKS)
    def test_what_comes_back_is_what_its_document_says(self, driven: Driven, name: str) -> None:
        ask = ASKS[name]
        seen = _observed(driven, ask)
        _check(seen)
        if set(ask.needs) <= driven.can:
            assert seen.status == ask.status, seen.body
        else:
            assert seen.status in (400, 404, 501), seen.body
        if seen.status == 200 and ask.body is not None:
            assert _is_streamed(seen) == ask.body.get("stream", ask.path in ("/api/chat", "/api/generate")), seen.body
            assert b'"error"' not in seen.body or ask.path == "/v1/responses", seen.body  # whose `error` is null

    def test_a_response_that_is_kept_is_read_and_forgotten(self, driven: Driven) -> None:
        made = _observed(driven, ASKS["responses: kept, whole"])
        path = f"/v1/responses/{json.loads(made.body)['id']}"
        for method, place in (("GET", path), ("GET", f"{path}/input_items"), ("DELETE", path)):
            seen = _seen(driven, method, place)
            assert seen.status == 200
            _check(seen)
        assert _seen(driven, "GET", path).status == 404

    def test_usage_counts_every_choice_and_every_prompt(self, driven: Driven) -> None:
        """Engines are asked for one choice at a time."""
        one = {"model": driven.model, "prompt": '{"sky":', "temperature": 0, "max_tokens": 2}
        single = _usage(driven, "/v1/completions", one)
        assert single["completion_tokens"] > 0
        choices = _usage(driven, "/v1/completions", {**one, "n": 3})
        assert choices["completion_tokens"] == 3 * single["completion_tokens"]
        assert choices["prompt_tokens"] == single["prompt_tokens"]
        prompts = _usage(driven, "/v1/completions", {**one, "prompt": [one["prompt"]] * 2, "n": 2})
        assert prompts["completion_tokens"] == 4 * single["completion_tokens"]
        assert prompts["prompt_tokens"] == 2 * single["prompt_tokens"]
        chat = {"model": driven.model, "messages": _HI, "temperature": 0, "max_tokens": 2}
        twice = _usage(driven, "/v1/chat/completions", {**chat, "n": 2})
        assert twice["completion_tokens"] == 2 * _usage(driven, "/v1/chat/completions", chat)["completion_tokens"]

    def test_usage_of_embeddings_counts_every_input(self, driven: Driven) -> None:
        """More of them than an engine takes at once."""
        if "embed" not in driven.can:
            pytest.skip("this driver makes no embeddings here")
        body = {"model": driven.embedder, "input": "a cat"}
        many = {**body, "input": ["a cat"] * 130}
        single, all_ = (_usage(driven, "/v1/embeddings", each, is_text=False) for each in (body, many))
        assert all_["prompt_tokens"] == 130 * single["prompt_tokens"] > 0

    def test_usage_of_a_stream_is_that_of_the_whole(self, driven: Driven) -> None:
        for path, given in (
            ("/v1/completions", {"prompt": ["a", '{"sky":']}),
            ("/v1/chat/completions", {"messages": _HI}),
        ):
            body = {"model": driven.model, "temperature": 0, "max_tokens": 2, "n": 2, **given}
            whole = _usage(driven, path, body)
            more = {"stream": True, "stream_options": {"include_usage": True}}
            seen = _seen(driven, "POST", path, {**body, **more})
            events = [json.loads(line[6:]) for line in seen.body.decode().split("\n") if line.startswith("data: {")]
            assert [event["usage"] for event in events[:-1]] == [None] * (len(events) - 1)
            for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
                assert events[-1]["usage"][name] == whole[name]


def _observed(driven: Driven, ask: Ask) -> Observed:
    names = {"model": driven.model, "embedder": driven.embedder}
    body = None
    if ask.body is not None:
        body = {**ask.body, "model": ask.body["model"].format(**names)}
    return _seen(driven, ask.method, ask.path.format(**names), body, document=ask.document)


def _seen(
    driven: Driven, method: str, path: str, body: dict[str, Any] | None = None, *, document: str = ""
) -> Observed:
    headers = {"anthropic-version": "2023-06-01"} if document == "anthropic" else {}
    answer = driven.client.request(method, path, json=body, headers=headers)
    kind = answer.headers.get("content-type", "")
    seen = Observed(method, path, answer.status_code, kind, body=answer.content, is_whole=True)
    seen.document = document or document_of(path)
    return seen


def _usage(driven: Driven, path: str, body: dict[str, Any], *, is_text: bool = True) -> dict[str, Any]:
    seen = _seen(driven, "POST", path, body)
    assert seen.status == 200, seen.body
    usage: dict[str, Any] = json.loads(seen.body)["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + (usage["completion_tokens"] if is_text else 0)
    return usage


def _check(seen: Observed) -> None:
    found = list(departures(seen))
    assert not found, (found, seen.status, seen.body[:2000])


def _is_streamed(seen: Observed) -> bool:
    return not seen.content_type.startswith("application/json")
