"""The whole scheduler under random use: requests that come, leave, fail and return, engines that die."""

from __future__ import annotations

import asyncio
import random
from contextlib import aclosing

import pytest

from oprel.config import Settings
from oprel.errors import BusyError, EngineFailedError, EngineStartError
from oprel.scheduler import Scheduler
from oprel.schema import ChatRequest, LoadOptions, Message, Sampling, TextPart
from oprel.testing import FakeClock, Script, ScriptedCatalog, ScriptedDriver, ScriptedRegistry, scripted_model
from oprel.testing.clock import settle

MIB = 1024 * 1024
SIZES = {"a": 100, "b": 120, "c": 260}
LIMIT = 300
HELLO = ChatRequest((Message("user", (TextPart("hello"),)),), Sampling(max_tokens=20))


class Soak:
    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)  # noqa: S311 - no secret
        self.clock = FakeClock()
        scripts = {
            name: Script(
                text=("word ",),
                endless=True,
                slots=2,
                token_delay_s=0.5,
                start_delay_s=self.random.choice([0, 2, 30]),
                stop_delay_s=self.random.choice([0, 3]),
                refusals=("engine",) * self.random.choice([0, 0, 1]),
                bytes_by_device=(("cpu", size * MIB),),
            )
            for name, size in SIZES.items()
        }
        self.driver = ScriptedDriver(scripts=scripts, clock=self.clock)
        self.scheduler = Scheduler(
            catalog=ScriptedCatalog(*map(scripted_model, SIZES)),
            registry=ScriptedRegistry(self.driver),
            settings=Settings(memory_limit_bytes=LIMIT * MIB, max_queue=12, keep_alive=20, drain_timeout=1),
            clock=self.clock,
        )
        self.outcomes: list[str] = []

    async def request(self) -> None:
        name = self.random.choice(sorted(SIZES))
        load = LoadOptions(context_tokens=self.random.choice([None, None, 512, 8000]))
        keep_alive = self.random.choice([None, None, 0.0, 5.0])
        client = self.random.choice("xyz")
        try:
            async with (
                self.scheduler.lease(name, need="chat", load=load, keep_alive=keep_alive, client=client) as lease,
                aclosing(lease.engine.chat(HELLO)) as stream,
            ):
                async for _ in stream:
                    assert not lease.engine.is_dead  # type: ignore[attr-defined]  # it is a scripted one
            self.outcomes.append("done")
        except BusyError:
            self.outcomes.append("busy")
        except (EngineFailedError, EngineStartError):
            self.outcomes.append("failed")

    def check(self) -> None:
        held = sum(SIZES[engine.plan.model] for engine in self.driver.alive)
        assert held <= LIMIT, "more memory than there is"
        assert all(engine.most_running <= engine.plan.slots for engine in self.driver.engines)

    async def run(self, steps: int) -> None:
        await self.scheduler.__aenter__()
        tasks: list[asyncio.Task[None]] = []
        for _ in range(steps):
            match self.random.choices(["ask", "leave", "kill", "unload", "wait"], [10, 4, 1, 1, 8])[0]:
                case "ask":
                    tasks.append(asyncio.create_task(self.request()))
                case "leave" if tasks:
                    self.random.choice(tasks).cancel()
                case "kill" if self.driver.alive:
                    self.random.choice(self.driver.alive).kill("killed")
                case "unload":
                    tasks.append(asyncio.create_task(self.unload()))
                case _:
                    await self.clock.advance(self.random.choice([0.5, 1, 5, 25]))
            await settle()
            self.check()
        await self.finish(*tasks)
        assert not any(loaded.slots_in_use or loaded.queued for loaded in self.scheduler.loaded())
        await self.finish(asyncio.create_task(self.scheduler.__aexit__(None, None, None)))
        assert not self.driver.alive
        assert not any(engine.running for engine in self.driver.engines)

    async def unload(self) -> None:
        await self.scheduler.unload(self.random.choice(sorted(SIZES)))

    async def finish(self, *tasks: asyncio.Task[None]) -> None:
        """All of them end when nobody disturbs them any more: nobody is forgotten."""
        async with asyncio.timeout(15):
            while not all(task.done() for task in tasks):
                await self.clock.advance(1)
                await asyncio.sleep(0.0005)  # threads look up models and plan
                self.check()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        strange = [outcome for outcome in outcomes if not isinstance(outcome, asyncio.CancelledError | None)]
        assert not strange, strange


@pytest.mark.parametrize("seed", range(12))
def test_nobody_is_forgotten_and_nothing_is_left(seed: int) -> None:
    soak = Soak(seed)
    asyncio.run(soak.run(150))
    assert "done" in soak.outcomes
