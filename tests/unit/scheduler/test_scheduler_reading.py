"""Files that weren't read before are read before an engine gets them, and nobody else waits for that."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest

from oprel.config import Settings
from oprel.errors import BusyError, ModelDamagedError
from oprel.scheduler import Scheduler
from oprel.schema import Model
from oprel.testing import Script, ScriptedCatalog, ScriptedDriver, ScriptedRegistry, scripted_model

LIMIT_S = 20


class UnreadCatalog(ScriptedCatalog):
    """The files of "big" take until `done`; those of "bad" are damaged."""

    def __init__(self) -> None:
        super().__init__(*map(scripted_model, ("big:latest", "small:latest", "bad:latest")))
        self.reading = threading.Event()
        self.done = threading.Event()

    def are_files_known(self, model: Model) -> bool:
        return model.name == "small:latest"

    def check_files(self, model: Model, *, progress: Callable[[int], None] | None = None) -> None:
        if model.name == "bad:latest":
            raise ModelDamagedError("its file sha256-abc doesn't hold what its name says", model=model.name)
        self.reading.set()
        while not self.done.wait(0.01):
            assert progress is not None
            progress(1)


def scheduler_over(catalog: ScriptedCatalog) -> tuple[Scheduler, ScriptedDriver]:
    driver = ScriptedDriver(Script(text=("Hi",)))
    return Scheduler(catalog=catalog, registry=ScriptedRegistry(driver), settings=Settings(drain_timeout=0.0)), driver


async def load(scheduler: Scheduler, name: str) -> str:
    async with scheduler.lease(name, need="chat") as lease:
        return lease.model.name


def test_a_model_waits_until_its_files_are_read_and_another_does_not() -> None:
    async def run() -> None:
        catalog = UnreadCatalog()
        scheduler, driver = scheduler_over(catalog)
        async with asyncio.timeout(LIMIT_S), scheduler:
            asked = [asyncio.create_task(load(scheduler, "big")) for _ in range(40)]
            await asyncio.to_thread(catalog.reading.wait, LIMIT_S)
            assert await load(scheduler, "small") == "small:latest"
            assert not any(task.done() for task in asked)
            assert [engine.plan.model for engine in driver.engines] == ["small:latest"]
            catalog.done.set()
            assert set(await asyncio.gather(*asked)) == {"big:latest"}

    asyncio.run(run())


def test_a_damaged_file_is_refused_before_an_engine_is_started() -> None:
    async def run() -> None:
        scheduler, driver = scheduler_over(UnreadCatalog())
        async with asyncio.timeout(LIMIT_S), scheduler:
            with pytest.raises(ModelDamagedError, match="sha256-abc"):
                await load(scheduler, "bad")
        assert driver.engines == []

    asyncio.run(run())


def test_reading_ends_with_the_scheduler() -> None:
    async def run() -> None:
        catalog = UnreadCatalog()
        scheduler, _ = scheduler_over(catalog)
        async with asyncio.timeout(LIMIT_S):
            async with scheduler:
                asked = asyncio.create_task(load(scheduler, "big"))
                await asyncio.to_thread(catalog.reading.wait, LIMIT_S)
            with pytest.raises(BusyError):
                await asked

    asyncio.run(run())
