"""The policy under any order of events: what must hold after each, and that nobody waits for ever."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from oprel.errors import EngineStartError
from oprel.scheduler import fit
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
    Planned,
    Refuse,
    Resident,
    Start,
    Started,
    StartFailed,
    State,
    Stop,
    Stopped,
    Tick,
    UnloadAsked,
)
from oprel.schema import LoadOptions, Plan

BUDGET = {"cpu": 1000, "CUDA0": 600}
# What the engine of each model holds, from its best plan down its ladder.
LADDERS: dict[str, tuple[dict[str, int], ...]] = {
    "small": ({"cpu": 300},),
    "large": ({"cpu": 800},),
    "gpu": ({"cpu": 100, "CUDA0": 500}, {"cpu": 350, "CUDA0": 200}, {"cpu": 600}),
    "never": ({"cpu": 5000},),
}
NAMES = st.sampled_from(sorted(LADDERS))
CONTEXTS = st.sampled_from([None, None, None, 4096, 8192])


@dataclass
class Ticket:
    number: int
    family: Family
    client: str
    takes_slot: bool
    state: str = "waiting"
    grants: list[int] = field(default_factory=list)


def plan_for(name: str, options: LoadOptions) -> Plan:
    rungs = tuple(
        Plan(
            driver="scripted",
            engine="scripted",
            model=name,
            model_digest=name,
            files=(),
            options=options,
            gpu_layers=1 if "CUDA0" in rung else 0,
            layers=10,
            bytes_by_device=tuple(rung.items()),
            context_tokens=options.context_tokens or 4096,
            slots=2,
            threads=1,
            argv=(),
            device="gpu" if "CUDA0" in rung else "cpu",
        )
        for rung in LADDERS[name]
    )
    first, *rest = rungs
    return msgspec.structs.replace(first, fallbacks=tuple(rest))


class PolicyMachine(RuleBasedStateMachine):
    @initialize(max_queue=st.sampled_from([3, 100]), max_loaded=st.sampled_from([None, 1, 2]))
    def begin(self, max_queue: int, max_loaded: int | None) -> None:
        self.state = State(
            limits=Limits(
                budget=tuple(BUDGET.items()),
                max_queue=max_queue,
                max_loaded=max_loaded,
                keep_alive_s=50,
                load_timeout_s=40,
            )
        )
        self.now = 0.0
        self.tickets: list[Ticket] = []
        self.planning: list[MakePlan] = []
        self.starting: list[Start] = []
        self.stopping: list[int] = []
        self.alive: dict[int, Plan] = {}

    # -- what happens

    @rule(
        name=NAMES,
        client=st.sampled_from(["x", "y", "z"]),
        takes_slot=st.sampled_from([True, True, True, False]),
        context=CONTEXTS,
        keep_alive=st.sampled_from([None, None, 0.0, 10.0, float("inf")]),
    )
    def ask(self, name: str, client: str, takes_slot: bool, context: int | None, keep_alive: float | None) -> None:
        family = Family("scripted", (name,))
        wanted = LoadOptions(context_tokens=context)
        ticket = Ticket(len(self.tickets) + 1, family, client, takes_slot)
        self.tickets.append(ticket)
        self.post(Asked(ticket.number, family, name, client, takes_slot, wanted, wanted, keep_alive))

    @precondition(lambda self: self.open())
    @rule(data=st.data(), well=st.booleans())
    def leave(self, data: st.DataObject, well: bool) -> None:
        ticket = data.draw(st.sampled_from(self.open()))
        self.end(ticket, well=well)

    @precondition(lambda self: self.planning)
    @rule()
    def plan(self) -> None:
        make = self.planning.pop(0)
        self.post(Planned(make.generation, plan_for(make.label, make.options)))

    @precondition(lambda self: self.starting)
    @rule(fate=st.sampled_from(["up", "up", "up", "gpu", "engine"]))
    def finish_start(self, fate: str) -> None:
        start = self.starting.pop(0)
        if fate == "up":
            self.alive[start.generation] = start.plan
            self.post(Started(start.generation, start.plan))
        else:
            self.post(StartFailed(start.generation, EngineStartError("no", cause=fate), fate))

    @precondition(lambda self: self.stopping)
    @rule()
    def finish_stop(self) -> None:
        generation = self.stopping.pop(0)
        self.alive.pop(generation, None)
        self.post(Stopped(generation))

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def die(self, data: st.DataObject) -> None:
        generation = data.draw(st.sampled_from(sorted(self.alive)))
        if generation in self.stopping:
            return
        del self.alive[generation]
        for ticket in self.tickets:
            if ticket.state == "running" and ticket.grants[-1] == generation:
                ticket.state = "orphaned"
        self.post(Died(generation, "killed"))

    @precondition(lambda self: self.alive)
    @rule(data=st.data(), size=st.sampled_from([50, 450]))
    def measure(self, data: st.DataObject, size: int) -> None:
        generation = data.draw(st.sampled_from(sorted(self.alive)))
        held = sum(sum(dict(plan.bytes_by_device).values()) for plan in self.alive.values())
        if held + size <= BUDGET["cpu"]:  # the machine has no more than it has
            self.post(Measured(generation, size))

    @precondition(lambda self: self.alive)
    @rule(name=NAMES)
    def unload(self, name: str) -> None:
        self.post(UnloadAsked(Family("scripted", (name,)), len(self.tickets) + 1))

    @rule(seconds=st.sampled_from([1.0, 15.0, 70.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        due = next_wake(self.state)
        if due is not None and due <= self.now:
            self.post(Tick())

    # -- the world

    def open(self) -> list[Ticket]:
        return [ticket for ticket in self.tickets if ticket.state in ("waiting", "running", "orphaned")]

    def end(self, ticket: Ticket, *, well: bool = False) -> None:
        ticket.state = "gone"
        self.post(Left(ticket.number, ticket.family, well))

    def post(self, event: Event) -> None:
        self.state, actions = decide(self.state, event, self.now)
        for action in actions:
            self.act(action)

    def act(self, action: Action) -> None:
        match action:
            case Grant():
                ticket = self.tickets[action.ticket - 1]
                assert ticket.state == "waiting", "granted once, and only who waits"
                assert action.generation in self.alive, "a lease is on an engine that is there"
                earlier = [
                    other
                    for other in self.tickets[: ticket.number - 1]
                    if other.state == "waiting" and (other.family, other.client) == (ticket.family, ticket.client)
                ]
                assert not ticket.takes_slot or not any(other.takes_slot for other in earlier), (
                    "first come, first served"
                )
                ticket.state = "running"
                ticket.grants.append(action.generation)
            case Refuse():
                ticket = self.tickets[action.ticket - 1]
                assert ticket.state == "waiting"
                ticket.state = "refused"
            case MakePlan():
                self.planning.append(action)
            case Start():
                self.starting.append(action)
            case CancelStart():
                self.starting = [start for start in self.starting if start.generation != action.generation]
                self.stopping.append(action.generation)
            case Stop():
                users = [t for t in self.tickets if t.state == "running" and t.grants[-1] == action.generation]
                assert not users, "an engine in use is never stopped"
                self.stopping.append(action.generation)

    # -- what must hold

    def held(self) -> list[Resident]:
        return [r for r in self.state.residents.values() if r.phase in ("starting", "ready", "stopping")]

    @invariant()
    def memory_is_within_the_budget(self) -> None:
        planned: dict[str, int] = {}
        for resident in self.held():
            for device, size in resident.known_plan.bytes_by_device:
                planned[device] = planned.get(device, 0) + size
        assert all(size <= BUDGET[device] for device, size in planned.items()), planned

    @invariant()
    def no_more_engines_than_allowed(self) -> None:
        most = self.state.limits.max_loaded
        assert most is None or len(self.held()) <= most

    @invariant()
    def one_load_at_a_time(self) -> None:
        assert sum(resident.is_loading for resident in self.state.residents.values()) <= 1

    @invariant()
    def no_ticket_is_lost(self) -> None:
        waiting = {waiter.ticket for line in self.state.lines.values() for waiter in line.waiters}
        leased = {ticket for r in self.state.residents.values() for ticket in r.leases | r.pins}
        assert waiting == {ticket.number for ticket in self.tickets if ticket.state == "waiting"}
        assert leased == {ticket.number for ticket in self.tickets if ticket.state == "running"}
        assert self.state.waiting <= self.state.limits.max_queue

    @invariant()
    def no_engine_has_more_requests_than_slots(self) -> None:
        assert all(len(r.leases) <= r.known_plan.slots for r in self.held())

    @invariant()
    def whoever_can_run_runs(self) -> None:
        for family, line in self.state.lines.items():
            resident = self.state.residents.get(family)
            if resident is None or resident.phase != "ready" or len(resident.leases) == resident.known_plan.slots:
                continue
            for waiter in line.waiters:
                is_admitted = resident.barrier is None or waiter.ticket < resident.barrier
                is_served = fit.is_served(waiter.wanted, asked=resident.options, plan=resident.known_plan)
                assert not (is_admitted and is_served), "a free slot and a waiter for it"

    def teardown(self) -> None:
        """Whatever has happened: when the running ones end and starts succeed, all who wait are served or told."""
        if not hasattr(self, "tickets"):
            return
        for _ in range(10 * len(self.tickets) + 50):
            for ticket in self.tickets:
                if ticket.state in ("running", "orphaned"):
                    self.end(ticket, well=True)
            if self.planning:
                self.plan()
            elif self.starting:
                self.finish_start("up")
            elif self.stopping:
                self.finish_stop()
            elif not self.open():
                break
        assert not self.open(), f"still waiting: {self.open()} in {self.state}"


PolicyMachine.TestCase.settings = settings(
    max_examples=100, stateful_step_count=50, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestPolicyMachine = PolicyMachine.TestCase
