"""The scheduler's state, what may happen to it, and what it may ask to be done: all of it immutable data.

    planning ──► room ──► starting ──► ready ──► stopping ──► (gone)
                  ▲           │          │           ▲
                  └─ fallback ┘          └─ (died: gone at once)
                              └── given up, too slow ┘

A draining engine is a ready one with a `barrier`: it takes only tickets below it, and stops when the last lease ends.
Times are monotonic seconds, sizes bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from msgspec import Struct

from oprel.errors import OprelError
from oprel.schema import LoadOptions, Plan, events

__all__ = [
    "Action",
    "Asked",
    "CancelStart",
    "Crashes",
    "Died",
    "DrainAsked",
    "Event",
    "Family",
    "Grant",
    "Left",
    "Limits",
    "Line",
    "MakePlan",
    "Measured",
    "Phase",
    "PlanFailed",
    "Planned",
    "Refuse",
    "Resident",
    "Start",
    "StartFailed",
    "Started",
    "State",
    "Stop",
    "StopAsked",
    "Stopped",
    "Tell",
    "Tick",
    "UnloadAsked",
    "Waiter",
]

Phase = Literal["planning", "room", "starting", "ready", "stopping"]


class Family(Struct, frozen=True):
    """What shares one engine: the same files on the same driver, under whatever names. With the options that it was
    loaded with this is an engine's key; a family has one engine at a time. `is_remote`: it runs elsewhere, so that it
    takes nothing here that others would have to leave."""

    driver: str
    digests: tuple[str, ...]
    is_remote: bool = False


class Limits(Struct, frozen=True):
    """`budget` is what engines may hold on each device; a device that isn't in it has no limit. `total_bytes` bounds
    the sum over devices, None: no such bound."""

    budget: tuple[tuple[str, int], ...] = ()
    total_bytes: int | None = None
    max_loaded: int | None = None
    max_queue: int = 512
    keep_alive_s: float = 300.0
    load_timeout_s: float = 300.0


class Waiter(Struct, frozen=True):
    """`ticket` is its place among all requests, `turn` its place among its engine's clients. `label` is the
    model's name, `wanted` what the request itself said of loading, `options` that with the settings filled in."""

    ticket: int
    turn: int
    label: str
    client: str
    takes_slot: bool
    wanted: LoadOptions
    options: LoadOptions
    keep_alive_s: float | None


class Line(Struct, frozen=True):
    """Those who wait for one family's engine; `turn` is that of the waiter served last."""

    waiters: tuple[Waiter, ...] = ()
    turn: int = 0


class Resident(Struct, frozen=True):
    """One engine, from its plan to its end. `options` are those it was asked to be loaded with; `ladder` the plans that
    are still to be tried; `beside` a plan that fits without evicting anything. `leases` hold slots, `pins` don't.
    `barrier` and `because`: see the module."""

    family: Family
    generation: int
    label: str
    options: LoadOptions
    keep_alive_s: float
    phase: Phase = "planning"
    plan: Plan | None = None
    beside: Plan | None = None
    ladder: tuple[Plan, ...] = ()
    leases: frozenset[int] = frozenset()
    pins: frozenset[int] = frozenset()
    used_at: float = 0.0
    ready_at: float = 0.0
    deadline: float | None = None
    barrier: int | None = None
    because: Literal["", "unload", "reload", "room"] = ""
    measured_bytes: int | None = None
    warnings: tuple[events.Warning, ...] = ()

    @property
    def known_plan(self) -> Plan:
        """The plan of an engine that is past planning."""
        if self.plan is None:
            raise ValueError(f"{self.label} has no plan while it is {self.phase}")
        return self.plan

    @property
    def is_loading(self) -> bool:
        return self.phase in ("planning", "room", "starting")

    @property
    def is_held(self) -> bool:
        return bool(self.leases or self.pins)


class Crashes(Struct, frozen=True):
    """A family's recent failures. Until `open_until` nothing is started; `on_probation` lasts from then to the first
    request that ends well: one more failure closes the door again."""

    times: tuple[float, ...] = ()
    open_until: float | None = None
    on_probation: bool = False
    reason: str = ""


class State(Struct, frozen=True):
    """Mappings are never changed, only replaced."""

    limits: Limits
    residents: Mapping[Family, Resident] = {}
    lines: Mapping[Family, Line] = {}
    crashes: Mapping[Family, Crashes] = {}
    generation: int = 0
    is_stopping: bool = False

    @property
    def waiting(self) -> int:
        return sum(len(line.waiters) for line in self.lines.values())


# What may happen. `generation` says which engine is meant: news of one that is gone is ignored.


class Asked(Struct, frozen=True):
    """`label` is the model's name, for messages."""

    ticket: int
    family: Family
    label: str
    client: str = ""
    takes_slot: bool = True
    wanted: LoadOptions = LoadOptions()
    options: LoadOptions = LoadOptions()
    keep_alive_s: float | None = None


class Left(Struct, frozen=True):
    """A request ended, gave up waiting, or was never told that it got its lease: all the same. `is_well`: its engine
    answered it."""

    ticket: int
    family: Family
    is_well: bool = False


class Planned(Struct, frozen=True):
    """`budget`: what was free on each device when it was planned, told when no other engine held any of it."""

    generation: int
    plan: Plan
    beside: Plan | None = None
    budget: tuple[tuple[str, int], ...] | None = None


class PlanFailed(Struct, frozen=True):
    generation: int
    error: OprelError


class Started(Struct, frozen=True):
    generation: int
    plan: Plan
    measured_bytes: int | None = None


class StartFailed(Struct, frozen=True):
    """`cause` as in EngineStartError."""

    generation: int
    error: OprelError
    cause: str = "engine"


class Measured(Struct, frozen=True):
    generation: int
    measured_bytes: int


class Died(Struct, frozen=True):
    generation: int
    reason: str


class Stopped(Struct, frozen=True):
    generation: int


class UnloadAsked(Struct, frozen=True):
    """What has a ticket below `ticket` is still served."""

    family: Family
    ticket: int


class DrainAsked(Struct, frozen=True):
    """No new leases from now on, and none for those who wait."""


class StopAsked(Struct, frozen=True):
    """Everything ends now, in use or not."""


class Tick(Struct, frozen=True):
    """Time passed."""


Event = (
    Asked
    | Left
    | Planned
    | PlanFailed
    | Started
    | StartFailed
    | Measured
    | Died
    | Stopped
    | UnloadAsked
    | DrainAsked
    | StopAsked
    | Tick
)


# What may be asked for.


class Grant(Struct, frozen=True):
    ticket: int
    generation: int


class Refuse(Struct, frozen=True):
    ticket: int
    error: OprelError


class MakePlan(Struct, frozen=True):
    """`others` are the engines that there are: what is planned must know what they hold."""

    family: Family
    generation: int
    label: str
    options: LoadOptions
    others: tuple[Resident, ...] = ()


class Start(Struct, frozen=True):
    family: Family
    generation: int
    plan: Plan


class CancelStart(Struct, frozen=True):
    """Answered by Stopped."""

    generation: int


class Stop(Struct, frozen=True):
    """Answered by Stopped. `why` ends the log's sentence "unloading … : "."""

    generation: int
    why: str


class Tell(Struct, frozen=True):
    """For the log."""

    text: str


Action = Grant | Refuse | MakePlan | Start | CancelStart | Stop | Tell
