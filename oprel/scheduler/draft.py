"""The next state while one decision makes it: plain dictionaries, and the few moves that all rules share."""

from __future__ import annotations

from typing import Any

import msgspec

from oprel.errors import BusyError, OprelError
from oprel.scheduler.state import (
    Action,
    CancelStart,
    Crashes,
    Family,
    Line,
    Refuse,
    Resident,
    State,
    Stop,
    Waiter,
)

__all__ = ["Draft", "stopping_error"]


class Draft:
    """Nothing of it outlives its decision; the mappings of the state that it was made from are copied, not changed."""

    def __init__(self, state: State, now: float) -> None:
        self.now = now
        self.limits = state.limits
        self.residents: dict[Family, Resident] = dict(state.residents)
        self.lines: dict[Family, Line] = dict(state.lines)
        self.crashes: dict[Family, Crashes] = dict(state.crashes)
        self.generation = state.generation
        self.is_stopping = state.is_stopping
        self.actions: list[Action] = []

    def state(self) -> State:
        return State(
            limits=self.limits,
            residents=self.residents,
            lines=self.lines,
            crashes=self.crashes,
            generation=self.generation,
            is_stopping=self.is_stopping,
        )

    def by_generation(self, generation: int) -> Resident | None:
        return next((r for r in self.residents.values() if r.generation == generation), None)

    def put(self, resident: Resident, **changes: Any) -> Resident:
        changed = msgspec.structs.replace(resident, **changes)
        self.residents[resident.family] = changed
        return changed

    def others(self, resident: Resident) -> list[Resident]:
        return [other for other in self.residents.values() if other.family != resident.family]

    # -- lines

    def waiters(self, family: Family) -> tuple[Waiter, ...]:
        line = self.lines.get(family)
        return line.waiters if line is not None else ()

    @property
    def waiting(self) -> int:
        return sum(len(line.waiters) for line in self.lines.values())

    def join(self, family: Family, waiter: Waiter) -> None:
        """`waiter` with its turn: behind its own client's, and never before those who are being served now."""
        line = self.lines.get(family, Line())
        own = (other.turn for other in line.waiters if other.client == waiter.client)
        waiter = msgspec.structs.replace(waiter, turn=max(line.turn, *own, 0) + 1)
        self.lines[family] = Line((*line.waiters, waiter), line.turn)

    def leave(self, family: Family, waiter: Waiter, *, served: bool = False) -> None:
        line = self.lines[family]
        rest = tuple(other for other in line.waiters if other is not waiter)
        if rest:
            self.lines[family] = Line(rest, max(line.turn, waiter.turn) if served else line.turn)
        else:
            del self.lines[family]

    def refuse(self, family: Family, waiter: Waiter, error: OprelError) -> None:
        self.leave(family, waiter)
        self.actions.append(Refuse(waiter.ticket, error))

    def refuse_all(self, family: Family, error: OprelError) -> None:
        for waiter in self.waiters(family):
            self.refuse(family, waiter, error)

    # -- engines

    def stop(self, resident: Resident, why: str) -> None:
        self.put(resident, phase="stopping", deadline=None)
        self.actions.append(Stop(resident.generation, why))

    def give_up(self, resident: Resident) -> None:
        """Ends a load, however far it is."""
        if resident.phase == "starting":
            self.put(resident, phase="stopping", deadline=None)
            self.actions.append(CancelStart(resident.generation))
        else:
            del self.residents[resident.family]


def stopping_error() -> BusyError:
    return BusyError("the server is stopping: try again when it is back", retry_after_s=5.0)
