"""The one owner of everything that is loaded: it runs the policy's actions and tells it what came of them.

`post` decides at once, on the loop's thread, and never waits: no lock is needed, and a full queue is told in
microseconds. What takes time (planning, starting, watching, stopping) are tasks of one group, which ends with `run`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, Protocol, assert_never

from oprel.config import Settings
from oprel.drivers import BackendError, Driver, Engine, EngineFailedError, EngineStartError
from oprel.errors import OprelError
from oprel.scheduler import fit
from oprel.scheduler.clock import Clock
from oprel.scheduler.policy import decide, next_wake
from oprel.scheduler.state import (
    Action,
    Asked,
    CancelStart,
    Died,
    Event,
    Family,
    Grant,
    Left,
    Limits,
    MakePlan,
    Measured,
    PlanFailed,
    Planned,
    Refuse,
    Resident,
    Start,
    Started,
    StartFailed,
    State,
    Stop,
    StopAsked,
    Stopped,
    Tell,
    Tick,
)
from oprel.scheduler.waits import first_of
from oprel.schema import Hardware, Model, Plan

__all__ = ["Granted", "Owner", "Registry"]

_log = logging.getLogger("oprel.scheduler")

_STOP_LIMIT_S = 60.0
"""Far above any driver's own deadline: a driver that breaks the contract must not keep the server from ending."""


class Registry(Protocol):
    """What the scheduler asks of `oprel.drivers.registry.Registry`. All may block, and are called in threads."""

    def hardware(self) -> Hardware: ...

    def choose(self, model: Model, hardware: Hardware, wanted: str = "auto") -> tuple[Driver, str]: ...

    def others(self, model: Model, hardware: Hardware, chosen: str | None) -> tuple[tuple[str, str], ...]: ...


@dataclass(frozen=True, slots=True)
class Granted:
    """`resident` as it was when the lease was given."""

    engine: Engine
    resident: Resident


@dataclass(frozen=True, slots=True)
class _Origin:
    """What a family's engine is made from: the model as it was asked for last."""

    model: Model
    driver: Driver


@dataclass(slots=True)
class _Running:
    engine: Engine
    label: str
    watch: asyncio.Task[None]


class Owner:
    """`run` is its life; nothing can be asked before it began or after it ended."""

    def __init__(self, *, registry: Registry, settings: Settings, clock: Clock) -> None:
        self.state = State(limits=fit.limits_of(settings))
        self.origins: dict[Family, _Origin] = {}
        self._registry = registry
        self._clock = clock
        self._running: dict[int, _Running] = {}
        self._starts: dict[int, asyncio.Task[None]] = {}
        self._granting: dict[int, asyncio.Future[Granted]] = {}
        self._inbox: deque[Event] = deque()
        self._is_deciding = False
        self._tickets = 0
        self._group: asyncio.TaskGroup | None = None
        self._is_closing = False
        self._timer_due: float | None = None
        self._changed = asyncio.Event()  # for the timer: something is due earlier
        self._posted = asyncio.Event()  # for those who wait for a state

    # -- its life

    async def run(self, begun: asyncio.Event) -> None:
        """Until `close`; on every path, a crash of this very code included, no engine is left."""
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                begun.set()
                await self._keep_time()
        finally:
            self._group = None
            for granting in self._granting.values():
                if not granting.done():
                    granting.set_exception(EngineFailedError("the scheduler ended"))
            for running in tuple(self._running.values()):
                await self._end(running)

    def close(self) -> None:
        """`run` ends once every engine has stopped, used or not."""
        self._is_closing = True
        self.post(StopAsked())
        self._changed.set()

    async def _keep_time(self) -> None:
        while not (self._is_closing and not self.state.residents):
            self._changed.clear()
            self._timer_due = next_wake(self.state)
            if self._timer_due is None:
                await self._changed.wait()
                continue
            await first_of(self._clock.sleep(self._timer_due - self._clock.monotonic()), self._changed.wait())
            if self._clock.monotonic() >= self._timer_due:
                self.post(Tick())

    async def wait_until_posted(self) -> None:
        """Returns after the next event was decided."""
        self._posted.clear()
        await self._posted.wait()

    # -- for requests

    def take_ticket(self) -> int:
        self._tickets += 1
        return self._tickets

    async def ask(self, asked: Asked, model: Model, driver: Driver) -> Granted:
        """Waits for a lease. Whatever comes of it, cancellation included, `leave` must follow with the same ticket."""
        if self._group is None:
            raise RuntimeError("the scheduler isn't running: use it as an async context manager")
        self.origins[asked.family] = _Origin(model, driver)
        granting: asyncio.Future[Granted] = asyncio.get_running_loop().create_future()
        self._granting[asked.ticket] = granting
        try:
            self.post(asked)
            return await granting
        finally:
            del self._granting[asked.ticket]

    def leave(self, ticket: int, family: Family, *, is_well: bool = False) -> None:
        self.post(Left(ticket, family, is_well))

    def engine_of(self, resident: Resident) -> Engine | None:
        running = self._running.get(resident.generation)
        return running.engine if running is not None else None

    # -- deciding

    def post(self, event: Event) -> None:
        """Decides and acts before it returns; an event that an action causes is decided after its actions."""
        self._inbox.append(event)
        if self._is_deciding:
            return
        self._is_deciding = True
        try:
            while self._inbox:
                self.state, actions = decide(self.state, self._inbox.popleft(), self._clock.monotonic())
                for action in actions:
                    self._act(action)
        finally:
            self._is_deciding = False
        self._posted.set()
        due = next_wake(self.state)
        if self._is_closing or (due is not None and (self._timer_due is None or due < self._timer_due)):
            self._changed.set()

    def _act(self, action: Action) -> None:
        match action:
            case Grant():
                self._grant(action)
            case Refuse():
                granting = self._granting.get(action.ticket)
                if granting is not None and not granting.done():
                    granting.set_exception(_twin(action.error))
            case MakePlan():
                self._spawn(self._plan(action))
            case Start():
                self._starts[action.generation] = self._spawn(self._start(action))
            case CancelStart():
                self._starts[action.generation].cancel()
            case Stop():
                self._spawn(self._stop(action))
            case Tell():
                _log.warning("%s", action.text)
            case _:
                assert_never(action)

    def _grant(self, grant: Grant) -> None:
        granting = self._granting.get(grant.ticket)
        if granting is None or granting.done():
            return  # given up in this very moment: its `leave` follows
        resident = next(r for r in self.state.residents.values() if r.generation == grant.generation)
        granting.set_result(Granted(self._running[grant.generation].engine, resident))

    # -- acting: none of these raises, for that would end the whole group

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        if self._group is None:
            work.close()
            raise RuntimeError("the scheduler isn't running: use it as an async context manager")
        return self._group.create_task(work)

    async def _plan(self, action: MakePlan) -> None:
        for other in action.others:
            running = self._running.get(other.generation)
            if running is not None and (measured := _measured(running.engine)) is not None:
                self.post(Measured(other.generation, measured))
        others = tuple(r for r in self.state.residents.values() if r.generation != action.generation)
        try:
            planned = await asyncio.to_thread(
                _make_plan, action, others, self.origins[action.family], self._registry, self.state.limits
            )
        except OprelError as error:
            self.post(PlanFailed(action.generation, error))
        except Exception as error:
            driver = action.family.driver
            _log.exception("the driver %s could not plan %s", driver, action.label)
            message = f"the driver {driver!r} failed to plan {action.label!r}: {error!r}"
            self.post(PlanFailed(action.generation, BackendError(message, driver=driver)))
        else:
            self.post(planned)

    async def _start(self, action: Start) -> None:
        driver, label, generation = self.origins[action.family].driver, action.plan.model, action.generation
        began = self._clock.monotonic()
        _log.info("loading %s on %s: %s", label, driver.name, _shape(action.plan))
        try:
            engine = await driver.start(action.plan)
        except asyncio.CancelledError:
            _log.info("loading %s was given up", label)
            self.post(Stopped(generation))
        except OprelError as error:
            _log.warning("loading %s failed: %s", label, error)
            self.post(StartFailed(generation, error, getattr(error, "cause", "engine")))
        except Exception as error:
            _log.exception("the driver %s could not start %s", driver.name, label)
            message = f"the driver {driver.name!r} failed to start {label!r}: {error!r}"
            self.post(StartFailed(generation, EngineStartError(message, driver=driver.name)))
        else:
            self._running[generation] = _Running(engine, label, self._spawn(self._watch(generation, engine)))
            _log.info("loaded %s in %.1f s: %s", label, self._clock.monotonic() - began, _shape(engine.plan))
            self.post(Started(generation, engine.plan, _measured(engine)))
        finally:
            self._starts.pop(generation, None)

    async def _watch(self, generation: int, engine: Engine) -> None:
        try:
            reason = await engine.wait_dead()
        except Exception as error:
            _log.exception("an engine can't be watched any more")
            reason = f"watching it failed: {error!r}"
        running = self._running.pop(generation, None)
        self.post(Died(generation, reason))
        if running is not None:
            await self._end(running)

    async def _stop(self, action: Stop) -> None:
        running = self._running.pop(action.generation, None)
        if running is not None:
            _log.info("unloading %s: %s", running.label, action.why)
            running.watch.cancel()
            await self._end(running)
        self.post(Stopped(action.generation))

    async def _end(self, running: _Running) -> None:
        try:
            async with asyncio.timeout(_STOP_LIMIT_S):
                await running.engine.stop()
        except Exception:
            _log.exception("the engine of %s did not stop as it should", running.label)


def _make_plan(
    action: MakePlan, others: tuple[Resident, ...], origin: _Origin, registry: Registry, limits: Limits
) -> Planned:
    """Two plans: as if the engine were alone, and, when there are others, for what they leave. Runs in a thread."""
    hardware = registry.hardware()
    is_alone = not any(fit.charge(other) for other in others)
    budget = fit.budget_of(hardware) if is_alone else limits.budget
    limits = fit.with_budget(limits, budget)
    options = fit.threads_beside(action.options, others, hardware)
    plan = origin.driver.plan(origin.model, options, fit.seen_free(hardware, fit.free(limits, ())))
    if is_alone:
        return Planned(action.generation, plan, budget=budget)
    beside: Plan | None = None
    with contextlib.suppress(OprelError):  # no plan for what is left: somebody must leave
        beside = origin.driver.plan(origin.model, options, fit.seen_free(hardware, fit.free(limits, others)))
    return Planned(action.generation, plan, beside=beside)


def _measured(engine: Engine) -> int | None:
    try:
        return engine.memory_bytes()
    except Exception:
        _log.exception("an engine's memory can't be measured")
        return None


def _shape(plan: Plan) -> str:
    return f"{plan.slots} slots of {plan.context_tokens} tokens, {plan.bytes_total / 2**20:.0f} MiB, {plan.device}"


def _twin(error: OprelError) -> OprelError:
    """One for each who is told: an exception that several tasks raise would mix up their tracebacks."""
    twin = type(error).__new__(type(error), *error.args)
    twin.__dict__.update(error.__dict__)
    twin.__cause__ = error.__cause__
    return twin
