"""The driver contract as tests. Make a class of them for your driver:

    from oprel.testing.contract import DriverContract, Subject

    class TestMyDriver(DriverContract):
        @pytest.fixture(scope="class")
        @classmethod
        def subject(cls):
            return Subject(make=MyDriver, chat=model, kill=lambda engine: os.kill(engine.pid, 9))

Each test's sentence is a rule of the contract. One engine is shared by those that only ask it; those that end engines
start their own.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, aclosing
from typing import Any

import msgspec
import pytest

from oprel.drivers import (
    CONTRACT_VERSION,
    ContextLengthError,
    DriverOptions,
    Engine,
    EngineFailedError,
    EngineStartError,
    EventStream,
    OprelError,
    UnsupportedError,
)
from oprel.schema import (
    Availability,
    ChatRequest,
    Embeddings,
    EmbedRequest,
    EngineProbe,
    Event,
    Finish,
    Grammar,
    Hardware,
    ImagePart,
    JsonObject,
    LoadOptions,
    Message,
    Model,
    Plan,
    Support,
    Text,
    TextPart,
    Thinking,
    Tool,
    ToolCallDelta,
    events,
)
from oprel.testing.subject import Answer, Bench, Subject, ask, chat_request, completion_request

__all__ = ["DriverContract", "Subject"]

_EVENTS = (Text, events.Thinking, ToolCallDelta, events.Warning, events.Progress, Finish)
_BARE_MACHINE = Hardware("Nowhere", "none", cores=1, threads=1, ram_total_bytes=0, ram_available_bytes=0)
_SOON_S = 2.0
"""The contract says within a second; twice that, for a machine that has other things to do."""


@pytest.mark.driver_contract
class DriverContract:
    """Subclass it with a `subject` fixture of class scope."""

    @pytest.fixture(scope="class")
    @classmethod
    def subject(cls) -> Subject:
        raise NotImplementedError("a subclass gives the subject")

    @pytest.fixture(scope="class")
    @classmethod
    def bench(cls, subject: Subject) -> Iterator[Bench]:
        with Bench(subject) as bench:
            yield bench

    @pytest.fixture
    def chat_model(self, subject: Subject) -> Model:
        return subject.chat or pytest.skip("the subject has no chat model")

    @pytest.fixture
    def embed_model(self, subject: Subject) -> Model:
        return subject.embed or pytest.skip("the subject has no embedding model")

    @pytest.fixture
    def any_model(self, subject: Subject) -> Model:
        return subject.chat or subject.embed or pytest.skip("the subject has no model")

    @pytest.fixture
    def engine(self, bench: Bench, subject: Subject, chat_model: Model) -> Engine:
        return bench.engine(chat_model, subject.chat_options)

    @pytest.fixture
    def embedder(self, bench: Bench, embed_model: Model) -> Engine:
        return bench.engine(embed_model)

    # -- the driver

    def test_it_says_what_it_is(self, bench: Bench) -> None:
        """`contract` is this version, `name` a plain word."""
        assert bench.driver.contract == CONTRACT_VERSION
        assert bench.driver.name.isidentifier()

    def test_making_it_does_nothing(self, bench: Bench, subject: Subject) -> None:
        """A driver that is only made has started nothing and written nothing."""
        before = bench.remains()
        subject.make(DriverOptions(run_dir=str(bench.run_dir)))
        assert bench.remains() == before

    def test_probing_never_raises(self, bench: Bench) -> None:
        """A problem is a field of the probe, with what to do about it."""
        probes = bench.driver.probe()
        assert all(isinstance(probe, EngineProbe) for probe in probes)
        assert all(probe.driver == bench.driver.name for probe in probes)
        assert all(probe.problem is None or len(probe.problem) > 10 for probe in probes)

    @pytest.mark.parametrize("machine", ["this machine", "a bare machine"])
    def test_availability_is_fast_and_never_raises(self, bench: Bench, machine: str) -> None:
        """It answers from data, with a reason, whatever the machine is."""
        hardware = bench.hardware if machine == "this machine" else _BARE_MACHINE
        began = time.perf_counter()
        available = bench.driver.availability(hardware)
        assert time.perf_counter() - began < 0.5
        assert isinstance(available, Availability)
        assert available.reason
        if machine == "this machine":
            assert available.usable, f"the subject's driver must be usable here: {available.reason}"

    def test_support_is_decided_from_metadata_alone(self, bench: Bench, any_model: Model) -> None:
        """The files need not even exist."""
        for model in (any_model, _elsewhere(any_model)):
            support = bench.driver.supports(model)
            assert isinstance(support, Support)
            assert support.supported, support.reason
        other = bench.driver.supports(msgspec.structs.replace(any_model, format="punched-cards"))
        assert not other.supported
        assert other.reason

    # -- plans

    def test_planning_is_pure(self, bench: Bench, any_model: Model) -> None:
        """The same question has the same answer, no file is touched, and nothing is started."""
        before = bench.remains()
        first, second = bench.plan(any_model), bench.plan(any_model)
        assert first == second
        assert _layout(bench.plan(_elsewhere(any_model))) == _layout(first)
        assert bench.remains() == before

    def test_a_plan_explains_itself(self, bench: Bench, any_model: Model) -> None:
        """A reason for each choice, memory by device, and nothing that can't be written down."""
        plan = bench.plan(any_model)
        for step in (plan, *plan.fallbacks):
            _check_plan(step, bench, any_model)
            assert not step.fallbacks or step is plan, "fallbacks have none of their own"
        assert msgspec.json.encode(plan)

    def test_a_plan_does_what_was_asked(self, bench: Bench, chat_model: Model) -> None:
        """Context and slots that are asked for are planned, as far as the model goes."""
        plan = bench.plan(chat_model, LoadOptions(context_tokens=512, slots=1))
        assert (plan.context_tokens, plan.slots) == (512, 1)
        trained = chat_model.context_tokens
        if trained is not None:
            assert bench.plan(chat_model, LoadOptions(context_tokens=trained + 1)).context_tokens <= trained

    def test_where_there_is_no_plan_an_error_says_so(self, bench: Bench, any_model: Model) -> None:
        """One of the errors of the tree, and no other exception."""
        unsupported = msgspec.structs.replace(any_model, format="punched-cards")
        with pytest.raises(OprelError):
            bench.driver.plan(unsupported, LoadOptions(), bench.hardware)

    # -- an engine that is asked

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
        answer = bench.run(ask(_stream(engine, kind)))
        _check_answer(answer)
        assert answer.written
        assert answer.finish.usage.prompt > 0
        assert answer.finish.usage.completion > 0
        assert 0 <= answer.finish.usage.cached <= answer.finish.usage.prompt

    @pytest.mark.parametrize("kind", ["chat", "complete"])
    def test_a_limit_of_tokens_is_kept(self, bench: Bench, engine: Engine, kind: str) -> None:
        """Reason "length", and no more tokens than allowed."""
        answer = bench.run(ask(_stream(engine, kind, "Count from one to fifty.", max_tokens=3)))
        _check_answer(answer)
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
        _check_answer(answer)
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
        _check_answer(answer)
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
                    stream = await stack.enter_async_context(aclosing(_stream(engine, "complete", max_tokens=400)))
                    await anext(stream)
                left = time.perf_counter()
            await _until(lambda: _is_ready(engine))
            await ask(_stream(engine, "complete", max_tokens=1))
            return time.perf_counter() - left

        assert bench.run(leave_all()) < _SOON_S

    def test_cancelling_the_reader_stops_the_work(self, bench: Bench, engine: Engine) -> None:
        """The same for tasks that are cancelled while they wait for the next token."""

        async def cancel() -> float:
            answers = [Answer() for _ in range(engine.plan.slots)]
            readers = [
                asyncio.create_task(ask(_stream(engine, "complete", max_tokens=400), into=answer)) for answer in answers
            ]
            await _until(lambda: _all_begun(answers))
            for reader in readers:
                reader.cancel()
            left = time.perf_counter()
            await asyncio.gather(*readers, return_exceptions=True)
            await _until(lambda: _is_ready(engine))
            return time.perf_counter() - left

        assert bench.run(cancel()) < _SOON_S

    def test_as_many_requests_as_slots_run_at_once(self, bench: Bench, engine: Engine) -> None:
        """Each gets its first token while the others haven't ended."""

        async def together() -> list[Answer]:
            async with AsyncExitStack() as stack:
                streams = [
                    await stack.enter_async_context(aclosing(_stream(engine, "complete", max_tokens=24)))
                    for _ in range(engine.plan.slots)
                ]
                firsts = [await anext(stream) for stream in streams]
                rests = await asyncio.gather(*(ask(stream) for stream in streams))
            return [Answer([first, *rest.batches]) for first, rest in zip(firsts, rests, strict=True)]

        answers = bench.run(together())
        for answer in answers:
            _check_answer(answer)
        assert len({answer.text for answer in answers}) == 1, "greedy answers to one prompt are the same"

    def test_health_is_told_while_it_works(self, bench: Bench, engine: Engine) -> None:
        """Within a second or so, and never "dead"."""

        async def ask_while_busy() -> tuple[str, float]:
            async with AsyncExitStack() as stack:
                for _ in range(engine.plan.slots):
                    stream = await stack.enter_async_context(aclosing(_stream(engine, "complete", max_tokens=400)))
                    await anext(stream)
                began = time.perf_counter()
                health = await engine.health()
                return health.state, time.perf_counter() - began

        state, took = bench.run(ask_while_busy())
        assert state in ("ready", "busy")
        assert took < _SOON_S

    def test_a_prompt_that_is_too_long_is_refused_and_the_engine_goes_on(self, bench: Bench, engine: Engine) -> None:
        """ContextLengthError, not a cut prompt and not a dead engine."""
        words = "word " * (2 * engine.plan.context_tokens)
        with pytest.raises(ContextLengthError):
            bench.run(ask(_stream(engine, "complete", words)))
        assert bench.run(ask(_stream(engine, "complete", max_tokens=2))).text

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

    # -- embeddings

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
        (normal,) = bench.run(embedder.embed(EmbedRequest(("a cat",)))).vectors
        (raw,) = bench.run(embedder.embed(EmbedRequest(("a cat",), normalize=False))).vectors
        assert math.hypot(*normal) == pytest.approx(1, abs=1e-3)
        length = math.hypot(*raw)
        assert [value / length for value in raw] == pytest.approx(list(normal), abs=1e-3)

    def test_more_inputs_than_slots(self, bench: Bench, embedder: Engine) -> None:
        texts = tuple(f"text number {number}" for number in range(3 * embedder.plan.slots + 1))
        assert len(bench.run(embedder.embed(EmbedRequest(texts))).vectors) == len(texts)

    def test_an_embedding_model_refuses_to_chat(self, bench: Bench, embedder: Engine) -> None:
        assert embedder.capabilities.embed
        if embedder.capabilities.chat:
            pytest.skip("the engine can: chat")
        with pytest.raises((UnsupportedError, NotImplementedError)):
            bench.run(ask(embedder.chat(chat_request())))

    # -- ends

    def test_stopping_leaves_nothing_and_may_be_repeated(
        self, bench: Bench, subject: Subject, any_model: Model
    ) -> None:
        """No process, no socket, no file; twice is as good as once; what comes after is an error of the tree."""
        before = bench.remains()
        engine = bench.start(any_model, subject.chat_options if any_model is subject.chat else None)
        watching = engine.wait_dead()

        async def stop() -> str:
            watch = asyncio.ensure_future(watching)
            await asyncio.gather(engine.stop(), engine.stop())
            await engine.stop()
            return await watch

        assert bench.run(stop(), limit_s=subject.stop_limit_s)
        assert bench.remains() == before
        assert bench.run(engine.health(), limit_s=5).state == "dead"
        with pytest.raises(OprelError):
            bench.run(_any_use(engine), limit_s=10)

    def test_stopping_under_load_ends_the_streams(self, bench: Bench, subject: Subject, chat_model: Model) -> None:
        """Running requests fail with EngineFailedError; nothing hangs, nothing is left."""
        before = bench.remains()
        engine = bench.start(chat_model, subject.chat_options)

        async def stop() -> None:
            async with aclosing(_stream(engine, "complete", max_tokens=400)) as stream:
                await anext(stream)
                await engine.stop()
                with pytest.raises(EngineFailedError):
                    while True:
                        await anext(stream)

        bench.run(stop(), limit_s=subject.stop_limit_s)
        assert bench.remains() == before

    def test_death_is_noticed(self, bench: Bench, subject: Subject, chat_model: Model) -> None:
        """The stream that runs fails, `wait_dead` returns with a reason, `health` says dead, and stopping cleans up."""
        kill = subject.kill or pytest.skip("the subject can't kill its engine")
        before = bench.remains()
        engine = bench.start(chat_model, subject.chat_options)

        async def die() -> str:
            watch = asyncio.ensure_future(engine.wait_dead())
            async with aclosing(_stream(engine, "complete", max_tokens=400)) as stream:
                await anext(stream)
                kill(engine)
                with pytest.raises(EngineFailedError):
                    while True:
                        await anext(stream)
            async with asyncio.timeout(_SOON_S):
                reason = await watch
            assert (await engine.health()).state == "dead"
            await engine.stop()
            return reason

        assert bench.run(die(), limit_s=subject.stop_limit_s)
        assert bench.remains() == before

    def test_waiting_for_the_end_can_be_given_up(self, bench: Bench, engine: Engine) -> None:
        """Cancelling `wait_dead` does nothing to the engine, nor to others who wait."""

        async def give_up() -> str:
            other = asyncio.ensure_future(engine.wait_dead())
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await engine.wait_dead()
            assert not other.done()
            other.cancel()
            await asyncio.gather(other, return_exceptions=True)
            return (await engine.health()).state

        assert bench.run(give_up()) == "ready"

    def test_a_start_that_fails_says_why_and_leaves_nothing(self, bench: Bench, subject: Subject) -> None:
        """EngineStartError with the driver, a cause and the engine's last lines."""
        model = subject.damaged or pytest.skip("the subject has no damaged model")
        before = bench.remains()
        with pytest.raises(EngineStartError) as caught:
            bench.start(model)
        error = caught.value
        assert error.cause in ("gpu", "memory", "model", "engine")
        assert error.driver == bench.driver.name
        assert isinstance(error.log_tail, tuple)
        assert error.message
        assert bench.remains() == before

    @pytest.mark.parametrize("after_s", [0.0, 0.02, 0.2])
    def test_a_start_that_is_cancelled_leaves_nothing(
        self, bench: Bench, subject: Subject, any_model: Model, after_s: float
    ) -> None:
        """At whatever moment; the cancellation comes through."""
        before = bench.remains()
        plan = bench.plan(any_model, subject.chat_options if any_model is subject.chat else None)

        async def cancel() -> None:
            starting = asyncio.create_task(bench.driver.start(plan))
            await asyncio.sleep(after_s)
            if not starting.cancel():
                await (await starting).stop()
                return
            (outcome,) = await asyncio.gather(starting, return_exceptions=True)
            if isinstance(outcome, Engine):  # it was ready in that very moment
                await outcome.stop()
            else:
                assert isinstance(outcome, asyncio.CancelledError), f"cancelled, and yet: {outcome!r}"

        bench.run(cancel(), limit_s=subject.start_limit_s)
        assert bench.remains() == before


# -- what the tests check with


def _check_plan(plan: Plan, bench: Bench, model: Model) -> None:
    assert plan.driver == bench.driver.name
    assert plan.model == model.name
    assert plan.model_digest == model.digest
    assert plan.slots >= 1
    assert plan.context_tokens >= 1
    assert plan.threads >= 0
    assert plan.embedding == model.is_embedding
    assert plan.device in ("cpu", "gpu", "gpu+cpu", "remote")
    assert all(device and size >= 0 for device, size in plan.bytes_by_device)
    assert plan.reasons
    assert all(subject and sentence for subject, sentence in plan.reasons)


def _check_answer(answer: Answer) -> None:
    assert answer.batches
    assert all(isinstance(batch, tuple) and batch for batch in answer.batches), "tuples that aren't empty"
    assert all(isinstance(event, _EVENTS) for event in answer.events)
    finishes = [event for event in answer.events if isinstance(event, Finish)]
    assert len(finishes) == 1, "exactly one Finish"
    assert answer.events[-1] is finishes[0], "the Finish is the last event"
    assert len(finishes[0].reasons) == 1, "one choice, one reason"
    for event in answer.events:
        assert getattr(event, "index", 0) == 0, "an engine answers one choice, and its index is 0"
        if isinstance(event, Text | events.Thinking):
            event.text.encode()  # fails on half a code point
            assert not event.text.endswith("\N{REPLACEMENT CHARACTER}"), "a code point that was cut in two"
    _check_tool_calls(answer.events)


def _check_tool_calls(answered: list[Event]) -> None:
    """The first delta of a call names it, and its pieces are one JSON object."""
    calls: dict[int, list[ToolCallDelta]] = {}
    for event in answered:
        if isinstance(event, ToolCallDelta):
            calls.setdefault(event.call, []).append(event)
    for deltas in calls.values():
        assert deltas[0].id
        assert deltas[0].name
        assert isinstance(msgspec.json.decode("".join(delta.arguments for delta in deltas)), dict)


def _stream(engine: Engine, kind: str, text: str = "Once upon a time", *, max_tokens: int = 12) -> EventStream:
    if not getattr(engine.capabilities, kind):
        pytest.skip(f"the engine can't: {kind}")
    if kind == "chat":
        return engine.chat(chat_request(text, max_tokens=max_tokens))
    return engine.complete(completion_request(text, max_tokens=max_tokens))


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


def _elsewhere(model: Model) -> Model:
    """The same model, with files that don't exist."""
    files = tuple(msgspec.structs.replace(file, path=f"/nowhere/{file.digest}") for file in model.files)
    return msgspec.structs.replace(model, files=files)


def _layout(plan: Plan) -> tuple[object, ...]:
    return plan.gpu_layers, plan.bytes_by_device, plan.context_tokens, plan.slots, plan.threads, plan.device


async def _any_use(engine: Engine) -> None:
    if engine.capabilities.complete:
        await ask(engine.complete(completion_request()))
    elif engine.capabilities.chat:
        await ask(engine.chat(chat_request()))
    else:
        await engine.embed(EmbedRequest(("text",)))


async def _is_ready(engine: Engine) -> bool:
    return (await engine.health()).state == "ready"


async def _all_begun(answers: list[Answer]) -> bool:
    return all(answer.batches for answer in answers)


async def _until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Bounded by its caller's limit."""
    while not await condition():  # noqa: ASYNC110 - what is waited for is in another process
        await asyncio.sleep(0.01)
