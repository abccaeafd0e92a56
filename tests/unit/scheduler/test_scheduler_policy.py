"""The policy, rule by rule: what is decided, without engines, loops or clocks."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from oprel.errors import BusyError, EngineStartError, InsufficientMemoryError, OprelError
from oprel.scheduler.policy import decide, expires_in, next_wake
from oprel.scheduler.state import (
    Action,
    Asked,
    CancelStart,
    Died,
    DrainAsked,
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
    UnloadAsked,
)
from oprel.schema import LoadOptions, Plan, RemoteModel

BUDGET = (("cpu", 1000), ("CUDA0", 500))


def family(name: str = "a") -> Family:
    return Family("scripted", (name,))


def plan(name: str = "a", *, cpu: int = 400, gpu: int = 0, slots: int = 2, context: int = 4096, **changes: Any) -> Plan:
    by_device = tuple((device, size) for device, size in (("cpu", cpu), ("CUDA0", gpu)) if size)
    made = Plan(
        driver="scripted",
        engine="scripted",
        model=name,
        model_digest=name,
        files=(),
        options=LoadOptions(),
        gpu_layers=10 if gpu else 0,
        layers=10,
        bytes_by_device=by_device,
        context_tokens=context,
        slots=slots,
        threads=2,
        argv=(),
        device="gpu" if gpu else "cpu",
    )
    return msgspec.structs.replace(made, **changes)


class Machine:
    """Feeds events to the policy and keeps its state and the last actions."""

    def __init__(self, **limits: Any) -> None:
        self.state = State(limits=Limits(**{"budget": BUDGET, "keep_alive_s": 300.0, **limits}))
        self.now = 100.0
        self.tickets = 0
        self.actions: tuple[Action, ...] = ()

    def post(self, event: Event) -> tuple[Action, ...]:
        before = self.state
        frozen = (dict(before.residents), dict(before.lines), dict(before.crashes))
        self.state, self.actions = decide(before, event, self.now)
        assert frozen == (before.residents, before.lines, before.crashes), "the state before must stay as it was"
        return self.actions

    def ask(self, name: str = "a", **changes: Any) -> int:
        self.tickets += 1
        wanted = changes.pop("wanted", LoadOptions())
        self.post(Asked(self.tickets, family(name), name, wanted=wanted, options=wanted, **changes))
        return self.tickets

    def leave(self, ticket: int, name: str = "a", *, well: bool = False) -> tuple[Action, ...]:
        return self.post(Left(ticket, family(name), well))

    def resident(self, name: str = "a") -> Resident:
        return self.state.residents[family(name)]

    def load(self, name: str = "a", **changes: Any) -> int:
        """A ticket that has got its lease on an engine that came up for it."""
        ticket = self.ask(name)
        self.come_up(name, **changes)
        return ticket

    def come_up(self, name: str = "a", **changes: Any) -> tuple[Action, ...]:
        self.post(Planned(self.resident(name).generation, plan(name, **changes)))
        return self.start(name)

    def start(self, name: str = "a") -> tuple[Action, ...]:
        resident = self.resident(name)
        assert resident.phase == "starting"
        return self.post(Started(resident.generation, resident.known_plan))

    def refused(self) -> dict[int, OprelError]:
        return {action.ticket: action.error for action in self.actions if isinstance(action, Refuse)}

    def granted(self) -> list[int]:
        return [action.ticket for action in self.actions if isinstance(action, Grant)]

    def of(self, kind: type[Any]) -> list[Any]:
        return [action for action in self.actions if isinstance(action, kind)]


def test_the_first_request_plans_starts_and_is_granted() -> None:
    machine = Machine()
    ticket = machine.ask()
    assert [type(action) for action in machine.actions] == [MakePlan]
    machine.post(Planned(1, plan()))
    assert [type(action) for action in machine.actions] == [Start]
    machine.post(Started(1, plan()))
    assert machine.granted() == [ticket]
    assert machine.resident().leases == {ticket}


def test_waiters_of_one_load_share_it_up_to_the_slots() -> None:
    machine = Machine()
    tickets = [machine.ask() for _ in range(3)]
    machine.come_up(slots=2)
    assert machine.granted() == tickets[:2]
    machine.leave(tickets[0])
    assert machine.granted() == tickets[2:]


def test_one_clients_requests_are_served_in_order() -> None:
    machine = Machine()
    running = machine.load(slots=1)
    queued = [machine.ask() for _ in range(4)]
    served = []
    for _ in queued:
        machine.leave(running)
        (running,) = machine.granted()
        served.append(running)
    assert served == queued


def test_clients_take_turns() -> None:
    """A client with a long queue doesn't keep the others waiting to its end."""
    machine = Machine()
    running = machine.load(slots=1)
    names = {machine.ask(client="greedy"): "greedy" for _ in range(4)}
    names |= {machine.ask(client="modest"): "modest" for _ in range(2)}
    order = []
    for _ in range(6):
        machine.leave(running)
        (running,) = machine.granted()
        order.append(names[running])
    assert order == ["greedy", "modest", "greedy", "modest", "greedy", "greedy"]


def test_ever_new_clients_dont_starve_the_one_who_waits() -> None:
    machine = Machine()
    running = machine.load(slots=1)
    patient = [machine.ask(client="patient") for _ in range(3)]
    for number in range(12):
        machine.ask(client=f"passer-by {number}")
        machine.ask(client=f"another {number}")
        machine.leave(running)
        (running,) = machine.granted()
        if running in patient:
            patient.remove(running)
    assert not patient


def test_a_load_request_takes_no_slot_and_is_not_kept_waiting_by_who_does() -> None:
    machine = Machine()
    machine.load(slots=1)
    machine.ask()
    pin = machine.ask(takes_slot=False)
    assert machine.granted() == [pin]
    assert machine.resident().pins == {pin}


def test_a_full_queue_refuses_at_once_with_a_time_to_come_back() -> None:
    machine = Machine(max_queue=2)
    running = machine.load(slots=1)
    machine.ask()
    machine.ask()
    late = machine.ask()
    error = machine.refused()[late]
    assert isinstance(error, BusyError)
    assert error.retry_after_s > 0
    assert machine.state.waiting == 2
    machine.leave(running)
    assert machine.granted()


def test_a_full_queue_does_not_refuse_what_can_run_now() -> None:
    machine = Machine(max_queue=1)
    machine.load("a", slots=1)
    machine.load("b", slots=2, cpu=100)
    machine.ask("a")
    free = machine.ask("b")
    assert machine.granted() == [free]


def test_who_leaves_the_queue_is_not_granted() -> None:
    machine = Machine()
    running = machine.load(slots=1)
    gone, next_one = machine.ask(), machine.ask()
    machine.leave(gone)
    machine.leave(running)
    assert machine.granted() == [next_one]


def test_leaving_twice_changes_nothing() -> None:
    machine = Machine()
    first = machine.load(slots=1)
    machine.leave(first)
    second = machine.ask()
    machine.leave(first)
    assert machine.resident().leases == {second}


# -- load options


@pytest.mark.parametrize(
    "wanted",
    [
        pytest.param(LoadOptions(), id="nothing said"),
        pytest.param(LoadOptions(context_tokens=4096), id="as much context"),
        pytest.param(LoadOptions(context_tokens=512), id="less context"),
        pytest.param(LoadOptions(slots=1), id="fewer slots"),
        pytest.param(LoadOptions(gpu_layers=0), id="the layers that it has"),
        pytest.param(LoadOptions(threads=1), id="fewer threads"),
    ],
)
def test_who_asks_for_no_more_than_is_loaded_gets_it(wanted: LoadOptions) -> None:
    machine = Machine()
    machine.load()
    ticket = machine.ask(wanted=wanted)
    assert machine.granted() == [ticket]


@pytest.mark.parametrize(
    "wanted",
    [
        pytest.param(LoadOptions(context_tokens=8192), id="more context"),
        pytest.param(LoadOptions(slots=8), id="more slots"),
        pytest.param(LoadOptions(gpu_layers=5), id="other layers"),
        pytest.param(LoadOptions(kv_cache_type="q8_0"), id="another cache"),
        pytest.param(LoadOptions(flash_attention=True), id="flash attention"),
        pytest.param(LoadOptions(chat_template="chatml"), id="another template"),
    ],
)
def test_who_asks_for_more_waits_for_the_running_ones_and_then_it_loads_anew(wanted: LoadOptions) -> None:
    machine = Machine()
    running = machine.load()
    ticket = machine.ask(wanted=wanted)
    assert not machine.actions
    later = machine.ask()
    assert not machine.granted(), "who comes later must not keep the engine from draining"
    machine.leave(running)
    (stop,) = machine.of(Stop)
    machine.post(Stopped(stop.generation))
    (make,) = machine.of(MakePlan)
    assert make.options == wanted
    machine.come_up(context=8192, slots=8)
    assert machine.granted() == [ticket, later]


def test_what_an_engine_was_loaded_for_never_makes_it_load_again() -> None:
    """The plan may give less than was asked for (a clamped context): asking the same again must not reload."""
    machine = Machine()
    wanted = LoadOptions(context_tokens=1_000_000, slots=64, gpu_layers=99)
    machine.ask(wanted=wanted)
    machine.come_up(context=8192)
    again = machine.ask(wanted=wanted)
    assert machine.granted() == [again]


def test_a_drain_for_options_that_nobody_wants_any_more_ends() -> None:
    machine = Machine()
    machine.load()
    wants_more = machine.ask(wanted=LoadOptions(context_tokens=9000))
    later = machine.ask()
    machine.leave(wants_more)
    assert machine.granted() == [later]


def test_an_engine_stays_when_who_wanted_it_loaded_anew_has_left() -> None:
    machine = Machine()
    running = machine.load()
    machine.leave(machine.ask(wanted=LoadOptions(context_tokens=9000)))
    machine.leave(running)
    assert not machine.of(Stop)


# -- room


def test_the_idle_engine_not_used_for_longest_leaves_first() -> None:
    machine = Machine()
    for name in ("a", "b"):
        machine.leave(machine.load(name), name)
        machine.now += 10
    machine.leave(machine.ask("a"), "a")
    machine.ask("c")
    machine.post(Planned(machine.resident("c").generation, plan("c")))
    (stop,) = machine.of(Stop)
    assert stop.generation == machine.resident("b").generation
    machine.post(Tick())
    assert machine.resident("c").phase == "room", "its memory isn't free yet"
    machine.post(Stopped(stop.generation))
    assert machine.of(Start)


def test_as_many_leave_as_it_takes_and_no_more() -> None:
    machine = Machine()
    for name, size in (("a", 300), ("b", 300), ("c", 300)):
        machine.leave(machine.load(name, cpu=size), name)
        machine.now += 1
    machine.ask("d")
    machine.post(Planned(machine.resident("d").generation, plan("d", cpu=700)))
    assert {stop.generation for stop in machine.of(Stop)} == {1, 2}


def test_an_engine_on_another_device_is_not_evicted_in_vain() -> None:
    machine = Machine()
    machine.leave(machine.load("cpu", cpu=400), "cpu")
    machine.now += 1
    machine.leave(machine.load("gpu", cpu=0, gpu=400), "gpu")
    machine.ask("c")
    machine.post(Planned(machine.resident("c").generation, plan("c", cpu=0, gpu=400)))
    assert [stop.generation for stop in machine.of(Stop)] == [machine.resident("gpu").generation]


def test_an_engine_in_use_is_never_stopped_but_finishes_and_takes_no_more() -> None:
    machine = Machine()
    running = machine.load("a", cpu=800)
    machine.ask("b")
    machine.post(Planned(machine.resident("b").generation, plan("b", cpu=800)))
    assert not machine.of(Stop)
    late = machine.ask("a")
    assert not machine.granted(), "who came after the model that waits must not delay it"
    machine.leave(running, "a")
    assert machine.of(Stop)
    machine.post(Stopped(1))
    machine.start("b")
    assert late not in machine.granted()


def test_who_waited_before_the_other_model_did_is_still_served() -> None:
    machine = Machine()
    running = machine.load("a", cpu=800, slots=1)
    earlier = machine.ask("a")
    machine.ask("b")
    machine.post(Planned(machine.resident("b").generation, plan("b", cpu=800)))
    machine.leave(running, "a")
    assert machine.granted() == [earlier]


def test_a_drain_for_a_load_that_nobody_wants_any_more_ends() -> None:
    machine = Machine()
    machine.load("a", cpu=800)
    wanted = machine.ask("b")
    machine.post(Planned(machine.resident("b").generation, plan("b", cpu=800)))
    late = machine.ask("a")
    machine.leave(wanted, "b")
    assert machine.granted() == [late]
    assert family("b") not in machine.state.residents


def test_what_can_never_fit_is_refused_with_the_numbers() -> None:
    machine = Machine()
    ticket = machine.ask()
    machine.post(Planned(1, plan(cpu=5000)))
    error = machine.refused()[ticket]
    assert isinstance(error, InsufficientMemoryError)
    assert (error.needed_bytes, error.available_bytes) == (5000, 1000)
    assert not machine.state.residents


def test_the_memory_limit_bounds_the_sum_over_devices() -> None:
    machine = Machine(total_bytes=600)
    ticket = machine.ask()
    machine.post(Planned(1, plan(cpu=300, gpu=400)))
    assert isinstance(machine.refused()[ticket], InsufficientMemoryError)


def test_no_more_engines_than_allowed() -> None:
    machine = Machine(max_loaded=1)
    machine.leave(machine.load("a", cpu=10))
    machine.ask("b")
    machine.post(Planned(machine.resident("b").generation, plan("b", cpu=10)))
    assert [stop.generation for stop in machine.of(Stop)] == [1]


def test_what_was_measured_counts_where_it_is_more() -> None:
    machine = Machine()
    machine.leave(machine.load("a", cpu=400))
    machine.post(Measured(1, 900))
    machine.ask("b")
    machine.post(Planned(2, plan("b", cpu=400)))
    assert [stop.generation for stop in machine.of(Stop)] == [1]


def test_a_good_plan_for_what_is_left_saves_the_idle_engine() -> None:
    machine = Machine()
    machine.leave(machine.load("a", cpu=400))
    machine.ask("b")
    small = plan("b", cpu=500, slots=1, context=8192)
    machine.post(Planned(2, plan("b", cpu=900, context=32768), beside=small))
    assert [start.plan for start in machine.of(Start)] == [small]


def test_a_plan_for_what_is_left_has_its_own_ladder() -> None:
    machine = Machine()
    machine.leave(machine.load("a", cpu=300))
    machine.ask("b")
    last = plan("b", cpu=250, context=8192)
    small = plan("b", cpu=500, gpu=100, context=8192, gpu_layers=10, fallbacks=(last,))
    alone = plan("b", cpu=900, gpu=100, context=8192, gpu_layers=10, fallbacks=(plan("b", cpu=800),))
    machine.post(Planned(2, alone, beside=small))
    machine.post(StartFailed(2, EngineStartError("no", cause="gpu"), "gpu"))
    assert [start.plan for start in machine.of(Start)] == [last]


def test_a_poor_plan_for_what_is_left_does_not() -> None:
    machine = Machine()
    machine.leave(machine.load("a", cpu=400))
    machine.ask("b")
    machine.post(Planned(2, plan("b", cpu=900, context=32768), beside=plan("b", cpu=500, context=2048)))
    assert machine.of(Stop)


def test_loads_are_one_at_a_time_and_in_order_and_block_nobody_who_is_loaded() -> None:
    machine = Machine()
    machine.load("a", cpu=10)
    machine.ask("b")
    machine.ask("c")
    assert not machine.of(MakePlan)
    free = machine.ask("a")
    assert machine.granted() == [free]
    machine.come_up("b", cpu=10)
    (make,) = machine.of(MakePlan)
    assert make.family == family("c")


def test_a_plan_that_fails_is_told_to_those_who_asked_for_it() -> None:
    machine = Machine()
    asked_much = machine.ask(wanted=LoadOptions(context_tokens=10**9))
    asked_less = machine.ask()
    machine.post(PlanFailed(1, InsufficientMemoryError("too much")))
    assert list(machine.refused()) == [asked_much]
    machine.come_up()
    assert machine.granted() == [asked_less]


def test_the_budget_is_what_was_free_when_nothing_was_loaded() -> None:
    machine = Machine(budget=())
    ticket = machine.ask()
    machine.post(Planned(1, plan(cpu=5000), budget=(("cpu", 100),)))
    assert isinstance(machine.refused()[ticket], InsufficientMemoryError)


def test_what_an_engine_came_up_without_being_asked_for_is_told() -> None:
    machine = Machine()
    machine.ask()
    machine.post(Planned(1, plan()))
    unused = ("gpu_unused", "there is a GPU, and no engine here can use it")
    machine.post(Started(1, plan(reasons=(("device", "on the CPU"), unused))))
    assert [(warning.code, warning.text) for warning in machine.resident().warnings] == [unused]


# -- failures


def ladder() -> Plan:
    return plan(cpu=0, gpu=400, fallbacks=(plan(cpu=200, gpu=200, gpu_layers=5, device="gpu+cpu"), plan(cpu=400)))


def test_a_gpu_that_fails_goes_down_the_ladder_and_tells() -> None:
    machine = Machine()
    ticket = machine.ask()
    machine.post(Planned(1, ladder()))
    for step in (1, 2):
        machine.post(StartFailed(1, EngineStartError("no CUDA device", cause="gpu"), "gpu"))
        assert [start.plan for start in machine.of(Start)] == [ladder().fallbacks[step - 1]]
        assert machine.of(Tell)
    machine.start()
    assert machine.granted() == [ticket]
    (warning,) = machine.resident().warnings
    assert warning.code == "gpu_fallback"
    assert "no CUDA device" in warning.text
    assert "on the CPU" in warning.text


@pytest.mark.parametrize("cause", ["model", "engine"])
def test_a_failure_that_no_fallback_can_help_is_told_to_all_at_once(cause: str) -> None:
    machine = Machine()
    tickets = [machine.ask(), machine.ask()]
    machine.post(Planned(1, ladder()))
    machine.post(StartFailed(1, EngineStartError("bad file", cause=cause), cause))
    assert list(machine.refused()) == tickets
    assert not machine.state.residents
    assert machine.ask()
    assert machine.of(MakePlan), "the next request tries again"


def test_the_end_of_the_ladder_is_a_failure() -> None:
    machine = Machine()
    ticket = machine.ask()
    machine.post(Planned(1, ladder()))
    for _ in range(3):
        machine.post(StartFailed(1, EngineStartError("no", cause="gpu"), "gpu"))
    assert list(machine.refused()) == [ticket]


def test_a_rung_that_can_never_fit_is_passed_over_and_that_is_told() -> None:
    machine = Machine()
    machine.ask()
    machine.post(Planned(1, plan(gpu=5000, fallbacks=(plan(cpu=400),))))
    assert [start.plan.device for start in machine.of(Start)] == ["cpu"]
    (warning,) = machine.resident().warnings
    assert warning.code == "gpu_fallback"
    assert "on CUDA0" in warning.text


def fail(machine: Machine) -> None:
    machine.ask()
    machine.post(Planned(machine.resident().generation, plan()))
    machine.post(StartFailed(machine.resident().generation, EngineStartError("crashed"), "engine"))


def test_three_failures_in_a_minute_close_the_door_for_a_minute() -> None:
    machine = Machine()
    for _ in range(3):
        fail(machine)
        machine.now += 5
    ticket = machine.ask()
    error = machine.refused()[ticket]
    assert isinstance(error, BusyError)
    assert "crashed" in error.message
    assert 50 <= error.retry_after_s <= 60
    machine.now += 60
    machine.ask()
    assert machine.of(MakePlan), "half open: one try"


def test_one_failure_on_probation_closes_the_door_again_and_one_success_ends_it() -> None:
    machine = Machine()
    for _ in range(3):
        fail(machine)
    machine.now += 61
    fail(machine)
    machine.ask()
    assert machine.refused()
    machine.now += 61
    ticket = machine.load()
    machine.leave(ticket, well=True)
    machine.post(Died(machine.resident().generation, "killed"))
    machine.ask()
    assert machine.of(MakePlan)


def test_failures_far_apart_close_nothing() -> None:
    machine = Machine()
    for _ in range(6):
        fail(machine)
        machine.now += 31
    machine.ask()
    assert machine.of(MakePlan)


def test_an_engines_death_frees_its_memory_and_those_who_wait_make_it_load_anew() -> None:
    machine = Machine()
    running = machine.load(slots=1)
    waiting = machine.ask()
    machine.post(Died(1, "signal 9"))
    (make,) = machine.of(MakePlan)
    assert make.generation == 2
    machine.leave(running)
    machine.come_up(slots=1)
    assert machine.granted() == [waiting]


def test_news_of_an_engine_that_is_gone_changes_nothing() -> None:
    machine = Machine()
    machine.load()
    machine.post(Died(1, "signal 9"))
    machine.ask()
    before = machine.state
    for event in (Died(1, "again"), Stopped(1), Started(1, plan()), Planned(1, plan()), Measured(1, 5)):
        assert not machine.post(event)
        assert machine.state == before


def test_a_start_that_takes_too_long_is_given_up_and_told() -> None:
    machine = Machine(load_timeout_s=20.0)
    ticket = machine.ask()
    machine.post(Planned(1, plan()))
    assert next_wake(machine.state) == machine.now + 20
    machine.now += 20
    machine.post(Tick())
    assert machine.of(CancelStart)
    assert isinstance(machine.refused()[ticket], EngineStartError)
    machine.post(Stopped(1))
    assert not machine.state.residents


def test_a_load_that_all_have_left_is_given_up() -> None:
    machine = Machine()
    first, second = machine.ask(), machine.ask()
    machine.post(Planned(1, plan()))
    assert not machine.leave(first)
    machine.leave(second)
    assert machine.of(CancelStart)
    machine.ask()
    assert not machine.of(MakePlan), "its memory isn't free before it has ended"
    machine.post(Stopped(1))
    assert machine.of(MakePlan)


def test_an_engine_that_came_up_too_late_is_stopped() -> None:
    machine = Machine()
    ticket = machine.ask()
    machine.post(Planned(1, plan()))
    machine.leave(ticket)
    machine.post(Started(1, plan()))
    assert machine.of(Stop)


# -- keep-alive


def test_the_timer_starts_when_the_last_lease_ends() -> None:
    machine = Machine(keep_alive_s=60.0)
    first = machine.load()
    second = machine.ask()
    assert next_wake(machine.state) is None
    machine.leave(first)
    machine.now += 100
    machine.leave(second)
    assert next_wake(machine.state) == machine.now + 60
    machine.now += 59
    assert not machine.post(Tick())
    assert expires_in(machine.resident(), machine.now) == pytest.approx(1)
    machine.now += 1
    machine.post(Tick())
    assert machine.of(Stop)


def test_the_latest_requests_keep_alive_wins_and_none_keeps_what_there_is() -> None:
    machine = Machine(keep_alive_s=60.0)
    machine.leave(machine.load())
    machine.leave(machine.ask(keep_alive_s=1000.0))
    assert machine.resident().keep_alive_s == 1000
    machine.leave(machine.ask())
    assert machine.resident().keep_alive_s == 1000
    machine.leave(machine.ask(keep_alive_s=5.0))
    assert next_wake(machine.state) == machine.now + 5


def test_keep_alive_nothing_unloads_when_the_request_ends() -> None:
    machine = Machine()
    ticket = machine.load()
    other = machine.ask(keep_alive_s=0.0)
    machine.leave(other)
    assert not machine.of(Stop), "another request is running"
    machine.leave(ticket)
    assert machine.of(Stop)


def test_for_ever_is_for_ever() -> None:
    machine = Machine()
    machine.load()
    machine.leave(machine.ask(keep_alive_s=float("inf")))
    machine.leave(1)
    assert next_wake(machine.state) is None
    machine.now += 10**9
    assert not machine.post(Tick())


def test_an_engine_that_is_being_stopped_serves_nobody_and_its_next_request_loads_anew() -> None:
    machine = Machine()
    machine.leave(machine.load())
    machine.post(UnloadAsked(family(), 99))
    assert machine.of(Stop)
    ticket = machine.ask()
    assert not machine.actions
    machine.post(Stopped(1))
    machine.come_up()
    assert machine.granted() == [ticket]


def test_unloading_serves_those_before_it_first() -> None:
    machine = Machine()
    running = machine.load(slots=1)
    queued = machine.ask()
    machine.post(UnloadAsked(family(), machine.tickets + 1))
    after = machine.ask()
    machine.leave(running)
    assert machine.granted() == [queued]
    machine.leave(queued)
    assert machine.of(Stop)
    machine.post(Stopped(1))
    machine.come_up()
    assert machine.granted() == [after]


def test_unloading_stays_due_when_a_reload_is_no_longer_wanted() -> None:
    machine = Machine()
    running = machine.load()
    wants_more = machine.ask(wanted=LoadOptions(context_tokens=9000))
    machine.post(UnloadAsked(family(), machine.tickets + 1))
    machine.leave(wants_more)
    machine.leave(running)
    (stop,) = machine.of(Stop)
    assert "request" in stop.why


# -- the end


def test_draining_refuses_the_new_and_the_waiting_and_lets_the_running_end() -> None:
    machine = Machine()
    running = machine.load(slots=1)
    waiting = machine.ask()
    loading = machine.ask("b")
    machine.post(DrainAsked())
    assert set(machine.refused()) == {waiting, loading}
    late = machine.ask()
    assert isinstance(machine.refused()[late], BusyError)
    assert running in machine.resident().leases


def test_stopping_ends_everything_in_use_or_not() -> None:
    machine = Machine()
    machine.load("a", cpu=10)
    machine.ask("b")
    machine.post(Planned(2, plan("b", cpu=10)))
    machine.post(StopAsked())
    assert [type(action) for action in machine.actions if not isinstance(action, Refuse)] == [Stop, CancelStart]
    machine.post(Stopped(1))
    machine.post(Stopped(2))
    assert not machine.state.residents


class TestElsewhere:
    """What runs on another server takes nothing here: it neither waits for others nor makes them leave."""

    REMOTE = Family("openai", ("r",), is_remote=True)
    PLAN = plan("r", cpu=0, remote=RemoteModel("cluster", "big"), device="remote", slots=32)

    def ask(self, machine: Machine, **changes: Any) -> int:
        machine.tickets += 1
        machine.post(Asked(machine.tickets, self.REMOTE, "r", **changes))
        return machine.tickets

    def come_up(self, machine: Machine) -> tuple[Action, ...]:
        resident = machine.state.residents[self.REMOTE]
        machine.post(Planned(resident.generation, self.PLAN))
        assert machine.state.residents[self.REMOTE].phase == "starting"
        return machine.post(Started(resident.generation, self.PLAN))

    def test_it_loads_while_another_model_loads(self) -> None:
        machine = Machine()
        machine.ask("a")
        machine.post(Planned(machine.resident("a").generation, plan("a")))
        ticket = self.ask(machine)
        assert any(isinstance(action, MakePlan) for action in machine.actions)
        assert Grant(ticket, machine.state.residents[self.REMOTE].generation) in self.come_up(machine)
        assert machine.resident("a").phase == "starting"

    def test_it_does_not_count_as_one_that_is_loaded(self) -> None:
        machine = Machine(max_loaded=1)
        machine.leave(machine.load("a"))
        self.ask(machine)
        self.come_up(machine)
        assert machine.resident("a").phase == "ready", "nobody leaves for it"
        machine.ask("b")
        machine.post(Planned(machine.resident("b").generation, plan("b")))
        assert machine.resident("a").phase == "stopping"
        assert machine.state.residents[self.REMOTE].phase == "ready", "it leaves for nobody"

    def test_no_option_loads_it_again(self) -> None:
        machine = Machine()
        self.ask(machine)
        self.come_up(machine)
        wanted = LoadOptions(context_tokens=10**6, gpu_layers=99, slots=500)
        ticket = self.ask(machine, wanted=wanted, options=wanted)
        assert Grant(ticket, machine.state.residents[self.REMOTE].generation) in machine.actions
