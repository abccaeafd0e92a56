"""A third party's driver, held to the contract: what it answers is looked at, what it raises is named, and what doesn't
return in time isn't waited for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

from msgspec import Struct

from oprel.drivers.calls import Hung, Raised, bounded, contained, held, let_go, outcome_of
from oprel.drivers.checked.faults import broke, log, own_error
from oprel.drivers.checked.processes import Claim, descendants, end_all
from oprel.drivers.contract import Driver, Engine
from oprel.errors import BackendError, EngineStartError
from oprel.schema import (
    Availability,
    Capabilities,
    EngineProbe,
    Hardware,
    LoadOptions,
    Model,
    Plan,
    Support,
    promised,
)

__all__ = ["CheckedDriver", "Limits"]

_STOP_S = 30.0

T = TypeVar("T")


class Limits(Struct, frozen=True):
    """Seconds. `quick`: availability, supports, capabilities; a driver that takes longer is not asked again."""

    quick_s: float = 5.0
    plan_s: float = 30.0
    probe_s: float = 30.0
    stop_s: float = _STOP_S


class CheckedDriver(Driver):
    """Everything that a driver promises, kept in its place. `inner` is the driver itself."""

    def __init__(self, inner: Driver, *, name: str = "", limits: Limits | None = None) -> None:
        super().__init__(inner.options)
        self.inner = inner
        self.name = name or inner.name  # type: ignore[misc]  # each instance wraps another driver
        self.can = _declared(inner)  # type: ignore[misc]
        self._limits = limits or Limits()
        self._hung: str | None = None

    def __repr__(self) -> str:
        return f"<CheckedDriver of {self.name}>"

    # -- what is answered at once

    def probe(self) -> tuple[EngineProbe, ...]:
        try:
            found = tuple(self._ask("probe", self.inner.probe, self._limits.probe_s))
            if all(isinstance(probe, EngineProbe) for probe in found):
                return found
            problem = "its probe() returned what isn't an EngineProbe"
        except (_Fault, TypeError) as fault:
            problem = str(fault)
        return (EngineProbe(driver=self.name, engine=self.name, command=(), problem=problem),)

    def availability(self, hardware: Hardware) -> Availability:
        try:
            return self._asked("availability", Availability, lambda: self.inner.availability(hardware))
        except _Fault as fault:
            return Availability(usable=False, reason=str(fault))

    def supports(self, model: Model) -> Support:
        try:
            return self._asked("supports", Support, lambda: self.inner.supports(model))
        except _Fault as fault:
            return Support(supported=False, reason=str(fault))

    def capabilities(self, model: Model, hardware: Hardware) -> Capabilities:
        try:
            return self._asked("capabilities", Capabilities, lambda: self.inner.capabilities(model, hardware))
        except _Fault as fault:
            log.error("%s", broke(self.name, fault))
            return promised(model, self.can)

    def plan(self, model: Model, options: LoadOptions, hardware: Hardware) -> Plan:
        try:
            plan = self._ask("plan", lambda: self.inner.plan(model, options, hardware), self._limits.plan_s)
        except _Fault as fault:
            if fault.own is not None:
                raise fault.own from None
            raise self._failure(fault) from fault.__cause__
        for step in (plan, *plan.fallbacks) if isinstance(plan, Plan) else (plan,):
            if (wrong := _wrong_plan(step, self.name)) is not None:
                raise self._failure(f"its plan() {wrong}")
        return plan

    # -- starting

    async def start(self, plan: Plan) -> Engine:
        before = await asyncio.to_thread(descendants)
        try:
            engine = await self._started(plan)
        except BaseException:
            await self._end_leftovers(before, "its start() failed or was cancelled, and left")
            raise
        # Here, since it imports the HTTP client: listing drivers doesn't need it.
        from oprel.drivers.checked.engine import CheckedEngine

        claim = Claim(before, await asyncio.to_thread(descendants), self.options.run_dir)
        return CheckedEngine(engine, driver=self.name, plan=plan, options=self.options, claim=claim)

    async def _started(self, plan: Plan) -> Engine:
        work = contained(lambda: self.inner.start(plan))
        starting = asyncio.create_task(work)
        try:
            await asyncio.wait({starting})
        except asyncio.CancelledError:
            if not await let_go(starting, work):
                log.error("%s", broke(self.name, "its start() went on when it was cancelled: it was closed by force"))
            await self._stop_late(starting)
            raise
        try:
            engine = outcome_of(starting)
        except Raised as raised:
            if (own := own_error(raised)) is not None:
                raise own from None
            raise self._start_failure(plan, f"its start() {raised}") from raised.error
        if (wrong := _wrong_engine(engine)) is not None:
            await self._stop_late(starting)
            raise self._start_failure(plan, f"its start() {wrong}")
        return engine

    async def _stop_late(self, starting: asyncio.Task[Any]) -> None:
        """An engine that came up when nobody wanted it any more."""
        if not starting.done() or starting.cancelled() or isinstance(starting.result(), Raised):
            return
        stop = getattr(starting.result(), "stop", None)
        if stop is None:
            return
        try:
            await held(stop, limit_s=self._limits.stop_s)
        except (Raised, Hung) as failure:
            log.error("%s", broke(self.name, f"its engine's stop() {failure}"))

    async def _end_leftovers(self, before: dict[int, str], how: str) -> None:
        claim = Claim(before, descendants(), self.options.run_dir)
        if left := await end_all(claim):
            names = ", ".join(f"{name} ({pid})" for pid, name in left.items())
            log.error("%s", broke(self.name, f"{how} {names} running: ended now"))

    # -- inside

    def _asked(self, what: str, kind: type[T], call: Callable[[], object]) -> T:
        found = self._ask(what, call, self._limits.quick_s)
        if not isinstance(found, kind):
            raise _Fault(f"its {what}() returned a {type(found).__name__} and not {kind.__name__}")
        if isinstance(found, Availability | Support) and not isinstance(found.reason, str):
            raise _Fault(f"its {what}() gave a reason that isn't text")
        return found

    def _ask(self, what: str, call: Callable[[], T], limit_s: float) -> T:
        if self._hung is not None:  # each call more would leave one thread more behind
            raise _Fault(self._hung)
        try:
            return bounded(call, limit_s=limit_s)
        except Hung as hung:
            self._hung = f"its {what}() {hung}, and it isn't asked again until Oprel is started anew"
            log.error("%s", broke(self.name, self._hung))
            raise _Fault(self._hung) from None
        except Raised as raised:
            raise _Fault(f"its {what}() {raised}", raised) from raised.error

    def _failure(self, what: object) -> BackendError:
        return BackendError(broke(self.name, what), driver=self.name)

    def _start_failure(self, plan: Plan, what: str) -> EngineStartError:
        return EngineStartError(f"{plan.model!r} can't be loaded: {broke(self.name, what)}", driver=self.name)


class _Fault(Exception):
    """`own`: the error of our tree that was raised, where it was one."""

    def __init__(self, text: str, raised: Raised | None = None) -> None:
        super().__init__(text)
        self.own = own_error(raised) if raised is not None else None


def _declared(inner: Driver) -> Capabilities | None:
    can = getattr(inner, "can", None)
    return can if isinstance(can, Capabilities) else None


def _wrong_plan(plan: object, driver: str) -> str | None:
    if not isinstance(plan, Plan):
        return f"returned a {type(plan).__name__} and not a Plan"
    if plan.driver != driver:
        return f"says that it is the driver {plan.driver!r}"
    counts = {"slots": plan.slots, "context_tokens": plan.context_tokens}
    for name, count in counts.items():
        if type(count) is not int or count < 1:
            return f"planned {count!r} {name}"
    try:
        sizes = [size for _, size in plan.bytes_by_device]
    except (TypeError, ValueError):
        return f"gave {plan.bytes_by_device!r} as memory by device"
    if not all(type(size) is int and size >= 0 for size in sizes):
        return f"gave {plan.bytes_by_device!r} as memory by device"
    return None


def _wrong_engine(engine: object) -> str | None:
    if not isinstance(engine, Engine):
        return f"returned a {type(engine).__name__} and not an Engine"
    if not isinstance(getattr(engine, "plan", None), Plan):
        return "returned an engine without a plan"
    if not isinstance(getattr(engine, "capabilities", None), Capabilities):
        return "returned an engine without capabilities"
    return None
