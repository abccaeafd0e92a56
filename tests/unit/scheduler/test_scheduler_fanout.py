"""Several choices as one stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any

import msgspec
import pytest

from oprel.config import Settings
from oprel.errors import EngineFailedError, ModelNotFoundError, UnsupportedError
from oprel.scheduler import Choices, Lease, Scheduler, chat_choices, completion_choices
from oprel.schema import (
    ChatRequest,
    CompletionRequest,
    Event,
    Finish,
    Message,
    Sampling,
    Text,
    TextPart,
    ToolCall,
    ToolCallDelta,
    Usage,
    events,
)
from oprel.testing import (
    FakeClock,
    Script,
    ScriptedCatalog,
    ScriptedDriver,
    ScriptedRegistry,
    eventually,
    scripted_model,
)

HELLO = ChatRequest((Message("user", (TextPart("hello you"),)),), Sampling(seed=7))


def by_seed(request: ChatRequest | CompletionRequest) -> tuple[str, ...]:
    return (f"seed {request.sampling.seed}", "!")


def with_scheduler(
    script: Script,
    scenario: Callable[[Scheduler, ScriptedDriver, FakeClock], Awaitable[None]],
) -> None:
    @asynccontextmanager
    async def running() -> AsyncGenerator[tuple[Scheduler, ScriptedDriver, FakeClock], None]:
        clock = FakeClock()
        driver = ScriptedDriver(script, clock=clock)
        scheduler = Scheduler(
            catalog=ScriptedCatalog(scripted_model("a")),
            registry=ScriptedRegistry(driver),
            settings=Settings(),
            clock=clock,
        )
        async with scheduler:
            yield scheduler, driver, clock
            assert not any(loaded.slots_in_use or loaded.queued for loaded in scheduler.loaded())
            assert not any(engine.running for engine in driver.engines)

    async def main() -> None:
        async with asyncio.timeout(20), running() as (scheduler, driver, clock):
            await scenario(scheduler, driver, clock)

    asyncio.run(main())


async def collect(stream: AsyncGenerator[tuple[Event, ...], None]) -> list[tuple[Event, ...]]:
    async with aclosing(stream):
        return [batch async for batch in stream]


def texts(batches: list[tuple[Event, ...]]) -> dict[int, str]:
    found: dict[int, str] = {}
    for batch in batches:
        for event in batch:
            if isinstance(event, Text):
                found[event.index] = found.get(event.index, "") + event.text
    return found


def finish_of(batches: list[tuple[Event, ...]]) -> Finish:
    assert all(batches), "no empty tuple"
    finishes = [event for batch in batches for event in batch if isinstance(event, Finish)]
    assert len(finishes) == 1
    assert batches[-1][-1] is finishes[0]
    return finishes[0]


@pytest.mark.parametrize("slots", [1, 2, 4])
def test_choices_have_their_index_and_seed_and_one_finish(slots: int) -> None:
    async def scenario(scheduler: Scheduler, driver: ScriptedDriver, clock: FakeClock) -> None:
        batches = await collect(chat_choices(lambda: scheduler.lease("a", need="chat"), HELLO, 3))
        assert texts(batches) == {0: "seed 7!", 1: "seed 8!", 2: "seed 9!"}
        finish = finish_of(batches)
        assert finish.reasons == ("stop", "stop", "stop")
        assert finish.usage == Usage(prompt=3, completion=6), "the prompt is counted once"
        assert driver.engines[0].most_running <= slots

    with_scheduler(Script(text=by_seed, slots=slots), scenario)


def test_one_choice_is_passed_on_as_it_is() -> None:
    async def scenario(scheduler: Scheduler, driver: ScriptedDriver, clock: FakeClock) -> None:
        batches = await collect(chat_choices(lambda: scheduler.lease("a", need="chat"), HELLO, 1))
        assert texts(batches) == {0: "seed 7!"}
        assert finish_of(batches).usage == Usage(prompt=3, completion=2)

    with_scheduler(Script(text=by_seed), scenario)


def test_without_a_seed_none_is_made_up() -> None:
    async def scenario(scheduler: Scheduler, driver: ScriptedDriver, clock: FakeClock) -> None:
        request = msgspec.structs.replace(HELLO, sampling=Sampling())
        await collect(chat_choices(lambda: scheduler.lease("a", need="chat"), request, 2))
        assert [call.request.sampling.seed for call in driver.engines[0].calls] == [None, None]

    with_scheduler(Script(), scenario)


def test_the_largest_seed_is_shifted_within_its_range() -> None:
    async def scenario(scheduler: Scheduler, driver: ScriptedDriver, clock: FakeClock) -> None:
        request = msgspec.structs.replace(HELLO, sampling=Sampling(seed=2**32 - 1))
        await collect(chat_choices(lambda: scheduler.lease("a", need="chat"), request, 3))
        seeds = [call.request.sampling.seed for call in driver.engines[0].calls]
        assert len(set(seeds)) == 3
        assert all(0 <= seed < 2**32 for seed in seeds)

    with_scheduler(Script(), scenario)


def test_prompts_are_numbered_one_after_the_other_and_each_is_counted() -> None:
    def prompt(request: Any) -> tuple[str, ...]:
        return (request.prompt, "!")

    async def scenario(scheduler: Scheduler, driver: ScriptedDriver, clock: FakeClock) -> None:
        requests = [CompletionRequest("one"), CompletionRequest("one two")]
        batches = await collect(completion_choices(lambda: scheduler.lease("a", need="complete"), requests, 2))
        assert texts(batches) == {0: "one!", 1: "one!", 2: "one two!", 3: "one two!"}
        assert finish_of(batches).usage == Usage(prompt=3, completion=8)

    with_scheduler(Script(text=prompt), scenario)


def test_all_kinds_of_events_are_numbered_and_warnings_are_told_once() -> None:
    script = Script(
        thinking=("hm",),
        tool_calls=(ToolCall("f", "{}"),),
        warnings=(events.Warning("code", "a sentence"),),
    )

    async def scenario(scheduler: Scheduler, driver: ScriptedDriver, clock: FakeClock) -> None:
        batches = await collect(chat_choices(lambda: scheduler.lease("a", need="chat"), HELLO, 2))
        flat = [event for batch in batches for event in batch]
        for kind in (events.Thinking, Text, ToolCallDelta):
            assert {event.index for event in flat if isinstance(event, kind)} == {0, 1}
        assert sum(isinstance(event, events.Warning) for event in flat) == 1
        assert finish_of(batches).reasons == ("tool_calls", "tool_calls")

    with_scheduler(script, scenario)


def test_each_slot_is_given_back_when_its_choice_is_done() -> None:
    """More choices than slots, and a second request in between: nobody waits for all of them."""

    async def scenario(scheduler: Scheduler, driver: ScriptedDriver, clock: FakeClock) -> None:
        reading = asyncio.create_task(collect(chat_choices(lambda: scheduler.lease("a", need="chat"), HELLO, 5)))
        await eventually(lambda: [(loaded.slots_in_use, loaded.queued) for loaded in scheduler.loaded()] == [(2, 3)])
        while not reading.done():
            await clock.advance(1)
        assert len(texts(reading.result())) == 5
        assert driver.engines[0].most_running == 2

    with_scheduler(Script(slots=2, token_delay_s=1), scenario)


def test_closing_the_stream_ends_all_choices() -> None:
    async def scenario(scheduler: Scheduler, driver: ScriptedDriver, clock: FakeClock) -> None:
        stream = chat_choices(lambda: scheduler.lease("a", need="chat"), HELLO, 6)
        async with aclosing(stream):
            await anext(stream)
        assert {call.ended for call in driver.engines[0].calls} == {"closed"}

    with_scheduler(Script(endless=True), scenario)


def test_cancelling_the_reader_ends_all_choices() -> None:
    async def scenario(scheduler: Scheduler, driver: ScriptedDriver, clock: FakeClock) -> None:
        reading = asyncio.create_task(collect(chat_choices(lambda: scheduler.lease("a", need="chat"), HELLO, 6)))
        await eventually(lambda: driver.engines and driver.engines[0].running == 4)
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)

    with_scheduler(Script(endless=True, token_delay_s=1), scenario)


def test_a_reader_that_does_not_read_slows_the_engine_down() -> None:
    async def scenario(scheduler: Scheduler, driver: ScriptedDriver, clock: FakeClock) -> None:
        stream = chat_choices(lambda: scheduler.lease("a", need="chat"), HELLO, 2)
        async with aclosing(stream):
            await anext(stream)
            await clock.advance(1)
            await clock.advance(1)
            sent = sum(call.tokens for call in driver.engines[0].calls)
            await clock.advance(1)
            assert sum(call.tokens for call in driver.engines[0].calls) == sent

    with_scheduler(Script(endless=True), scenario)


def test_the_first_failure_ends_all_and_is_told() -> None:
    async def scenario(scheduler: Scheduler, driver: ScriptedDriver, clock: FakeClock) -> None:
        with pytest.raises(EngineFailedError):
            await collect(chat_choices(lambda: scheduler.lease("a", need="chat"), HELLO, 4))

    with_scheduler(Script(dies_at=1), scenario)


@pytest.mark.parametrize("n", [1, 2])
def test_an_answer_without_its_end_is_a_failure(n: int) -> None:
    async def scenario(scheduler: Scheduler, driver: ScriptedDriver, clock: FakeClock) -> None:
        with pytest.raises(EngineFailedError, match="without"):
            await collect(chat_choices(lambda: scheduler.lease("a", need="chat"), HELLO, n))

    with_scheduler(Script(broken="no_finish"), scenario)


@pytest.mark.parametrize("n", [1, 3])
def test_what_prevents_the_lease_is_raised_on_entering(n: int) -> None:
    async def scenario(scheduler: Scheduler, driver: ScriptedDriver, clock: FakeClock) -> None:
        with pytest.raises(ModelNotFoundError):
            async with Choices(lambda: scheduler.lease("nowhere", need="chat"), [HELLO], n):
                raise AssertionError("not entered")

    with_scheduler(Script(), scenario)


@pytest.mark.parametrize("n", [1, 3])
def test_requests_are_completed_with_what_the_lease_tells(n: int) -> None:
    def prepare(request: Any, lease: Lease) -> Any:
        tokens = lease.plan.context_tokens // 2048
        return msgspec.structs.replace(request, sampling=msgspec.structs.replace(request.sampling, max_tokens=tokens))

    async def scenario(scheduler: Scheduler, driver: ScriptedDriver, clock: FakeClock) -> None:
        source = lambda: scheduler.lease("a", need="chat")  # noqa: E731
        async with Choices(source, [HELLO], n, prepare=prepare) as choices:
            assert choices.lease.model.name == "a"
            finish = finish_of(await collect(choices.events()))
        assert finish.reasons == ("length",) * n
        assert finish.usage.completion == 2 * n

    with_scheduler(Script(), scenario)


@pytest.mark.parametrize("n", [1, 3])
def test_a_request_that_the_lease_shows_impossible_is_refused_on_entering(n: int) -> None:
    def prepare(request: Any, lease: Lease) -> Any:
        raise UnsupportedError("no", capability="tools")

    async def scenario(scheduler: Scheduler, driver: ScriptedDriver, clock: FakeClock) -> None:
        with pytest.raises(UnsupportedError):
            async with Choices(lambda: scheduler.lease("a", need="chat"), [HELLO], n, prepare=prepare):
                raise AssertionError("not entered")

    with_scheduler(Script(), scenario)


def test_nothing_to_choose_is_the_callers_mistake() -> None:
    for requests, n in (([], 1), ([HELLO], 0)):
        with pytest.raises(ValueError, match="at least one"):
            Choices(lambda: None, requests, n)  # type: ignore[arg-type,return-value]  # never called
