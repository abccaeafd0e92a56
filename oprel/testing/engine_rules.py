"""What the contract asks of an engine that is there: its answers, its slots, what it refuses."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, aclosing
from typing import Any

import msgspec
import pytest

from oprel.drivers import (
    ContextLengthError,
    Engine,
    UnsupportedError,
)
from oprel.schema import (
    ChatRequest,
    Embeddings,
    EmbedRequest,
    Grammar,
    ImagePart,
    JsonObject,
    Message,
    Text,
    TextPart,
    Thinking,
    Tool,
)
from oprel.testing.checks import SOON_S, answering, check_answer, longest_standstill
from oprel.testing.subject import Answer, Bench, ask, chat_request, completion_request

__all__ = ["EmbeddingRules", "EngineRules"]


class EngineRules:
    """Tests that only ask: one engine serves them all."""

    def test_an_engine_is_ready_when_it_is_there(self, bench: Bench, engine: Engine) -> None:
        """`start` returns a ready engine, and its plan is what was realized."""
        health = bench.run(engine.health(), limit_s=5)
        assert health.state == "ready", health.detail
        assert engine.plan.slots >= 1
        assert engine.plan.context_tokens >= 1
        assert engine.capabilities.context_tokens in (None, engine.plan.context_tokens)
        assert engine.capabilities.chat or engine.capabilities.complete
        assert engine.memory_bytes() is None or engine.memory_bytes()
        assert all(isinstance(line, str) for line in engine.log_tail())

    @pytest.mark.parametrize("kind", ["chat", "complete"])
    def test_an_answer_is_well_formed(self, bench: Bench, engine: Engine, kind: str) -> None:
        """Tuples that aren't empty, events of ours, whole characters, and exactly one Finish, at the very end."""
        answer = bench.run(ask(answering(engine, kind)))
        check_answer(answer)
        assert answer.written
        assert answer.finish.usage.prompt > 0
        assert answer.finish.usage.completion > 0
        assert 0 <= answer.finish.usage.cached <= answer.finish.usage.prompt

    @pytest.mark.parametrize("kind", ["chat", "complete"])
    def test_a_limit_of_tokens_is_kept(self, bench: Bench, engine: Engine, kind: str) -> None:
        """Reason "length", and no more tokens than allowed."""
        answer = bench.run(ask(answering(engine, kind, "Count from one to fifty.", max_tokens=3)))
        check_answer(answer)
        assert answer.finish.reasons == ("length",)
        assert answer.finish.usage.completion == 3

    def test_a_stop_string_ends_the_text_before_it(self, bench: Bench, engine: Engine) -> None:
        """The stop string isn't in the text, whichever way tokens cut it."""
        whole = bench.run(ask(engine.complete(completion_request(max_tokens=16)))).text
        cut = max(1, len(whole) // 2)
        stop = whole[cut : cut + 4]
        if not stop:
            pytest.skip("the model's answer is too short for a stop string")
        answer = bench.run(ask(engine.complete(completion_request(max_tokens=16, stop=(stop,)))))
        check_answer(answer)
        assert answer.text == whole[: whole.index(stop)]
        assert answer.finish.reasons == ("stop",)
        assert answer.finish.stop_sequence in (None, stop)

    def test_a_seed_makes_it_repeatable(self, bench: Bench, engine: Engine) -> None:
        """Same request, same seed, same text, at any temperature."""
        if "seed" not in engine.capabilities.sampling:
            pytest.skip("the engine has no seed")
        request = completion_request(temperature=1.0, seed=42)
        first, second = (bench.run(ask(engine.complete(request))).text for _ in range(2))
        assert first == second

    def test_logprobs_belong_to_the_tokens(self, bench: Bench, engine: Engine) -> None:
        """At most 0, likeliest first, as many as asked for, and their bytes are the text's."""
        if not engine.capabilities.logprobs:
            pytest.skip("the engine has no logprobs")
        answer = bench.run(ask(engine.complete(completion_request(max_tokens=6, logprobs=2))))
        check_answer(answer)
        told = [entry for event in answer.events if isinstance(event, Text) for entry in event.logprobs or ()]
        assert told
        for entry in told:
            assert entry.logprob <= 0
            assert len(entry.top) <= 2
            assert [top.logprob for top in entry.top] == sorted((top.logprob for top in entry.top), reverse=True)
        assert answer.text.encode() in b"".join(bytes(entry.bytes) for entry in told)

    def test_closing_the_iterator_stops_the_work(self, bench: Bench, engine: Engine) -> None:
        """On all slots at once; within a second the engine is free again."""

        async def leave_all() -> float:
            async with AsyncExitStack() as stack:
                for _ in range(engine.plan.slots):
                    stream = await stack.enter_async_context(aclosing(answering(engine, "complete", max_tokens=400)))
                    await anext(stream)
                left = time.perf_counter()
            await _until(lambda: _is_ready(engine))
            await ask(answering(engine, "complete", max_tokens=1))
            return time.perf_counter() - left

        assert bench.run(leave_all()) < SOON_S

    def test_cancelling_the_reader_stops_the_work(self, bench: Bench, engine: Engine) -> None:
        """The same for tasks that are cancelled while they wait for the next token."""

        async def cancel() -> float:
            answers = [Answer() for _ in range(engine.plan.slots)]
            readers = [
                asyncio.create_task(ask(answering(engine, "complete", max_tokens=400), into=answer))
                for answer in answers
            ]
            await _until(lambda: _all_begun(answers))
            for reader in readers:
                reader.cancel()
            left = time.perf_counter()
            await asyncio.gather(*readers, return_exceptions=True)
            await _until(lambda: _is_ready(engine))
            return time.perf_counter() - left

        assert bench.run(cancel()) < SOON_S

    def test_as_many_requests_as_slots_run_at_once(self, bench: Bench, engine: Engine) -> None:
        """Each gets its first token while the others haven't ended."""

        async def together() -> list[Answer]:
            async with AsyncExitStack() as stack:
                streams = [
                    await stack.enter_async_context(aclosing(answering(engine, "complete", max_tokens=24)))
                    for _ in range(engine.plan.slots)
                ]
                firsts = [await anext(stream) for stream in streams]
                rests = await asyncio.gather(*(ask(stream) for stream in streams))
            return [Answer([first, *rest.batches]) for first, rest in zip(firsts, rests, strict=True)]

        answers = bench.run(together())
        for answer in answers:
            check_answer(answer)
        assert len({answer.text for answer in answers}) == 1, "greedy answers to one prompt are the same"

    def test_health_is_told_while_it_works(self, bench: Bench, engine: Engine) -> None:
        """Within a second or so, and never "dead"."""

        async def ask_while_busy() -> tuple[str, float]:
            async with AsyncExitStack() as stack:
                for _ in range(engine.plan.slots):
                    stream = await stack.enter_async_context(aclosing(answering(engine, "complete", max_tokens=400)))
                    await anext(stream)
                began = time.perf_counter()
                health = await engine.health()
                return health.state, time.perf_counter() - began

        state, took = bench.run(ask_while_busy())
        assert state in ("ready", "busy")
        assert took < SOON_S

    def test_it_does_not_hold_the_loop_up(self, bench: Bench, engine: Engine) -> None:
        """All that Oprel does stands still while a coroutine of an engine computes, or sleeps, without awaiting."""
        assert bench.run(longest_standstill(ask(answering(engine, "complete", max_tokens=24)))) < SOON_S / 2

    def test_a_prompt_that_is_too_long_is_refused_and_the_engine_goes_on(self, bench: Bench, engine: Engine) -> None:
        """ContextLengthError, not a cut prompt and not a dead engine."""
        words = "word " * (2 * engine.plan.context_tokens)
        with pytest.raises(ContextLengthError):
            bench.run(ask(answering(engine, "complete", words)))
        assert bench.run(ask(answering(engine, "complete", max_tokens=2))).text

    @pytest.mark.parametrize("capability", ["tools", "thinking", "vision", "json_schema", "grammar", "logprobs"])
    def test_what_a_chat_can_not_do_is_refused(self, bench: Bench, engine: Engine, capability: str) -> None:
        """UnsupportedError that names what is missing; nothing that was asked for is dropped in silence."""
        if getattr(engine.capabilities, capability):
            pytest.skip(f"the engine can: {capability}")
        with pytest.raises(UnsupportedError):
            bench.run(ask(engine.chat(_asking_for(capability))))

    def test_infill_that_it_can_not_do_is_refused(self, bench: Bench, engine: Engine) -> None:
        if engine.capabilities.infill:
            pytest.skip("the engine can: infill")
        with pytest.raises(UnsupportedError):
            bench.run(ask(engine.complete(completion_request(suffix="the end"))))

    def test_embedding_with_a_chat_model_is_refused(self, bench: Bench, engine: Engine) -> None:
        if engine.capabilities.embed:
            pytest.skip("the engine can: embed")
        with pytest.raises((UnsupportedError, NotImplementedError)):
            bench.run(engine.embed(EmbedRequest(("text",))))

    def test_tokens_come_back_as_text(self, bench: Bench, engine: Engine) -> None:
        if not engine.capabilities.tokenize:
            pytest.skip("the engine can't tokenize")
        text = "Hello, wörld! 🙂"
        tokens = bench.run(engine.tokenize(text))
        assert tokens
        assert bench.run(engine.detokenize(tokens)).strip() == text

    def test_the_prompt_can_be_seen(self, bench: Bench, engine: Engine) -> None:
        if not (engine.capabilities.tokenize and engine.capabilities.chat):
            pytest.skip("the engine can't render")
        assert "a certain sentence" in bench.run(engine.render(chat_request("a certain sentence")))


class EmbeddingRules:
    """The same of an engine that makes embeddings."""

    def test_one_vector_for_each_input_in_order(self, bench: Bench, embedder: Engine) -> None:
        """The vector of a text doesn't depend on what it is asked together with."""
        texts = ("a cat", "the stock market", "a kitten", "a cat")
        together = bench.run(embedder.embed(EmbedRequest(texts)))
        assert isinstance(together, Embeddings)
        assert len(together.vectors) == len(texts)
        assert len({len(vector) for vector in together.vectors}) == 1
        assert together.prompt_tokens > 0
        for text, vector in zip(texts, together.vectors, strict=True):
            (alone,) = bench.run(embedder.embed(EmbedRequest((text,)))).vectors
            assert vector == pytest.approx(alone, abs=0.02)
        assert together.vectors[0] != pytest.approx(together.vectors[1], abs=0.02)

    def test_vectors_have_unit_length_where_asked(self, bench: Bench, embedder: Engine) -> None:
        """An engine that makes no others says so, by the name `normalize`."""
        (normal,) = bench.run(embedder.embed(EmbedRequest(("a cat",)))).vectors
        assert math.hypot(*normal) == pytest.approx(1, abs=1e-3)
        try:
            (raw,) = bench.run(embedder.embed(EmbedRequest(("a cat",), normalize=False))).vectors
        except UnsupportedError as error:
            assert error.capability == "normalize"
            return
        length = math.hypot(*raw)
        assert [value / length for value in raw] == pytest.approx(list(normal), abs=1e-3)

    def test_more_inputs_than_slots(self, bench: Bench, embedder: Engine) -> None:
        texts = tuple(f"text number {number}" for number in range(3 * embedder.plan.slots + 1))
        assert len(bench.run(embedder.embed(EmbedRequest(texts))).vectors) == len(texts)

    def test_embedding_does_not_hold_the_loop_up(self, bench: Bench, embedder: Engine) -> None:
        """Not even a text as long as it takes."""
        words = "word " * max(1, embedder.plan.context_tokens // 2 - 8)
        assert bench.run(longest_standstill(embedder.embed(EmbedRequest((words, words))))) < SOON_S / 2

    def test_a_text_that_is_too_long_is_refused_and_the_engine_goes_on(self, bench: Bench, embedder: Engine) -> None:
        """ContextLengthError, not a vector of its beginning."""
        words = "word " * (2 * embedder.plan.context_tokens)
        with pytest.raises(ContextLengthError):
            bench.run(embedder.embed(EmbedRequest((words,))))
        assert bench.run(embedder.embed(EmbedRequest(("a cat",)))).vectors

    def test_an_embedding_model_refuses_to_chat(self, bench: Bench, embedder: Engine) -> None:
        assert embedder.capabilities.embed
        if embedder.capabilities.chat:
            pytest.skip("the engine can: chat")
        with pytest.raises((UnsupportedError, NotImplementedError)):
            bench.run(ask(embedder.chat(chat_request())))


def _asking_for(capability: str) -> ChatRequest:
    changes: dict[str, dict[str, Any]] = {
        "tools": {"tools": (Tool("look", "looks", '{"type":"object","properties":{}}'),)},
        "thinking": {"thinking": Thinking(enabled=True)},
        "json_schema": {"format": JsonObject()},
        "grammar": {"format": Grammar('root ::= "yes"')},
        "logprobs": {"logprobs": 1},
    }
    if capability == "vision":
        picture = ImagePart(b"\x89PNG\r\n\x1a\n")
        return msgspec.structs.replace(chat_request(), messages=(Message("user", (TextPart("What?"), picture)),))
    return chat_request(**changes[capability])


async def _is_ready(engine: Engine) -> bool:
    return (await engine.health()).state == "ready"


async def _all_begun(answers: list[Answer]) -> bool:
    return all(answer.batches for answer in answers)


async def _until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Bounded by its caller's limit."""
    while not await condition():  # noqa: ASYNC110 - what is waited for is in another process
        await asyncio.sleep(0.01)
