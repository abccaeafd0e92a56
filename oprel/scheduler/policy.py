"""What to do next: a pure function of the state, what happened, and the time.

`decide` does no I/O, reads no clock and writes no log, so every rule can be tested without waiting. The owner
(`oprel.scheduler.owner`) runs the actions and reports back. The rules, in the order in which each
decision applies them:

1. Waiters get the free slots of ready engines: in turn between clients, in order for each client.
2. An engine drains when the next in turn wants other load options; it stops when its last lease ends. So does one that
   is to be unloaded, and one that was idle for its keep-alive.
3. One load at a time: for whoever waits longest for an engine that isn't there. If it doesn't fit, idle engines leave,
   the one not used for longest first; where none is idle, that one drains. An engine in use is never stopped.
4. A start that failed for the GPU's or the memory's sake goes down the plan's ladder. One that failed for good is told
   to all who wait for it; an engine that keeps failing is left alone for a while (`oprel.scheduler.crashes`).
"""

from __future__ import annotations

import math
from typing import assert_never

from oprel.errors import BusyError
from oprel.scheduler import fit, loading
from oprel.scheduler.crashes import refusal
from oprel.scheduler.draft import Draft, stopping_error
from oprel.scheduler.state import (
    Action,
    Asked,
    Died,
    DrainAsked,
    Event,
    Family,
    Grant,
    Left,
    Measured,
    PlanFailed,
    Planned,
    Refuse,
    Resident,
    Started,
    StartFailed,
    State,
    StopAsked,
    Stopped,
    Tick,
    UnloadAsked,
    Waiter,
)

__all__ = ["decide", "expires_in", "next_wake"]


def decide(state: State, event: Event, now: float) -> tuple[State, tuple[Action, ...]]:
    """The state after `event` and what must be done, in order. News of engines that are gone changes nothing."""
    draft = Draft(state, now)
    _apply(draft, event)
    _settle(draft)
    return draft.state(), tuple(draft.actions)


def next_wake(state: State) -> float | None:
    """When a Tick is due next: an idle engine's time is over, or a start has taken too long."""
    residents = state.residents.values()
    moments = [resident.deadline for resident in residents if resident.deadline is not None]
    moments += [r.used_at + r.keep_alive_s for r in residents if r.phase == "ready" and not r.is_held]
    return min((moment for moment in moments if not math.isinf(moment)), default=None)


def expires_in(resident: Resident, now: float) -> float:
    """Seconds until an engine is unloaded if nobody asks for it; its whole keep-alive while it is in use."""
    if resident.phase != "ready" or resident.is_held:
        return resident.keep_alive_s
    return max(0.0, resident.used_at + resident.keep_alive_s - now)


def _apply(draft: Draft, event: Event) -> None:
    match event:
        case Asked():
            _asked(draft, event)
        case Left():
            _left(draft, event)
        case Planned():
            loading.planned(draft, event)
        case PlanFailed():
            loading.plan_failed(draft, event)
        case Started():
            loading.started(draft, event)
        case StartFailed():
            loading.start_failed(draft, event)
        case Measured():
            if resident := draft.by_generation(event.generation):
                draft.put(resident, measured_bytes=event.measured_bytes)
        case Died():
            loading.died(draft, event.generation, event.reason)
        case Stopped():
            if resident := draft.by_generation(event.generation):
                del draft.residents[resident.family]
        case UnloadAsked():
            _unload_asked(draft, event)
        case DrainAsked():
            _drain(draft)
        case StopAsked():
            _drain(draft)
            for resident in tuple(draft.residents.values()):
                if resident.phase == "ready":
                    draft.stop(resident, "the server is stopping")
        case Tick():
            pass
        case _:
            assert_never(event)


def _settle(draft: Draft) -> None:
    loading.give_up_late(draft)
    _grant_all(draft)
    for resident in tuple(draft.residents.values()):
        _retire(draft, resident)
    loading.advance(draft)
    _grant_all(draft)  # what drained for a load that is no longer wanted serves again


# -- requests


def _asked(draft: Draft, asked: Asked) -> None:
    shut = stopping_error() if draft.is_stopping else None
    resident = draft.residents.get(asked.family)
    if resident is None or resident.phase != "ready":
        shut = shut or refusal(draft.crashes.get(asked.family), label=asked.label, now=draft.now)
    if shut is not None:
        draft.actions.append(Refuse(asked.ticket, shut))
        return
    waiter = Waiter(
        ticket=asked.ticket,
        turn=0,
        label=asked.label,
        client=asked.client,
        takes_slot=asked.takes_slot,
        wanted=asked.wanted,
        options=asked.options,
        keep_alive_s=asked.keep_alive_s,
    )
    draft.join(asked.family, waiter)
    _grant(draft, asked.family)
    if draft.waiting > draft.limits.max_queue:
        _turn_away(draft, asked)


def _turn_away(draft: Draft, asked: Asked) -> None:
    """The queue is full: the newcomer goes, unless it was served at once."""
    newcomer = next((w for w in draft.waiters(asked.family) if w.ticket == asked.ticket), None)
    if newcomer is not None:
        text = f"server busy: {draft.limits.max_queue} requests are waiting already; try again in a moment"
        draft.refuse(asked.family, newcomer, BusyError(text, retry_after_s=1.0))


def _left(draft: Draft, left: Left) -> None:
    for waiter in draft.waiters(left.family):
        if waiter.ticket == left.ticket:
            draft.leave(left.family, waiter)
            return
    resident = draft.residents.get(left.family)
    if resident is None or left.ticket not in resident.leases | resident.pins:
        return
    draft.put(
        resident,
        leases=resident.leases - {left.ticket},
        pins=resident.pins - {left.ticket},
        used_at=draft.now,
    )
    before = draft.crashes.get(left.family)
    if left.is_well and before is not None and before.on_probation:
        del draft.crashes[left.family]


def _grant_all(draft: Draft) -> None:
    for family in tuple(draft.residents):
        _grant(draft, family)


def _grant(draft: Draft, family: Family) -> None:
    """Gives what is free to those whose turn it is; begins to drain when the next one wants other options."""
    resident = draft.residents.get(family)
    if resident is None or resident.phase != "ready":
        return
    if resident.because == "reload":
        resident = draft.put(resident, barrier=None, because="")  # found out anew: who wanted it may have left
    while (waiter := _next_in_turn(resident, draft.waiters(family))) is not None:
        if not _serves(resident, waiter):
            resident = draft.put(resident, barrier=waiter.ticket, because=resident.because or "reload")
            continue
        if waiter.takes_slot and not _has_free_slot(resident):
            return
        resident = _give(draft, resident, waiter)


def _next_in_turn(resident: Resident, waiters: tuple[Waiter, ...]) -> Waiter | None:
    """Who takes no slot is not kept waiting by who does."""
    admitted = [w for w in waiters if resident.barrier is None or w.ticket < resident.barrier]
    if not _has_free_slot(resident):
        admitted = [w for w in admitted if not w.takes_slot and _serves(resident, w)] or admitted
    return min(admitted, key=lambda waiter: (waiter.turn, waiter.ticket), default=None)


def _serves(resident: Resident, waiter: Waiter) -> bool:
    return fit.is_served(waiter.wanted, asked=resident.options, plan=resident.known_plan)


def _has_free_slot(resident: Resident) -> bool:
    return len(resident.leases) < resident.known_plan.slots


def _give(draft: Draft, resident: Resident, waiter: Waiter) -> Resident:
    draft.leave(resident.family, waiter, served=True)
    draft.actions.append(Grant(waiter.ticket, resident.generation))
    return draft.put(
        resident,
        leases=resident.leases | {waiter.ticket} if waiter.takes_slot else resident.leases,
        pins=resident.pins if waiter.takes_slot else resident.pins | {waiter.ticket},
        used_at=draft.now,
        keep_alive_s=resident.keep_alive_s if waiter.keep_alive_s is None else waiter.keep_alive_s,
    )


# -- ends


def _retire(draft: Draft, resident: Resident) -> None:
    """Stops an idle engine that drained, or whose time is over. Its waiters, if it has any, wait for the next one."""
    if resident.phase != "ready" or resident.is_held:
        return
    match resident.because:
        case "unload":
            draft.stop(resident, "unloaded on request")
        case "reload":
            draft.stop(resident, "to load it again with other options")
        case "room":
            draft.stop(resident, "to make room")
        case _ if resident.used_at + resident.keep_alive_s <= draft.now:
            draft.stop(resident, "nobody used it for its keep-alive")


def _unload_asked(draft: Draft, event: UnloadAsked) -> None:
    resident = draft.residents.get(event.family)
    if resident is not None and resident.phase != "stopping":
        draft.put(resident, barrier=event.ticket, because="unload")


def _drain(draft: Draft) -> None:
    draft.is_stopping = True
    for family in tuple(draft.lines):
        draft.refuse_all(family, stopping_error())
