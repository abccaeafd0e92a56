"""How an engine comes up: whose turn it is, whether it fits, what leaves for it, what is tried when it fails."""

from __future__ import annotations

from collections.abc import Iterable

from oprel.errors import EngineStartError, InsufficientMemoryError, OprelError
from oprel.scheduler import fit
from oprel.scheduler.crashes import crashed, refusal
from oprel.scheduler.draft import Draft
from oprel.scheduler.state import (
    MakePlan,
    PlanFailed,
    Planned,
    Resident,
    Start,
    Started,
    StartFailed,
    Tell,
)
from oprel.schema import Plan, events

__all__ = ["advance", "died", "give_up_late", "plan_failed", "planned", "start_failed", "started"]

_FALLBACK_CAUSES = ("gpu", "memory")
# Reasons of a realized plan that a user must hear of without asking for the plan.
_SURPRISES = frozenset({"context_reduced", "gpu_fallback", "gpu_unused"})


def advance(draft: Draft) -> None:
    """Moves the one load that there is, or begins the next. What runs elsewhere waits for nothing that loads here."""
    for is_remote in (False, True):
        _advance(draft, is_remote)
    if not any(r.phase == "room" for r in draft.residents.values()):
        _undrain(draft)


def _advance(draft: Draft, is_remote: bool) -> None:
    current = next((r for r in draft.residents.values() if _is_loading(r, is_remote)), None)
    if current is not None and not draft.waiters(current.family):
        draft.give_up(current)  # all who wanted it have left
        current = None
    if current is None and not any(_is_loading(r, is_remote) for r in draft.residents.values()):
        current = _begin(draft, is_remote)
    if current is not None and current.phase == "room":
        _make_room(draft, current)


def _is_loading(resident: Resident, is_remote: bool) -> bool:
    return resident.is_loading and resident.family.is_remote == is_remote


def _begin(draft: Draft, is_remote: bool) -> Resident | None:
    """The family whose waiter has waited longest, of those that have no engine."""
    absent = [f for f in draft.lines if f not in draft.residents and f.is_remote == is_remote]
    if not absent:
        return None
    family = min(absent, key=lambda family: min(waiter.ticket for waiter in draft.waiters(family)))
    first = min(draft.waiters(family), key=lambda waiter: (waiter.turn, waiter.ticket))
    draft.generation += 1
    resident = Resident(
        family=family,
        generation=draft.generation,
        label=first.label,
        options=first.options,
        keep_alive_s=draft.limits.keep_alive_s,
        used_at=draft.now,
    )
    draft.residents[family] = resident
    others = tuple(draft.others(resident))
    draft.actions.append(MakePlan(family, resident.generation, first.label, first.options, others))
    return resident


# -- plans


def planned(draft: Draft, event: Planned) -> None:
    resident = draft.by_generation(event.generation)
    if resident is None or resident.phase != "planning":
        return
    if event.budget is not None:
        draft.limits = fit.with_budget(draft.limits, event.budget)
    possible = tuple(plan for plan in (event.plan, *event.plan.fallbacks) if _can_fit(draft, plan))
    if not possible:
        _refuse_same(draft, resident, _too_large(draft, resident, event.plan))
        return
    beside = event.beside
    if beside is not None and not fit.is_good_beside(beside, event.plan):
        beside = None
    warnings: tuple[events.Warning, ...] = ()
    if possible[0] is not event.plan:
        text = f"{_shortage(draft, resident, event.plan)[0]}; running {_where(possible[0])} instead"
        warnings = (events.Warning(_fallback_code("gpu" if event.plan.bytes_on_gpu else "memory"), text),)
    draft.put(resident, phase="room", plan=possible[0], beside=beside, ladder=possible[1:], warnings=warnings)


def plan_failed(draft: Draft, event: PlanFailed) -> None:
    resident = draft.by_generation(event.generation)
    if resident is not None and resident.phase == "planning":
        _refuse_same(draft, resident, event.error)


def _refuse_same(draft: Draft, resident: Resident, error: OprelError) -> None:
    """There is no plan with these options; others who wait may have asked for less."""
    del draft.residents[resident.family]
    for waiter in draft.waiters(resident.family):
        if waiter.options == resident.options:
            draft.refuse(resident.family, waiter, error)


def _can_fit(draft: Draft, plan: Plan) -> bool:
    return not fit.deficit(plan, fit.free(draft.limits, ()))


def _too_large(draft: Draft, resident: Resident, plan: Plan) -> InsufficientMemoryError:
    text, needed, available = _shortage(draft, resident, plan)
    advice = "take a smaller model or quantization, or a shorter context"
    return InsufficientMemoryError(f"{text}: {advice}", needed_bytes=needed, available_bytes=available)


def _shortage(draft: Draft, resident: Resident, plan: Plan) -> tuple[str, int, int]:
    """What a plan that can't fit misses most: a clause, bytes needed, bytes available."""
    alone = fit.free(draft.limits, ())
    device, missing = max(fit.deficit(plan, alone).items(), key=lambda item: item[1])
    available = alone[device]
    where = {"cpu": "of RAM", "": "in all (the memory limit)"}.get(device, f"on {device}")
    needed = available + missing
    text = f"{resident.label!r} needs {_gib(needed)} {where} and at most {_gib(available)} can be had"
    return text, needed, available


# -- room


def _make_room(draft: Draft, resident: Resident) -> None:
    """Starts what fits; else stops idle engines, or lets one drain. Called again whenever anything changes."""
    plan = resident.known_plan
    others = draft.others(resident)
    for candidate in (plan, resident.beside):
        if candidate is not None and _fits(draft, candidate, others):
            _start(draft, resident, candidate)
            return
    staying = [other for other in others if other.phase != "stopping"]
    while not _fits(draft, plan, staying):
        victim = _victim(draft, plan, staying)
        if victim is None:
            return
        if victim.is_held:
            _let_drain(draft, resident, victim)
            return
        staying.remove(victim)
        draft.stop(victim, f"to make room for {resident.label}")
    _undrain(draft)


def _fits(draft: Draft, plan: Plan, others: Iterable[Resident]) -> bool:
    if plan.remote is not None:
        return True
    others = [other for other in others if not other.family.is_remote]
    most = draft.limits.max_loaded
    return (most is None or len(others) < max(1, most)) and not fit.deficit(plan, fit.free(draft.limits, others))


def _victim(draft: Draft, plan: Plan, staying: list[Resident]) -> Resident | None:
    """Who leaves next: an idle engine, the one not used for longest; where none is idle, the one to drain, which stays
    the same until it is gone. None: nothing to do but wait."""
    missing = fit.deficit(plan, fit.free(draft.limits, staying))
    useful = [r for r in staying if r.phase == "ready" and not r.family.is_remote and _holds_any(r, missing)]
    idle = [r for r in useful if not r.is_held]
    if idle:
        return min(idle, key=lambda r: r.used_at)
    if any(r.barrier is not None for r in useful):
        return None
    return min(useful, key=lambda r: r.used_at, default=None)


def _holds_any(resident: Resident, missing: dict[str, int]) -> bool:
    """Whether its end helps; nothing is missing when only the number of engines is in the way."""
    return not missing or "" in missing or bool(missing.keys() & fit.charge(resident).keys())


def _let_drain(draft: Draft, resident: Resident, victim: Resident) -> None:
    first = min(waiter.ticket for waiter in draft.waiters(resident.family))
    draft.put(victim, barrier=first, because="room")
    draft.actions.append(
        Tell(f"{victim.label} finishes its requests and then leaves, to make room for {resident.label}")
    )


def _undrain(draft: Draft) -> None:
    for other in tuple(draft.residents.values()):
        if other.because == "room" and other.phase == "ready":
            draft.put(other, barrier=None, because="")


# -- starting


def _start(draft: Draft, resident: Resident, plan: Plan) -> None:
    ladder = resident.ladder
    if plan is resident.beside:
        ladder = tuple(rung for rung in plan.fallbacks if _can_fit(draft, rung))
    deadline = draft.now + draft.limits.load_timeout_s
    draft.put(resident, phase="starting", plan=plan, beside=None, ladder=ladder, deadline=deadline)
    draft.actions.append(Start(resident.family, resident.generation, plan))


def started(draft: Draft, event: Started) -> None:
    resident = draft.by_generation(event.generation)
    if resident is None:
        return
    if resident.phase != "starting":
        draft.stop(resident, "nobody waits for it any more")
        return
    draft.put(
        resident,
        phase="ready",
        plan=event.plan,
        ladder=(),
        deadline=None,
        ready_at=draft.now,
        used_at=draft.now,
        measured_bytes=event.measured_bytes,
        warnings=(*resident.warnings, *_told_by(event.plan)),
    )


def start_failed(draft: Draft, event: StartFailed) -> None:
    resident = draft.by_generation(event.generation)
    if resident is None:
        return
    if resident.phase != "starting":
        del draft.residents[resident.family]
        return
    if event.cause in _FALLBACK_CAUSES and resident.ladder:
        _step_down(draft, resident, event)
        return
    del draft.residents[resident.family]
    draft.refuse_all(resident.family, event.error)
    _record_crash(draft, resident, event.error.message)


def _step_down(draft: Draft, resident: Resident, event: StartFailed) -> None:
    plan, *rest = resident.ladder
    text = f"{event.error.message.rstrip('.')}; running {_where(plan)} instead"
    warning = events.Warning(_fallback_code(event.cause), text)
    draft.put(resident, phase="room", plan=plan, ladder=tuple(rest), deadline=None, warnings=(warning,))
    draft.actions.append(Tell(f"{resident.label}: {event.error.message}; trying {_where(plan)}"))


def give_up_late(draft: Draft) -> None:
    """Ends the starts that took too long."""
    limit = draft.limits.load_timeout_s
    for resident in tuple(draft.residents.values()):
        if resident.phase != "starting" or resident.deadline is None or resident.deadline > draft.now:
            continue
        message = (
            f"{resident.label!r} did not load within {limit:g} s on the driver {resident.family.driver!r}: "
            "raise load_timeout, or choose a smaller model"
        )
        draft.give_up(resident)
        draft.refuse_all(resident.family, EngineStartError(message, driver=resident.family.driver))
        _record_crash(draft, resident, message)


def died(draft: Draft, generation: int, reason: str) -> None:
    """Its memory is free from now on, and whoever waits for it makes it load anew."""
    resident = draft.by_generation(generation)
    if resident is None or resident.phase == "stopping":
        return
    del draft.residents[resident.family]
    draft.actions.append(Tell(f"the engine of {resident.label} ended: {reason}"))
    _record_crash(draft, resident, reason)


def _record_crash(draft: Draft, resident: Resident, reason: str) -> None:
    family = resident.family
    draft.crashes[family] = crashed(draft.crashes.get(family), reason=reason, now=draft.now)
    shut = refusal(draft.crashes[family], label=resident.label, now=draft.now)
    if shut is not None:
        draft.refuse_all(family, shut)
        draft.actions.append(Tell(shut.message))


def _told_by(plan: Plan) -> tuple[events.Warning, ...]:
    """What the engine came up with that the user didn't ask for: no silent surprises."""
    return tuple(events.Warning(subject, text) for subject, text in plan.reasons if subject in _SURPRISES)


def _fallback_code(cause: str) -> str:
    return "gpu_fallback" if cause == "gpu" else "memory_fallback"


def _where(plan: Plan) -> str:
    if plan.device == "cpu":
        return "on the CPU"
    if isinstance(plan.gpu_layers, int) and plan.layers is not None:
        return f"with {min(plan.gpu_layers, plan.layers)} of {plan.layers} layers on the GPU"
    return f"on {plan.device}"


def _gib(size: int) -> str:
    return f"{size / 1024**3:.1f} GiB"
