"""HttpEngine against the real engine, with real models."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import msgspec
import pytest
from support.real_engine import real_engine
from support.upstream_engine import FakeEngine, ask, collect, make_engine

from oprel.errors import ContextLengthError, InvalidRequestError
from oprel.schema import (
    ChatRequest,
    CompletionRequest,
    EmbedRequest,
    Event,
    Finish,
    Grammar,
    JsonSchema,
    Message,
    NamedTool,
    Progress,
    Sampling,
    Text,
    TextPart,
    Tool,
    ToolCallDelta,
    events,
)

pytest.importorskip("xllamacpp")

_CONTEXT = 1024
_SURE = Sampling(temperature=0.0, max_tokens=8)


@pytest.fixture(scope="module")
def chat_address(smollm2_path: Path) -> Iterator[str]:
    with real_engine(smollm2_path, context_tokens=_CONTEXT) as address:
        yield address


@pytest.fixture(scope="module")
def embed_address(embed_path: Path) -> Iterator[str]:
    with real_engine(embed_path, embedding=True, context_tokens=512) as address:
        yield address


def run(address: str, test: Any) -> None:
    async def bounded() -> None:
        engine = make_engine(address, context_tokens=_CONTEXT)
        try:
            async with asyncio.timeout(60):
                await test(engine)
        finally:
            await engine.stop()

    asyncio.run(bounded())


def text(found: list[Event]) -> str:
    return "".join(event.text for event in found if isinstance(event, Text))


def finish(found: list[Event]) -> Finish:
    assert isinstance(found[-1], Finish)
    return found[-1]


def test_chat(chat_address: str) -> None:
    async def test(engine: FakeEngine) -> None:
        found = await collect(engine.chat(ask("What is the capital of France?", temperature=0.0, max_tokens=12)))
        assert text(found).strip()
        end = finish(found)
        assert end.usage.prompt > 10
        assert 0 < end.usage.completion <= 12
        assert end.timings.prompt_s is not None and end.timings.completion_s is not None
        progress = [event for event in found if isinstance(event, Progress)]
        assert progress
        assert progress[-1].total == end.usage.prompt
        again = finish(await collect(engine.chat(ask("What is the capital of France?", max_tokens=1))))
        assert again.usage.cached > 0
        assert again.reasons == ("length",)

    run(chat_address, test)


def test_complete(chat_address: str) -> None:
    async def test(engine: FakeEngine) -> None:
        found = await collect(engine.complete(CompletionRequest("1 2 3 4 5 6", Sampling(temperature=0.0, stop=("9",)))))
        assert text(found).split() == ["7", "8"]
        end = finish(found)
        assert (end.reasons, end.stop_sequence) == (("stop",), "9")
        tokens = await engine.tokenize("1 2 3 4 5 6")
        assert end.usage.prompt == len(tokens)
        by_tokens = await collect(engine.complete(CompletionRequest(tokens, Sampling(temperature=0.0, stop=("9",)))))
        assert text(by_tokens) == text(found)
        assert await engine.detokenize(tokens) == "1 2 3 4 5 6"

    run(chat_address, test)


@pytest.mark.parametrize("top", [0, 3])
def test_logprobs(chat_address: str, top: int) -> None:
    async def test(engine: FakeEngine) -> None:
        requests = (
            engine.chat(ChatRequest(ask().messages, _SURE, logprobs=top)),
            engine.complete(CompletionRequest("Once upon", _SURE, logprobs=top)),
        )
        for stream in requests:
            found = [event for event in await collect(stream) if isinstance(event, Text)]
            rows = [row for event in found for row in event.logprobs or ()]
            assert rows
            assert all(row.logprob <= 0 and len(row.top) == top for row in rows)
            assert all(list(row.top) == sorted(row.top, key=lambda one: -one.logprob) for row in rows)
            assert b"".join(bytes(row.bytes) for row in rows).decode() == "".join(event.text for event in found)

    run(chat_address, test)


def test_json_schema(chat_address: str) -> None:
    schema = '{"type":"object","properties":{"ok":{"type":"boolean"}},"required":["ok"],"additionalProperties":false}'

    async def test(engine: FakeEngine) -> None:
        sampling = Sampling(temperature=0.0, max_tokens=40)
        for stream in (
            engine.chat(ChatRequest(ask().messages, sampling, format=JsonSchema(schema))),
            engine.complete(CompletionRequest("Answer:", sampling, format=JsonSchema(schema))),
        ):
            assert isinstance(json.loads(text(await collect(stream)))["ok"], bool)

    run(chat_address, test)


@pytest.mark.parametrize("choice", ["required", NamedTool("weather")])
def test_a_required_call_comes_though_the_template_knows_no_tools(chat_address: str, choice: Any) -> None:
    city = {"type": "string", "enum": ["Rome", "Oslo"]}
    schema = json.dumps({"type": "object", "properties": {"city": city}, "required": ["city"]})
    tools = (Tool("weather", "The weather in a city", schema), Tool("clock"))
    question = "What is the weather in Rome?"

    async def test(engine: FakeEngine) -> None:
        engine.learn(engine.plan, msgspec.structs.replace(engine.capabilities, tools=False), engine.quirks)
        request = msgspec.structs.replace(
            ask(question), tools=tools, tool_choice=choice, sampling=Sampling(temperature=0.0, max_tokens=64)
        )
        found = await collect(engine.chat(request))
        calls = [event for event in found if isinstance(event, ToolCallDelta)]
        assert calls[0].name in ("weather", "clock") if choice == "required" else calls[0].name == "weather"
        arguments = json.loads("".join(call.arguments for call in calls))
        assert arguments in ({"city": "Rome"}, {"city": "Oslo"}, {})
        assert text(found) == "" and finish(found).reasons == ("tool_calls",)

    run(chat_address, test)


def test_seed_and_bias(chat_address: str) -> None:
    async def test(engine: FakeEngine) -> None:
        warm = Sampling(temperature=1.5, max_tokens=8, seed=2**40)
        one, two = [text(await collect(engine.chat(ask_with(warm)))) for _ in range(2)]
        assert one == two
        (yes,) = await engine.tokenize("yes")
        biased = Sampling(temperature=0.0, max_tokens=1, logit_bias=((yes, 100.0),), repeat_last_n=-1)
        assert text(await collect(engine.chat(ask_with(biased)))) == "yes"

    run(chat_address, test)


def ask_with(sampling: Sampling) -> ChatRequest:
    return ChatRequest(ask("Tell me something").messages, sampling)


def test_cancelling_frees_the_slot_within_a_second(chat_address: str) -> None:
    async def test(engine: FakeEngine) -> None:
        for request in (ask("Write a very long story", max_tokens=900), ask("word " * 600, max_tokens=1)):
            streams = [engine.chat(request) for _ in range(2)]
            for stream in streams:  # both slots are busy
                async with aclosing(stream):
                    await anext(stream)
            loop = asyncio.get_running_loop()
            began = loop.time()
            while True:
                slots = json.loads((await engine.client.request("GET", "/slots", timeout_s=10)).body)
                if not any(slot["is_processing"] for slot in slots):
                    break
                await asyncio.sleep(0.02)
            # One batch of 512 tokens may have to end first, on a busy machine too.
            assert loop.time() - began < 10
            assert finish(await collect(engine.chat(ask("hi", max_tokens=1))))

    run(chat_address, test)


def test_time_limit(chat_address: str) -> None:
    async def test(engine: FakeEngine) -> None:
        request = ChatRequest(ask("Count to a thousand").messages, Sampling(temperature=0, time_limit_s=0.3))
        found = await collect(engine.chat(request))
        assert isinstance(found[-2], events.Warning)
        end = finish(found)
        assert end.reasons == ("length",)
        assert end.usage.completion == sum(isinstance(event, Text) for event in found)
        assert end.usage.prompt > 10

    run(chat_address, test)


def test_no_tokens_and_no_prompt(chat_address: str) -> None:
    async def test(engine: FakeEngine) -> None:
        found = await collect(engine.chat(ask("hi", max_tokens=0)))
        assert text(found) == ""
        assert finish(found).usage.completion == 0
        assert finish(await collect(engine.complete(CompletionRequest("", _SURE))))

    run(chat_address, test)


def test_prompt_longer_than_the_context(chat_address: str) -> None:
    async def test(engine: FakeEngine) -> None:
        with pytest.raises(ContextLengthError) as caught:
            await collect(engine.chat(ask("hello " * 2000)))
        assert caught.value.context_tokens == _CONTEXT
        assert caught.value.prompt_tokens is not None and caught.value.prompt_tokens > 2000
        turns = tuple(
            Message("user" if n % 2 == 0 else "assistant", (TextPart(f"{n} " + "word " * 100),)) for n in range(21)
        )
        found = await collect(engine.chat(ChatRequest(turns, _SURE, truncate=True)))
        assert isinstance(found[0], events.Warning)
        assert finish(found).usage.prompt <= _CONTEXT

    run(chat_address, test)


def test_bad_grammar(chat_address: str) -> None:
    async def test(engine: FakeEngine) -> None:
        with pytest.raises(InvalidRequestError):
            await collect(engine.chat(ChatRequest(ask().messages, _SURE, format=Grammar("root ::= ("))))

    run(chat_address, test)


def test_render(chat_address: str) -> None:
    async def test(engine: FakeEngine) -> None:
        prompt = await engine.render(ask("hello there"))
        assert prompt.endswith("<|im_start|>user\nhello there<|im_end|>\n<|im_start|>assistant\n")
        end = finish(await collect(engine.chat(ask("hello there", max_tokens=1))))
        assert end.usage.prompt == len(await engine.tokenize(prompt))

    run(chat_address, test)


def test_embed(embed_address: str) -> None:
    async def test(engine: FakeEngine) -> None:
        answer = await engine.embed(EmbedRequest(("a cat", "a kitten", "tax law")))
        cat, kitten, tax = answer.vectors
        assert len(cat) == 384
        assert math.isclose(math.sqrt(sum(x * x for x in cat)), 1.0, rel_tol=1e-4)
        assert dot(cat, kitten) > dot(cat, tax)
        assert answer.prompt_tokens > 6
        raw = await engine.embed(EmbedRequest(("a cat",), normalize=False))
        assert not math.isclose(math.sqrt(sum(x * x for x in raw.vectors[0])), 1.0, rel_tol=1e-2)
        tokens = await engine.tokenize("a cat", add_special=True)
        same = (await engine.embed(EmbedRequest((tokens,)))).vectors[0]
        assert dot(same, cat) > 0.999
        with pytest.raises(ContextLengthError) as caught:
            await engine.embed(EmbedRequest(("fine", "word " * 700)))
        assert caught.value.context_tokens == 512

    run(embed_address, test)


def dot(one: tuple[float, ...], two: tuple[float, ...]) -> float:
    return sum(a * b for a, b in zip(one, two, strict=True))
