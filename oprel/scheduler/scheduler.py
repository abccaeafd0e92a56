"""The scheduler as others see it: leases, unloading, listing, draining."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Literal

import msgspec

from oprel.config import Settings
from oprel.drivers import Driver
from oprel.drivers.prospects import Prospect, look_ahead
from oprel.drivers.templated import engine_for, plan_for
from oprel.errors import OprelError
from oprel.scheduler import fit
from oprel.scheduler.catalog import Catalog
from oprel.scheduler.clock import Clock, SystemClock
from oprel.scheduler.lease import Lease, LoadedModel
from oprel.scheduler.needs import NEEDS, check_engine, check_model, check_undamaged
from oprel.scheduler.owner import Granted, Owner, Registry
from oprel.scheduler.policy import expires_in
from oprel.scheduler.reading import FileReader
from oprel.scheduler.state import Asked, DrainAsked, Family, Resident, UnloadAsked
from oprel.scheduler.waits import first_of
from oprel.schema import LoadOptions, Model, events

__all__ = ["Catalog", "Scheduler"]

_log = logging.getLogger("oprel.scheduler")

_SHORTEST_LOAD_S = 1e-6
"""A load that took no time that can be measured still isn't told as 0, which reads as "not known"."""


class Scheduler:
    """All engines and who may use them. An async context manager: engines run only inside it, and none is left after
    it. Safe to use from one event loop."""

    def __init__(self, *, catalog: Catalog, registry: Registry, settings: Settings, clock: Clock | None = None) -> None:
        self._catalog = catalog
        self._registry = registry
        self._settings = settings
        self._clock = clock or SystemClock()
        self._owner = Owner(registry=registry, settings=settings, clock=self._clock)
        self._drivers: dict[tuple[str, str], Driver] = {}
        self._reader = FileReader(catalog)
        self._running: asyncio.Task[None] | None = None
        self._preloading: asyncio.Task[None] | None = None
        self._is_preloaded = not settings.preload

    def __repr__(self) -> str:
        state = self._owner.state
        engines = ", ".join(f"{r.label} {r.phase}" for r in state.residents.values()) or "nothing loaded"
        return f"<Scheduler: {engines}; {state.waiting} waiting>"

    async def __aenter__(self) -> Scheduler:
        begun = asyncio.Event()
        self._running = asyncio.create_task(self._owner.run(begun), name="oprel scheduler")
        await begun.wait()
        if self._settings.preload:
            self._preloading = asyncio.create_task(self._preload(), name="oprel preload")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._preloading is not None:
                self._preloading.cancel()
                await asyncio.gather(self._preloading, return_exceptions=True)
            await self.drain()
        finally:
            self._reader.close()
            self._owner.close()
            if self._running is not None:
                await self._running

    # -- leases

    def lease(
        self,
        model: str,
        *,
        need: str,
        load: LoadOptions | None = None,
        keep_alive: float | None = None,
        client: str = "",
    ) -> AbstractAsyncContextManager[Lease]:
        """A slot of the engine for `model`, from the moment that it is free to the end of the block.

        `need`: "chat", "complete", "embed", "rerank", or "load" (any use; takes no slot, and keeps the engine
        meanwhile). `keep_alive` (seconds, inf for ever, 0: unload when the request ends) stays the model's until a
        request says otherwise, and is at most the setting `max_keep_alive`; None: what it has, or the setting.
        `client` is whom to be fair to. Entering raises
        ModelNotFoundError, InvalidNameError, ModelDamagedError, UnsupportedError, BusyError,
        InsufficientMemoryError, DriverUnavailableError or EngineStartError. Cancelling, while it waits or later,
        gives everything back.
        """
        if need not in NEEDS:
            raise ValueError(f"need is {need!r} and must be one of {', '.join(NEEDS)}")
        return _Leasing(self, model, need=need, load=load or LoadOptions(), keep_alive_s=keep_alive, client=client)

    async def resolve(self, name: str) -> tuple[Model, Driver]:
        """The model and the driver that runs it; raises as `lease` does."""
        model, driver, is_known = await asyncio.to_thread(self._resolve, name)
        if not is_known:
            await self._reader.check(model)
        return model, driver

    def _resolve(self, name: str) -> tuple[Model, Driver, bool]:
        model = self._catalog.find(name)
        check_undamaged(model)
        driver = self._drivers.get((model.name, model.digest))
        if driver is None:
            driver, reason = self._registry.choose(model, self._registry.hardware(), self._settings.driver)
            _log.info("%s runs on %s: %s", model.name, driver.name, reason)
            self._drivers[model.name, model.digest] = driver
        return model, driver, self._catalog.are_files_known(model)

    async def prospects(self, models: Sequence[Model]) -> tuple[Prospect, ...]:
        """What would serve each of `models`, or serves it now; nothing is loaded for this, and nothing raises."""
        found = await asyncio.to_thread(self._look_ahead, models)
        return tuple(self._as_it_is(model, prospect) for model, prospect in zip(models, found, strict=True))

    def _look_ahead(self, models: Sequence[Model]) -> list[Prospect]:
        hardware = self._registry.hardware()
        wanted = self._settings.driver
        return [
            look_ahead(
                self._registry,
                model,
                hardware,
                options=fit.merged(LoadOptions(), self._settings, model),
                wanted=wanted,
            )
            for model in models
        ]

    def _as_it_is(self, model: Model, prospect: Prospect) -> Prospect:
        """An engine that is there tells more than any plan."""
        resident = self._resident_of(model)
        engine = self._owner.engine_of(resident) if resident is not None else None
        if engine is None:
            return prospect
        engine = engine_for(model, engine)
        return msgspec.structs.replace(
            prospect, plan=engine.plan, problem=None, capabilities=engine.capabilities, is_loaded=True
        )

    # -- the whole

    async def unload(self, model: str) -> bool:
        """True if it was loaded, or being loaded. Requests that run or wait already are served first; when there are
        none, the engine has ended when this returns. Raises as finding the model does."""
        found = await asyncio.to_thread(self._catalog.find, model)
        resident = self._resident_of(found)
        if resident is None or resident.phase == "stopping":
            return False
        self._owner.post(UnloadAsked(resident.family, self._owner.take_ticket()))
        while (now := self._resident(resident.generation)) is not None and now.phase == "stopping":
            await self._owner.wait_until_posted()
        return True

    def loaded(self) -> tuple[LoadedModel, ...]:
        """Those that are planned at least; the one that stays longest first."""
        listed = [self._listed(r) for r in self._owner.state.residents.values() if r.plan and r.phase != "stopping"]
        return tuple(sorted(listed, key=lambda entry: -entry.expires_at))

    @property
    def is_ready(self) -> bool:
        """Whether preloading is done, each model of it loaded or failed (the log tells)."""
        return self._is_preloaded

    async def drain(self) -> None:
        """Refuses new leases and those that wait (BusyError), then waits for the leases there are, at most
        `settings.drain_timeout` seconds. Safe to call twice."""
        self._owner.post(DrainAsked())
        if self._in_use:
            _log.info("waiting for %d requests to end", self._in_use)
        await first_of(self._clock.sleep(self._settings.drain_timeout), self._wait_unused())
        if self._in_use:
            _log.warning("%d requests still run after %g s: ending them", self._in_use, self._settings.drain_timeout)

    # -- inside

    async def _preload(self) -> None:
        for name in self._settings.preload:
            try:
                async with self.lease(name, need="load"):
                    pass
            except OprelError as error:
                _log.error("preloading %s failed: %s", name, error)
            except Exception:
                _log.exception("preloading %s failed", name)
        self._is_preloaded = True

    def _resident(self, generation: int) -> Resident | None:
        residents = self._owner.state.residents.values()
        return next((r for r in residents if r.generation == generation), None)

    def _resident_of(self, model: Model) -> Resident | None:
        digests = _digests(model)
        return next((r for r in self._owner.state.residents.values() if r.family.digests == digests), None)

    @property
    def _in_use(self) -> int:
        return sum(len(r.leases) + len(r.pins) for r in self._owner.state.residents.values())

    async def _wait_unused(self) -> None:
        while self._in_use:
            await self._owner.wait_until_posted()

    def _listed(self, resident: Resident) -> LoadedModel:
        model = self._owner.origins[resident.family].model
        plan = plan_for(model, resident.known_plan)
        held = fit.charge(resident) or dict(plan.bytes_by_device)
        line = self._owner.state.lines.get(resident.family)
        state: Literal["starting", "ready", "draining"] = "starting"
        if resident.phase == "ready":
            state = "ready" if resident.barrier is None else "draining"
        return LoadedModel(
            model=model,
            name=model.name,
            plan=plan,
            size_bytes=sum(held.values()),
            vram_bytes=sum(size for device, size in held.items() if device != "cpu"),
            expires_at=self._clock.wall() + expires_in(resident, self._clock.monotonic()),
            slots=plan.slots,
            slots_in_use=len(resident.leases),
            queued=len(line.waiters) if line is not None else 0,
            state=state,
            warnings=resident.warnings,
        )

    async def _take(self, leasing: _Leasing) -> Lease:
        arrived = self._clock.monotonic()
        model, driver = await self.resolve(leasing.name)
        check_model(model, leasing.need, load=leasing.load, settings=self._settings)
        family = Family(driver.name, _digests(model), is_remote=model.remote is not None)
        resident = self._owner.state.residents.get(family)
        if resident is not None and (engine := self._owner.engine_of(resident)) is not None:
            check_engine(model, leasing.need, engine_for(model, engine))
        resolved = self._clock.monotonic()
        asked = Asked(
            ticket=self._owner.take_ticket(),
            family=family,
            label=model.name,
            client=leasing.client,
            takes_slot=leasing.need != "load",
            wanted=leasing.load,
            options=fit.merged(leasing.load, self._settings, model),
            keep_alive_s=_within(leasing.keep_alive_s, self._settings.max_keep_alive),
        )
        try:
            granted = await self._owner.ask(asked, model, driver)
            engine = engine_for(model, granted.engine)
            check_engine(model, leasing.need, engine)
        except BaseException:
            self._owner.leave(asked.ticket, family)
            raise
        leasing.held = asked
        load_s = max(granted.resident.ready_at - arrived, resolved - arrived, _SHORTEST_LOAD_S)
        return Lease(
            engine=engine,
            model=model,
            plan=engine.plan,
            load_s=load_s,
            queued_s=max(0.0, self._clock.monotonic() - arrived - load_s),
            warnings=(*_warnings(granted, leasing.load), *_capped(leasing.keep_alive_s, self._settings.max_keep_alive)),
        )

    def _give_back(self, asked: Asked, *, is_well: bool) -> None:
        self._owner.leave(asked.ticket, asked.family, is_well=is_well)


class _Leasing(AbstractAsyncContextManager[Lease]):
    """One request's way to a lease and back; entered once."""

    def __init__(
        self,
        scheduler: Scheduler,
        name: str,
        *,
        need: str,
        load: LoadOptions,
        keep_alive_s: float | None,
        client: str,
    ) -> None:
        self.name = name
        self.need = need
        self.load = load
        self.keep_alive_s = keep_alive_s
        self.client = client
        self.held: Asked | None = None
        self._scheduler = scheduler

    async def __aenter__(self) -> Lease:
        return await self._scheduler._take(self)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.held is not None:
            self._scheduler._give_back(self.held, is_well=kind is None)
            self.held = None


def _digests(model: Model) -> tuple[str, ...]:
    """What makes two models the same to an engine; a model without files (a remote one) is only like itself."""
    return tuple(f"{file.role}:{file.digest}" for file in model.files) or (model.digest,)


def _within(keep_alive_s: float | None, most_s: float) -> float | None:
    return None if keep_alive_s is None else min(keep_alive_s, most_s)


def _capped(keep_alive_s: float | None, most_s: float) -> tuple[events.Warning, ...]:
    if keep_alive_s is None or keep_alive_s <= most_s:
        return ()
    return (events.Warning("keep_alive_capped", f"the model stays loaded for {most_s:g} s, the most that is allowed"),)


def _warnings(granted: Granted, wanted: LoadOptions) -> tuple[events.Warning, ...]:
    plan = granted.engine.plan
    told = list(granted.resident.warnings)
    if wanted.context_tokens is not None and wanted.context_tokens > plan.context_tokens:
        text = f"a context of {wanted.context_tokens} tokens was asked for and {plan.context_tokens} are in use"
        told.append(events.Warning("context_reduced", text))
    if plan.remote is not None and msgspec.structs.replace(wanted, context_tokens=None) != LoadOptions():
        text = "how a remote model is loaded is its server's business: load options have no effect"
        told.append(events.Warning("parameter_ignored", text))
    return tuple(told)
