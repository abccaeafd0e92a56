"""The scheduler with scripted engines and a clock that the test turns: leases, queue, residency, failures, ends."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from typing import Any

import pytest

from oprel.config import Settings
from oprel.errors import (
    BusyError,
    EngineFailedError,
    EngineStartError,
    InsufficientMemoryError,
    InvalidNameError,
    ModelDamagedError,
    ModelNotFoundError,
    OprelError,
    UnsupportedError,
)
from oprel.scheduler import Lease, Scheduler
from oprel.schema import Capabilities, ChatRequest, LoadOptions, Message, Model, RemoteModel, TextPart
from oprel.testing import (
    FakeClock,
    Script,
    ScriptedCatalog,
    ScriptedDriver,
    ScriptedRegistry,
    eventually,
    scripted_model,
)

MIB = 1024 * 1024
HELLO = ChatRequest((Message("user", (TextPart("hello"),)),))


class House:
    """A scheduler over scripted engines, and what its requests did."""

    def __init__(
        self,
        script: Script | None = None,
        *,
        models: tuple[Model, ...] = (),
        scripts: dict[str, Script] | None = None,
        **settings: Any,
    ) -> None:
        self.clock = FakeClock()
        self.catalog = ScriptedCatalog(*(models or (scripted_model("a"), scripted_model("b"), scripted_model("c"))))
        self.driver = ScriptedDriver(script, scripts=scripts, clock=self.clock)
        self.scheduler = Scheduler(
            catalog=self.catalog,
            registry=ScriptedRegistry(self.driver),
            settings=Settings(**settings),
            clock=self.clock,
        )
        self.order: list[str] = []
        self.stack = AsyncExitStack()
        self.tasks: list[asyncio.Task[Any]] = []

    async def hold(self, model: str = "a", **options: Any) -> Holder:
        """A lease, held until its `release`."""
        holder = Holder(self, model, options)
        await holder.held()
        return holder

    def ask(self, model: str = "a", **options: Any) -> Holder:
        return Holder(self, model, options)

    @property
    def engines(self) -> list[Any]:
        return self.driver.engines

    @property
    def queued(self) -> int:
        return self.scheduler._owner.state.waiting

    async def use(self, model: str = "a", **options: Any) -> None:
        holder = await self.hold(model, **options)
        await holder.release()


class Holder:
    """One request, in a task of its own."""

    def __init__(self, house: House, model: str, options: dict[str, Any]) -> None:
        self.lease: Lease | None = None
        self._house = house
        self._model = model
        self._options = {"need": "chat", **options}
        self._done = asyncio.Event()
        self._granted = asyncio.Event()
        self.task = asyncio.create_task(self._run())
        house.tasks.append(self.task)

    async def _run(self) -> None:
        async with self._house.scheduler.lease(self._model, **self._options) as lease:
            self.lease = lease
            self._house.order.append(self._options.get("client") or self._model)
            self._granted.set()
            await self._done.wait()

    async def held(self) -> Lease:
        waiting = asyncio.create_task(self._granted.wait())
        await asyncio.wait({waiting, self.task}, return_when=asyncio.FIRST_COMPLETED, timeout=10)
        waiting.cancel()
        if self.task.done():
            await self.task
        assert self.lease is not None
        return self.lease

    async def release(self) -> None:
        self._done.set()
        await self.task

    async def leave(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)

    async def error(self) -> OprelError:
        with pytest.raises(OprelError) as caught:
            async with asyncio.timeout(10):
                await self.task
        return caught.value


@asynccontextmanager
async def running(house: House) -> AsyncGenerator[House, None]:
    """In the end every engine is stopped, and no request is left."""
    try:
        async with house.scheduler:
            yield house
            for task in house.tasks:
                task.cancel()
            await asyncio.gather(*house.tasks, return_exceptions=True)
    finally:
        assert not house.driver.alive, "an engine was left"
        assert all(engine.is_stopped for engine in house.engines)
        others = asyncio.all_tasks() - {asyncio.current_task()}
        assert not others, f"tasks were left: {others}"


def check(house_of: Callable[[], House], scenario: Callable[[House], Awaitable[None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(20), running(house_of()) as house:
            await scenario(house)

    asyncio.run(main())


async def chat(lease: Lease) -> str:
    text = ""
    async with aclosing(lease.engine.chat(HELLO)) as stream:
        async for batch in stream:
            text += "".join(getattr(event, "text", "") for event in batch)
    return text


# -- leases


def test_a_lease_is_on_a_ready_engine() -> None:
    async def scenario(house: House) -> None:
        async with house.scheduler.lease("a", need="chat") as lease:
            assert await chat(lease) == "Hello, world!"
            assert lease.plan is lease.engine.plan
            assert lease.model.name == "a"
            (loaded,) = house.scheduler.loaded()
            assert (loaded.name, loaded.state, loaded.slots, loaded.slots_in_use) == ("a", "ready", 4, 1)
            assert loaded.size_bytes == 100 * MIB
            assert "a ready" in repr(house.scheduler)
        assert house.scheduler.loaded()[0].slots_in_use == 0

    check(House, scenario)


def test_load_time_and_queue_time_are_told_apart() -> None:
    async def scenario(house: House) -> None:
        first = house.ask()
        await eventually(lambda: house.driver.starts)
        second = house.ask()
        await eventually(lambda: house.queued == 2)
        await house.clock.advance(3)
        held = await first.held()
        assert held.load_s == pytest.approx(3)
        assert held.queued_s == 0
        await house.clock.advance(2)
        await first.release()
        later = await second.held()
        assert later.load_s == pytest.approx(3)
        assert later.queued_s == pytest.approx(2)
        await second.release()
        third = await house.hold()
        assert 0 < third.lease.load_s < 0.001  # never 0, which would read as "not known"

    check(lambda: House(Script(start_delay_s=3, slots=1)), scenario)


def test_more_requests_than_slots_wait_in_order() -> None:
    async def scenario(house: House) -> None:
        holders = [await house.hold(client="0"), await house.hold(client="1")]
        queue = []
        for number in range(2, 6):
            queue.append(house.ask(client=str(number)))
            await eventually(lambda: house.queued == len(queue))
        assert house.scheduler.loaded()[0].queued == 4
        for holder in (*holders, *queue):
            await holder.held()
            await holder.release()
        assert house.order == [str(number) for number in range(6)]

    check(lambda: House(Script(slots=2)), scenario)


def test_a_client_with_many_requests_does_not_push_others_back() -> None:
    async def scenario(house: House) -> None:
        running = await house.hold(client="greedy")
        waiting = []
        for client in ("greedy", "greedy", "greedy", "modest"):
            waiting.append(house.ask(client=client))
            await eventually(lambda: house.queued == len(waiting))
        await running.release()
        for holder in (waiting[0], waiting[3], waiting[1], waiting[2]):
            await holder.held()
            await holder.release()
        assert house.order[1:] == ["greedy", "modest", "greedy", "greedy"]

    check(lambda: House(Script(slots=1)), scenario)


def test_a_full_queue_is_told_in_no_time() -> None:
    async def scenario(house: House) -> None:
        await house.hold()
        house.ask()
        await eventually(lambda: house.queued == 1)
        began = time.perf_counter()
        error = await house.ask().error()
        assert time.perf_counter() - began < 0.5  # far above the 10 ms that it should be, for a busy machine
        assert isinstance(error, BusyError)
        assert error.retry_after_s > 0

    check(lambda: House(Script(slots=1), max_queue=1), scenario)


def test_leaving_the_queue_gives_the_place_to_the_next() -> None:
    async def scenario(house: House) -> None:
        running = await house.hold()
        gone, after = house.ask(), house.ask()
        await eventually(lambda: house.queued == 2)
        await gone.leave()
        assert house.queued == 1
        await running.release()
        await after.held()

    check(lambda: House(Script(slots=1)), scenario)


def test_leaving_in_the_moment_of_the_grant_gives_the_slot_back() -> None:
    async def scenario(house: House) -> None:
        running = await house.hold()
        gone, after = house.ask(), house.ask()
        await eventually(lambda: house.queued == 2)
        running._done.set()
        await eventually(lambda: running.task.done() or gone.lease is not None)
        gone.task.cancel()
        await after.held()

    check(lambda: House(Script(slots=1)), scenario)


def test_leaving_while_it_streams_frees_the_slot_and_stops_the_engines_work() -> None:
    async def scenario(house: House) -> None:
        async def stream() -> None:
            async with house.scheduler.lease("a", need="chat") as lease:
                await chat(lease)

        streaming = asyncio.create_task(stream())
        await eventually(lambda: house.engines and house.engines[0].running)
        await house.clock.advance(5)
        after = house.ask()
        await eventually(lambda: house.queued == 1)
        streaming.cancel()
        await asyncio.gather(streaming, return_exceptions=True)
        await after.held()
        assert [call.ended for call in house.engines[0].calls] == ["closed"]
        assert house.engines[0].running == 0

    check(lambda: House(Script(slots=1, endless=True, token_delay_s=1)), scenario)


def test_an_error_in_the_block_gives_the_slot_back() -> None:
    async def scenario(house: House) -> None:
        with pytest.raises(ZeroDivisionError):
            async with house.scheduler.lease("a", need="chat"):
                raise ZeroDivisionError
        assert house.scheduler.loaded()[0].slots_in_use == 0

    check(House, scenario)


def test_copies_and_aliases_share_one_engine() -> None:
    original = scripted_model("original", aliases=("short",))
    copy = scripted_model("copy", digest="0" * 64, files=original.files)

    async def scenario(house: House) -> None:
        for name in ("original", "short", "copy"):
            await house.use(name)
        assert len(house.engines) == 1

    check(lambda: House(models=(original, copy)), scenario)


def test_a_larger_context_reloads_after_the_running_ones_and_a_smaller_one_does_not() -> None:
    async def scenario(house: House) -> None:
        running = await house.hold(load=LoadOptions(context_tokens=4096))
        await house.use(load=LoadOptions(context_tokens=512))
        assert len(house.engines) == 1
        larger = house.ask(load=LoadOptions(context_tokens=8000))
        await eventually(lambda: house.queued == 1)
        assert house.scheduler.loaded()[0].state == "draining"
        assert not house.engines[0].is_stopped
        await running.release()
        lease = await larger.held()
        assert lease.plan.context_tokens == 8000
        assert house.engines[0].is_stopped
        await house.use(load=LoadOptions(context_tokens=512))
        assert len(house.engines) == 2

    check(House, scenario)


@pytest.mark.parametrize(
    ("load", "codes"),
    [
        (LoadOptions(gpu_layers=3), ["parameter_ignored"]),
        (LoadOptions(context_tokens=512), []),
        (LoadOptions(), []),
    ],
)
def test_load_options_that_a_remote_has_no_use_for_are_told(load: LoadOptions, codes: list[str]) -> None:
    async def scenario(house: House) -> None:
        lease = await house.ask(load=load).held()
        assert [warning.code for warning in lease.warnings] == codes

    check(lambda: House(models=(scripted_model("a", remote=RemoteModel("cluster", "big")),)), scenario)


def test_a_context_that_could_not_be_had_is_told() -> None:
    async def scenario(house: House) -> None:
        lease = await house.ask(load=LoadOptions(context_tokens=100_000)).held()
        assert [warning.code for warning in lease.warnings] == ["context_reduced"]
        assert "8192" in lease.warnings[0].text
        again = await house.ask(load=LoadOptions(context_tokens=100_000)).held()
        assert again.engine is lease.engine

    check(House, scenario)


def test_settings_fill_in_what_a_request_does_not_say() -> None:
    async def scenario(house: House) -> None:
        await house.use(load=LoadOptions(gpu_layers=1))
        ((_, options),) = house.driver.planned
        assert options == LoadOptions(
            context_tokens=1234, slots=3, gpu_layers=1, threads=2, kv_cache_type="q8_0", chat_template=None
        )

    check(lambda: House(context=1234, parallel=3, gpu_layers=9, threads=2, kv_cache_type="q8_0"), scenario)


# -- what can't be done


NO_TEMPLATE = scripted_model("plain", chat_template=None)
EMBEDDER = scripted_model("embedder", capabilities=frozenset({"embedding"}))


@pytest.mark.parametrize(
    ("name", "need", "kind"),
    [
        ("nowhere", "chat", ModelNotFoundError),
        ("no good", "chat", InvalidNameError),
        ("damaged", "load", ModelDamagedError),
        ("a", "embed", UnsupportedError),
        ("embedder", "chat", UnsupportedError),
        ("embedder", "complete", UnsupportedError),
        ("plain", "chat", UnsupportedError),
    ],
)
def test_what_the_metadata_denies_is_refused_before_anything_is_loaded(
    name: str, need: str, kind: type[OprelError]
) -> None:
    models = (scripted_model("a"), EMBEDDER, NO_TEMPLATE, scripted_model("damaged", damage="a file is missing"))

    async def scenario(house: House) -> None:
        error = await house.ask(name, need=need).error()
        assert type(error) is kind
        if isinstance(error, UnsupportedError):
            assert error.capability == need
            assert error.model == name
        assert not house.driver.starts

    check(lambda: House(models=models), scenario)


@pytest.mark.parametrize(
    ("name", "need", "options", "settings"),
    [
        ("plain", "complete", LoadOptions(), {}),
        ("plain", "chat", LoadOptions(chat_template="chatml"), {}),
        ("plain", "chat", LoadOptions(), {"chat_template": "chatml"}),
        ("embedder", "embed", LoadOptions(), {}),
        ("embedder", "load", LoadOptions(), {}),
    ],
)
def test_what_the_metadata_allows_is_loaded(
    name: str, need: str, options: LoadOptions, settings: dict[str, Any]
) -> None:
    async def scenario(house: House) -> None:
        await house.use(name, need=need, load=options)
        assert len(house.engines) == 1

    check(lambda: House(models=(NO_TEMPLATE, EMBEDDER), **settings), scenario)


def test_what_only_the_engine_denies_is_refused_and_gives_the_slot_back() -> None:
    async def scenario(house: House) -> None:
        for _ in range(2):  # found out when it is loaded, and known from then on
            error = await house.ask(need="chat").error()
            assert isinstance(error, UnsupportedError)
            assert error.driver == "scripted"
        assert house.scheduler.loaded()[0].slots_in_use == 0
        await house.use(need="complete")

    check(lambda: House(Script(capabilities=Capabilities(complete=True))), scenario)


def test_a_need_that_does_not_exist_is_the_callers_mistake() -> None:
    with pytest.raises(ValueError, match="chat, complete, embed, rerank, load"):
        House().scheduler.lease("a", need="sing")


# -- several models


def test_several_models_at_once_within_the_budget() -> None:
    async def scenario(house: House) -> None:
        await house.hold("a")
        await house.hold("b")
        assert len(house.driver.alive) == 2

    check(House, scenario)


def test_the_idle_model_used_least_recently_leaves() -> None:
    async def scenario(house: House) -> None:
        for name in ("a", "b", "a"):
            await house.use(name)
            await house.clock.advance(1)
        await house.use("c")
        assert sorted(engine.plan.model for engine in house.driver.alive) == ["a", "c"]

    check(lambda: House(memory_limit_bytes=250 * MIB), scenario)


def test_a_model_in_use_is_waited_for() -> None:
    async def scenario(house: House) -> None:
        using = await house.hold("a")
        other = house.ask("b")
        await eventually(lambda: house.scheduler.loaded()[0].state == "draining")
        assert not house.engines[0].is_stopped
        await using.release()
        await other.held()
        assert house.engines[0].is_stopped

    check(lambda: House(memory_limit_bytes=150 * MIB), scenario)


def test_what_never_fits_is_refused_with_the_numbers() -> None:
    async def scenario(house: House) -> None:
        error = await house.ask().error()
        assert isinstance(error, InsufficientMemoryError)
        assert (error.needed_bytes, error.available_bytes) == (100 * MIB, 50 * MIB)

    check(lambda: House(memory_limit_bytes=50 * MIB), scenario)


def test_what_an_engine_holds_more_than_planned_counts() -> None:
    async def scenario(house: House) -> None:
        await house.use("a")
        assert house.scheduler.loaded()[0].size_bytes == 200 * MIB
        await house.use("b")
        assert [engine.plan.model for engine in house.driver.alive] == ["b"]

    scripts = {"a": Script(memory_bytes=200 * MIB)}
    check(lambda: House(scripts=scripts, memory_limit_bytes=250 * MIB), scenario)


def test_a_second_engine_gets_the_cores_that_are_left() -> None:
    async def scenario(house: House) -> None:
        await house.use("a")
        await house.use("b")
        assert [engine.plan.threads for engine in house.engines] == [1, 3]  # of 4 cores

    check(House, scenario)


def test_a_load_does_not_delay_who_is_loaded() -> None:
    async def scenario(house: House) -> None:
        await house.use("a")
        house.ask("b")
        await eventually(lambda: len(house.driver.starts) == 2)
        await house.use("a")

    check(lambda: House(scripts={"b": Script(start_delay_s=100)}), scenario)


# -- keep-alive


def test_the_timer_starts_when_the_last_request_ends() -> None:
    async def scenario(house: House) -> None:
        holder = await house.hold()
        await house.clock.advance(1000)
        await holder.release()
        await house.clock.advance(59)
        (loaded,) = house.scheduler.loaded()
        assert loaded.expires_at == pytest.approx(house.clock.wall() + 1)
        await house.clock.advance(1)
        await eventually(lambda: not house.scheduler.loaded() and house.engines[0].is_stopped)

    check(lambda: House(keep_alive=60), scenario)


def test_a_clock_jump_moves_what_is_shown_and_nothing_else() -> None:
    async def scenario(house: House) -> None:
        await house.use()
        house.clock.wall_offset_s = 86_400
        await house.clock.advance(59)
        (loaded,) = house.scheduler.loaded()
        assert loaded.expires_at == pytest.approx(house.clock.wall() + 1)
        assert house.driver.alive

    check(lambda: House(keep_alive=60), scenario)


def test_keep_alive_of_nothing_unloads_when_the_request_ends() -> None:
    async def scenario(house: House) -> None:
        await house.use(keep_alive=0.0)
        await eventually(lambda: house.engines[0].is_stopped)

    check(House, scenario)


def test_for_ever_has_no_timer() -> None:
    async def scenario(house: House) -> None:
        await house.use(keep_alive=math.inf)
        await house.clock.advance(10**8)
        assert house.scheduler.loaded()[0].expires_at == math.inf

    check(House, scenario)


def test_a_load_request_alone_loads_and_sets_the_keep_alive() -> None:
    async def scenario(house: House) -> None:
        await house.use(need="load", keep_alive=10.0)
        assert house.driver.alive
        await house.clock.advance(10)
        await eventually(lambda: not house.driver.alive)

    check(House, scenario)


def test_unloading() -> None:
    async def scenario(house: House) -> None:
        assert await house.scheduler.unload("a") is False
        await house.use()
        assert await house.scheduler.unload("a") is True
        assert not house.driver.alive, "nothing ran, so it has ended when unload returns"
        assert not house.scheduler.loaded()
        with pytest.raises(ModelNotFoundError):
            await house.scheduler.unload("nowhere")

    check(House, scenario)


def test_unloading_lets_running_requests_end() -> None:
    async def scenario(house: House) -> None:
        holder = await house.hold()
        assert await house.scheduler.unload("a") is True
        assert house.scheduler.loaded()[0].state == "draining"
        assert house.driver.alive
        await holder.release()
        await eventually(lambda: not house.driver.alive)

    check(House, scenario)


def test_the_longest_lived_is_listed_first() -> None:
    async def scenario(house: House) -> None:
        await house.use("a", keep_alive=10.0)
        await house.use("b", keep_alive=math.inf)
        await house.use("c", keep_alive=100.0)
        assert [loaded.name for loaded in house.scheduler.loaded()] == ["b", "c", "a"]

    check(House, scenario)


# -- failures


LADDER = Script(
    bytes_by_device=(("CUDA0", 100 * MIB),),
    fallbacks=((("CUDA0", 50 * MIB), ("cpu", 50 * MIB)), (("cpu", 100 * MIB),)),
    refusals=("gpu", "gpu"),
)


def test_a_gpu_that_fails_ends_on_the_cpu_and_everybody_is_told(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(house: House) -> None:
        for _ in range(2):
            lease = await house.ask().held()
            assert lease.plan.device == "cpu"
            assert [warning.code for warning in lease.warnings] == ["gpu_fallback"]
        assert [plan.device for plan in house.driver.starts] == ["gpu", "gpu+cpu", "cpu"]
        assert house.scheduler.loaded()[0].warnings == lease.warnings
        assert house.scheduler.loaded()[0].vram_bytes == 0
        assert any("trying on the CPU" in record.getMessage() for record in caplog.records)

    with caplog.at_level(logging.WARNING, "oprel.scheduler"):
        check(lambda: House(LADDER), scenario)


def test_a_failed_load_is_told_to_all_who_wait_and_the_next_request_tries_again() -> None:
    async def scenario(house: House) -> None:
        first, second = house.ask(), house.ask()
        await eventually(lambda: house.driver.starts and house.queued == 2)
        await house.clock.advance(1)
        errors = [await first.error(), await second.error()]
        assert all(isinstance(error, EngineStartError) and error.log_tail for error in errors)
        assert errors[0] is not errors[1], "each has its own traceback"
        third = house.ask()
        await eventually(lambda: len(house.driver.starts) == 2)
        await house.clock.advance(1)
        await third.held()

    check(lambda: House(Script(refusals=("engine",), start_delay_s=1)), scenario)


def test_a_crash_loop_is_left_alone_for_a_minute() -> None:
    async def scenario(house: House) -> None:
        for _ in range(3):
            assert isinstance(await house.ask().error(), EngineStartError)
        error = await house.ask().error()
        assert isinstance(error, BusyError)
        assert error.retry_after_s == pytest.approx(60)
        assert len(house.driver.starts) == 3
        await house.clock.advance(61)
        await house.use()

    check(lambda: House(Script(refusals=("engine",) * 3)), scenario)


def test_an_engine_that_dies_is_noticed_and_loaded_anew() -> None:
    async def scenario(house: House) -> None:
        await house.use()
        house.engines[0].kill("signal 9")
        await eventually(lambda: not house.scheduler.loaded())
        await house.use()
        assert len(house.engines) == 2

    check(House, scenario)


def test_an_engine_that_dies_mid_stream_fails_its_requests_and_its_waiters_get_the_next_one() -> None:
    async def scenario(house: House) -> None:
        async def stream() -> None:
            async with house.scheduler.lease("a", need="chat") as lease:
                await chat(lease)

        streaming = asyncio.create_task(stream())
        await eventually(lambda: house.engines and house.engines[0].running)
        waiting = house.ask()
        await eventually(lambda: house.queued == 1)
        house.engines[0].kill("signal 9")
        with pytest.raises(EngineFailedError, match="signal 9"):
            await streaming
        assert (await waiting.held()).engine is house.engines[1]

    check(lambda: House(Script(slots=1, endless=True, token_delay_s=1)), scenario)


def test_a_load_that_takes_too_long_is_given_up() -> None:
    async def scenario(house: House) -> None:
        holder = house.ask()
        await eventually(lambda: house.driver.starts)
        await house.clock.advance(30)
        error = await holder.error()
        assert isinstance(error, EngineStartError)
        assert "30 s" in error.message
        assert house.driver.cancelled_starts

    check(lambda: House(Script(start_delay_s=1000), load_timeout=3), scenario)


def test_a_load_that_everybody_left_is_given_up() -> None:
    async def scenario(house: House) -> None:
        first, second = house.ask(), house.ask()
        await eventually(lambda: house.driver.starts and house.queued == 2)
        await first.leave()
        assert not house.driver.cancelled_starts
        await second.leave()
        await eventually(lambda: house.driver.cancelled_starts)
        assert not house.scheduler.loaded()

    check(lambda: House(Script(start_delay_s=1000)), scenario)


def test_leaving_while_the_model_is_looked_up_leaves_nothing() -> None:
    async def scenario(house: House) -> None:
        holder = house.ask()
        await asyncio.sleep(0)
        await holder.leave()
        assert not house.driver.starts
        assert house.queued == 0

    check(House, scenario)


class UnrulyDriver(ScriptedDriver):
    """Breaks the contract: raises what isn't in the tree of errors."""

    def __init__(self, where: str, clock: FakeClock) -> None:
        super().__init__(clock=clock)
        self.where = where

    def plan(self, *args: Any) -> Any:
        if self.where == "plan":
            raise ZeroDivisionError
        return super().plan(*args)

    async def start(self, *args: Any) -> Any:
        if self.where == "start":
            raise ZeroDivisionError
        return await super().start(*args)


@pytest.mark.parametrize("where", ["plan", "start"])
def test_a_driver_that_breaks_its_contract_costs_one_request(where: str) -> None:
    def house_of() -> House:
        house = House()
        house.driver = UnrulyDriver(where, house.clock)
        house.scheduler = Scheduler(
            catalog=house.catalog,
            registry=ScriptedRegistry(house.driver),
            settings=Settings(),
            clock=house.clock,
        )
        return house

    async def scenario(house: House) -> None:
        error = await house.ask().error()
        assert "scripted" in error.message
        house.driver.where = ""  # type: ignore[attr-defined]  # it is the unruly one
        await house.use()

    check(house_of, scenario)


# -- begin and end


def test_preloading() -> None:
    async def scenario(house: House) -> None:
        assert not house.scheduler.is_ready
        await eventually(lambda: house.driver.starts)
        await house.clock.advance(5)
        await eventually(lambda: house.scheduler.is_ready)
        assert [loaded.name for loaded in house.scheduler.loaded()] == ["a"]

    check(lambda: House(Script(start_delay_s=5), preload=("a", "nowhere")), scenario)


def test_without_preloading_it_is_ready_at_once() -> None:
    assert House().scheduler.is_ready


def test_the_end_while_preloading_leaves_nothing() -> None:
    async def scenario(house: House) -> None:
        await eventually(lambda: house.driver.starts)

    check(lambda: House(Script(start_delay_s=1000), preload=("a",)), scenario)


def test_draining_refuses_the_new_and_waits_for_the_running() -> None:
    async def scenario(house: House) -> None:
        holder = await house.hold()
        queued = house.ask()
        await eventually(lambda: house.queued == 1)
        draining = asyncio.create_task(house.scheduler.drain())
        assert "stopping" in (await queued.error()).message
        assert isinstance(await house.ask().error(), BusyError)
        assert not draining.done()
        await holder.release()
        await draining

    check(lambda: House(Script(slots=1)), scenario)


def test_what_does_not_end_in_time_is_ended() -> None:
    async def main() -> None:
        house = House(Script(endless=True, token_delay_s=1), drain_timeout=7)

        async def stream() -> None:
            async with house.scheduler.lease("a", need="chat") as lease:
                await chat(lease)

        async with running(house):
            streaming = asyncio.create_task(stream())
            await eventually(lambda: house.engines and house.engines[0].running)
            ending = asyncio.create_task(house.scheduler.__aexit__(None, None, None))
            await house.clock.advance(6)
            assert not streaming.done()
            await house.clock.advance(1)
            with pytest.raises(EngineFailedError):
                await streaming
            await ending

    asyncio.run(main())


def test_before_it_runs_it_says_so() -> None:
    async def main() -> None:
        with pytest.raises(RuntimeError, match="context manager"):
            async with House().scheduler.lease("a", need="chat"):
                pass

    asyncio.run(main())


def test_cancelling_everything_leaves_no_engine() -> None:
    """As Ctrl-C does, which cancels the task that the scheduler runs in."""
    house = House(Script(endless=True, token_delay_s=1))

    async def serve() -> None:
        async with house.scheduler, house.scheduler.lease("a", need="chat") as lease:
            await chat(lease)

    async def main() -> None:
        serving = asyncio.create_task(serve())
        await eventually(lambda: house.engines and house.engines[0].running)
        serving.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await serving
        assert not house.driver.alive

    asyncio.run(main())


# -- templates


def test_models_with_the_same_weights_share_an_engine_each_with_its_own_template() -> None:
    own = scripted_model("own")
    go = scripted_model(
        "go", files=own.files, digest="9" * 64, template="<{{ range .Messages }}{{ .Content }}{{ end }}>"
    )
    old = scripted_model("old", files=own.files, digest="8" * 64, chat_template=None, template="[{{ .Prompt }}]")

    async def scenario(house: House) -> None:
        prompts = []
        for name in ("own", "go", "old"):
            async with house.scheduler.lease(name, need="chat") as lease:
                assert lease.plan.chat == (name != "own")  # a scripted plan doesn't say it by itself
                prompts.append(await lease.engine.render(HELLO))
        assert prompts == ["user: hello\n", "<hello>", "[hello]"]
        assert len(house.engines) == 1
        (listed,) = house.scheduler.loaded()
        assert dict(listed.plan.reasons)["template"] == "the Go template of its manifest, applied by Oprel"
        go_now, own_now = await house.scheduler.prospects([go, own])
        assert (go_now.is_loaded, go_now.capabilities.tools) == (True, False)
        assert (own_now.is_loaded, own_now.capabilities.tools) == (True, True)

    check(lambda: House(models=(own, go, old)), scenario)


def test_a_template_from_the_settings_is_only_for_models_that_have_none() -> None:
    go = scripted_model("go", chat_template=None, template="<{{ .Prompt }}>")

    async def scenario(house: House) -> None:
        async with house.scheduler.lease("go", need="chat") as lease:
            assert await lease.engine.render(HELLO) == "<hello>"
        assert house.driver.starts[0].options.chat_template is None

    check(lambda: House(models=(go,), chat_template="chatml"), scenario)
