"""The `ollama` package for Python, unchanged, against a real server and a real engine."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import ollama
import pytest
from support.checking_proxy import checking_proxy
from support.models import CHAT_MODEL, EMBED_MODEL
from support.servers import TEST_DRIVER, ScriptedPuller, scripted_server

from oprel.errors import ModelNotFoundError
from oprel.schema import ToolCall
from oprel.sources import PullProgress
from oprel.testing import Script, scripted_model

QUESTION = {"role": "user", "content": "What is the capital of France? Answer in one sentence."}
SHORT = {"temperature": 0, "num_predict": 24, "seed": 1}

shows_tokens = pytest.mark.skipif(TEST_DRIVER == "openai", reason="a remote doesn't show its tokens")
is_here = pytest.mark.skipif(TEST_DRIVER == "openai", reason="a remote's files and memory are elsewhere")


@pytest.fixture
def client(host: str) -> Iterator[ollama.Client]:
    with ollama.Client(host=host, timeout=60) as client:
        yield client


def test_chat(client: ollama.Client) -> None:
    answer = client.chat(CHAT_MODEL, [QUESTION], options=SHORT)
    assert answer.message.role == "assistant"
    assert "Paris" in (answer.message.content or "")
    assert answer.model == CHAT_MODEL
    assert answer.done_reason in ("stop", "length")
    figures = (answer.total_duration, answer.load_duration, answer.prompt_eval_duration, answer.eval_duration)
    assert all(figure and figure > 0 for figure in figures)
    assert (answer.prompt_eval_count or 0) > 10
    assert 0 < (answer.eval_count or 0) <= 24


def test_chat_as_a_stream(client: ollama.Client) -> None:
    whole = client.chat(CHAT_MODEL, [QUESTION], options=SHORT)
    pieces = list(client.chat(CHAT_MODEL, [QUESTION], stream=True, options=SHORT))
    assert len(pieces) > 3
    assert "".join(piece.message.content or "" for piece in pieces) == whole.message.content
    assert [piece.done for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert pieces[-1].eval_count == whole.eval_count


@shows_tokens
def test_generate_and_its_context(client: ollama.Client) -> None:
    first = client.generate(CHAT_MODEL, "My name is Ada. Say hello.", options=SHORT)
    assert first.response
    assert first.context
    second = client.generate(CHAT_MODEL, "What is my name?", context=first.context, options=SHORT)
    assert second.response
    assert list(second.context or ())[: len(first.context) - 1] == list(first.context)[:-1]
    assert (second.prompt_eval_count or 0) > len(first.context)


def test_generate_as_a_stream_raw_and_with_a_stop(client: ollama.Client) -> None:
    options: dict[str, Any] = {**SHORT, "stop": ["5"]}
    pieces = list(client.generate(CHAT_MODEL, "1, 2, 3,", raw=True, stream=True, options=options))
    assert "4" in "".join(piece.response for piece in pieces)
    assert "5" not in "".join(piece.response for piece in pieces)
    assert pieces[-1].done_reason == "stop"
    assert pieces[-1].context is None


def test_json_and_a_schema(client: ollama.Client) -> None:
    options: dict[str, Any] = {**SHORT, "num_predict": 128}
    schema = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 20}}, "required": ["city"]}
    answer = client.chat(CHAT_MODEL, [QUESTION], format=schema, options=options)
    assert list(json.loads(answer.message.content or "")) == ["city"]
    text = client.generate(CHAT_MODEL, "Answer in JSON: a city.", format="json", options=options).response
    assert text.lstrip().startswith("{")


def test_logprobs(client: ollama.Client) -> None:
    answer = client.chat(CHAT_MODEL, [QUESTION], logprobs=True, top_logprobs=3, options={**SHORT, "num_predict": 4})
    told = list(answer.logprobs or ())
    assert len(told) == 4
    for token in told:
        assert token.logprob <= 0
        likeliest = [top.logprob for top in token.top_logprobs or ()]
        assert likeliest == sorted(likeliest, reverse=True)
        assert len(likeliest) == 3


@is_here
def test_loading_listing_and_unloading(client: ollama.Client) -> None:
    loaded = client.generate(CHAT_MODEL, keep_alive="10m")
    assert (loaded.done_reason, loaded.response) == ("load", "")
    (running,) = [item for item in client.ps().models if item.name == CHAT_MODEL]
    assert running.size
    assert running.context_length
    assert running.expires_at
    assert 500 < (running.expires_at - datetime.now(UTC)).total_seconds() <= 600
    assert client.generate(CHAT_MODEL, keep_alive=0).done_reason == "unload"
    assert CHAT_MODEL not in [item.name for item in client.ps().models]


@is_here
def test_list_and_show(client: ollama.Client) -> None:
    listed = {item.model: item for item in client.list().models}
    assert {CHAT_MODEL, EMBED_MODEL} <= set(listed)
    details = listed[CHAT_MODEL].details
    assert details
    kind = ("safetensors", "BF16") if TEST_DRIVER == "vllm" else ("gguf", "Q4_1")
    assert (details.format, details.quantization_level, details.family) == (*kind, "llama")
    shown = client.show(CHAT_MODEL)
    assert shown.modelinfo
    assert shown.modelinfo["general.architecture"] == "llama"
    assert shown.modelinfo.get("tokenizer.ggml.tokens") is None
    assert "completion" in (shown.capabilities or ())
    assert shown.template
    assert shown.modelfile
    assert client.show(EMBED_MODEL).capabilities == ["embedding"]


def test_embed(client: ollama.Client) -> None:
    texts = ["A cat sleeps.", "A kitten is asleep.", "Stock prices fell."]
    answer = client.embed(EMBED_MODEL, texts)
    cat, kitten, stocks = answer.embeddings
    assert len(cat) == 384
    assert math.fsum(value * value for value in cat) == pytest.approx(1, abs=1e-4)
    assert _dot(cat, kitten) > 0.6 > _dot(cat, stocks)
    assert answer.prompt_eval_count
    (alone,) = client.embed(EMBED_MODEL, texts[0]).embeddings
    assert _dot(alone, cat) > 0.999
    (cut,) = client.embed(EMBED_MODEL, texts[0], dimensions=64).embeddings
    assert len(cut) == 64
    old = client.embeddings(EMBED_MODEL, texts[0]).embedding
    assert _dot(old, cat) / math.sqrt(_dot(old, old)) > 0.999


@shows_tokens
def test_long_texts_are_cut_or_refused(client: ollama.Client) -> None:
    long = "word " * 2000
    assert len(client.embed(EMBED_MODEL, ["short", long]).embeddings) == 2
    with pytest.raises(ollama.ResponseError, match="exceeds the context length") as refused:
        client.embed(EMBED_MODEL, ["short", long], truncate=False)
    assert refused.value.status_code == 400


@shows_tokens
def test_a_long_conversation_is_cut(client: ollama.Client) -> None:
    options: dict[str, Any] = {**SHORT, "num_ctx": 512}
    fox = {"role": "user", "content": "Once upon a time there was a fox. " * 20}
    client.generate(CHAT_MODEL, keep_alive=0)
    try:
        answer = client.chat(CHAT_MODEL, [fox] * 8 + [QUESTION], options=options)
        assert answer.message.content
        assert 300 < (answer.prompt_eval_count or 0) < 512
        too_long = {"role": "user", "content": "fox " * 600}
        with pytest.raises(ollama.ResponseError, match="longer than the context length"):
            client.chat(CHAT_MODEL, [too_long], options=options)
    finally:
        client.generate(CHAT_MODEL, keep_alive=0)  # the next test gets a context of the usual size


@pytest.mark.parametrize(
    ("call", "status", "text"),
    [
        (lambda c: c.chat("absent", [QUESTION]), 404, "model 'absent' not found"),
        (lambda c: c.generate("absent", "x"), 404, "model 'absent' not found"),
        (lambda c: c.embed("absent", "x"), 404, 'model "absent" not found, try pulling it first'),
        (lambda c: c.show("absent"), 404, "model 'absent:latest' not found"),
        (lambda c: list(c.chat("absent", [QUESTION], stream=True)), 404, "model 'absent' not found"),
        (lambda c: c.chat(EMBED_MODEL, [QUESTION]), 400, f'"{EMBED_MODEL}" does not support chat'),
        (lambda c: c.chat(CHAT_MODEL, [QUESTION], think=True), 400, f'"{CHAT_MODEL}" does not support thinking'),
        (
            lambda c: c.embed(CHAT_MODEL, "x"),
            501,
            "This server does not support embeddings. Start it with `--embeddings`",
        ),
        (
            lambda c: c.chat(CHAT_MODEL, [QUESTION], options={"num_ctx": "x"}),
            500,
            'option "num_ctx" must be of type integer',
        ),
    ],
)
def test_errors(client: ollama.Client, call: Any, status: int, text: str) -> None:
    with pytest.raises(ollama.ResponseError) as refused:
        call(client)
    assert (refused.value.status_code, refused.value.error) == (status, text)


def test_asynchronous(host: str) -> None:
    async def go() -> None:
        async with ollama.AsyncClient(host=host, timeout=60) as client:
            await ask(client)

    async def ask(client: ollama.AsyncClient) -> None:
        whole, generated, embedded = await asyncio.gather(
            client.chat(CHAT_MODEL, [QUESTION], options=SHORT),
            client.generate(CHAT_MODEL, "Say hello.", options=SHORT),
            client.embed(EMBED_MODEL, "x"),
        )
        assert "Paris" in (whole.message.content or "")
        assert generated.response
        assert len(embedded.embeddings) == 1
        stream = await client.chat(CHAT_MODEL, [QUESTION], stream=True, options=SHORT)
        assert "Paris" in "".join([piece.message.content or "" async for piece in stream])
        assert (await client.list()).models
        assert (await client.show(CHAT_MODEL)).details
        with pytest.raises(ollama.ResponseError) as refused:
            await client.generate("absent", "x")
        assert refused.value.status_code == 404

    asyncio.run(go())


# --- what no small real model does: through the same client, on scripted engines


@pytest.fixture
def scripted() -> Iterator[ollama.Client]:
    model = scripted_model("able:latest", capabilities=frozenset({"completion", "tools", "thinking"}))
    script = Script(text=("An", " answer"), thinking=("hm", "m"), tool_calls=(ToolCall("weather", '{"town":"Ulm"}'),))
    progress = (PullProgress("pulling manifest"), PullProgress("pulling abc", "sha256:" + "a" * 64, 10, 5))
    puller = ScriptedPuller((*progress, PullProgress("success")))
    with (
        scripted_server(script, models=(model,), puller=puller) as server,
        checking_proxy(server.url) as proxy,
    ):
        with ollama.Client(host=proxy.url, timeout=20) as client:
            yield client
        proxy.check()


def test_tools_and_thinking(scripted: ollama.Client) -> None:
    def weather(town: str) -> str:
        """The weather.

        Args:
            town: where
        """
        return town

    answer = scripted.chat("able", [QUESTION], tools=[weather])
    (call,) = answer.message.tool_calls or ()
    assert (call.function.name, call.function.arguments) == ("weather", {"town": "Ulm"})
    assert (answer.message.content, answer.message.thinking) == ("An answer", "hmm")
    turns = [QUESTION, answer.message, {"role": "tool", "tool_name": "weather", "content": "sun"}]
    assert scripted.chat("able", turns, tools=[weather], think="low").message.content == "An answer"
    pieces = list(scripted.chat("able", [QUESTION], tools=[weather], stream=True))
    assert [len(piece.message.tool_calls or ()) for piece in pieces][-2:] == [1, 0]


def test_pull(scripted: ollama.Client) -> None:
    told = list(scripted.pull("smollm2:135m", stream=True))
    assert [(step.status, step.completed, step.total) for step in told] == [
        ("pulling manifest", None, None),
        ("pulling abc", 5, 10),
        ("success", None, None),
    ]
    assert scripted.pull("smollm2:135m").status == "success"


def test_pull_of_what_is_not_there() -> None:
    puller = ScriptedPuller((PullProgress("pulling manifest"),), error=ModelNotFoundError("no", model="x"))
    with scripted_server(puller=puller) as server, ollama.Client(host=server.url, timeout=20) as client:
        with pytest.raises(ollama.ResponseError, match="pull model manifest: file does not exist"):
            list(client.pull("x", stream=True))
        with pytest.raises(ollama.ResponseError, match="pull model manifest: file does not exist") as refused:
            client.pull("x")
        assert refused.value.status_code == 500


def test_an_engine_that_dies_in_a_stream_is_an_error_for_the_client() -> None:
    with scripted_server(Script(dies_at=2)) as server, ollama.Client(host=server.url, timeout=20) as client:
        pieces = iter(client.chat("scripted", [QUESTION], stream=True))
        assert [next(pieces).message.content for _ in range(2)] == ["Hello", ","]
        with pytest.raises(ollama.ResponseError, match="an error was encountered while running the model"):
            next(pieces)


def _dot(a: Any, b: Any) -> float:
    return math.fsum(x * y for x, y in zip(a, b, strict=True))
