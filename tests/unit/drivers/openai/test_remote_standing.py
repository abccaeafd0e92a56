"""Which replica is asked next, and how long one that failed is left alone: rules without a clock."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oprel.drivers.openai.standing import FIRST_REST_S, LONGEST_REST_S, Standing, choose


def standings(count: int) -> list[Standing]:
    return [Standing() for _ in range(count)]


def begin(replicas: list[Standing], now: float = 0.0, *, passed_over: tuple[int, ...] = ()) -> int:
    position = choose(replicas, now, passed_over=passed_over)
    replicas[position].begin(now, sum(1 for _ in replicas) + max(replica.asked for replica in replicas))
    return position


def test_the_least_busy_is_asked() -> None:
    replicas = standings(3)
    assert sorted(begin(replicas) for _ in range(6)) == [0, 0, 1, 1, 2, 2]
    replicas[1].end()
    assert begin(replicas) == 1


def test_of_equals_the_one_not_asked_for_longest() -> None:
    replicas = standings(2)
    order = []
    for _ in range(4):
        position = begin(replicas)
        replicas[position].end()
        order.append(position)
    assert order == [0, 1, 0, 1]


def test_one_that_failed_is_left_alone_and_comes_back() -> None:
    replicas = standings(2)
    replicas[0].failed(began=0.0, now=1.0)
    assert replicas[0].state(1.0 + FIRST_REST_S / 2) == "resting"
    assert begin(replicas, 1.1) == 1
    later = 1.0 + FIRST_REST_S
    assert replicas[0].state(later) == "trial"
    assert begin(replicas, later) == 0, "the idle one, though it's on trial"
    assert begin(replicas, later) == 1, "one request is enough to find out"
    replicas[0].answered(began=later)
    assert replicas[0].state(later) == "ready"


def test_rests_double_up_to_a_limit() -> None:
    replica = Standing()
    now, rests = 0.0, []
    for _ in range(12):
        replica.failed(began=now, now=now)
        rests.append(replica.rests_until - now)
        now = replica.rests_until
    assert rests[:4] == [FIRST_REST_S, 2 * FIRST_REST_S, 4 * FIRST_REST_S, 8 * FIRST_REST_S]
    assert rests[-1] == LONGEST_REST_S


def test_requests_that_fail_together_are_one_failure() -> None:
    """Thirty streams of a server that dies are no reason to leave it alone for a minute."""
    replica = Standing()
    for began in range(30):
        replica.failed(began=float(began), now=100.0)
    assert replica.failures == 1


def test_an_answer_that_was_asked_for_before_the_failure_heals_nothing() -> None:
    replica = Standing()
    replica.failed(began=5.0, now=6.0)
    replica.answered(began=4.0)
    assert replica.state(6.1) == "resting"


def test_a_busy_one_says_when() -> None:
    replicas = standings(2)
    replicas[0].busy(now=0.0, wait_s=7.0)
    assert (replicas[0].state(6.9), replicas[0].state(7.1)) == ("resting", "ready")
    replicas[1].busy(now=0.0, wait_s=1e9)
    assert replicas[1].rests_until == LONGEST_REST_S


def test_where_all_rest_the_first_to_end_is_asked() -> None:
    replicas = standings(2)
    replicas[0].busy(now=0.0, wait_s=9.0)
    replicas[1].busy(now=0.0, wait_s=3.0)
    assert choose(replicas, 1.0) == 1


@pytest.mark.parametrize("tried", [(0,), (1,)])
def test_a_request_goes_elsewhere_the_second_time(tried: tuple[int, ...]) -> None:
    assert choose(standings(2), 0.0, passed_over=tried) == 1 - tried[0]


@given(
    st.lists(st.tuples(st.sampled_from(["begin", "answer", "fail", "busy"]), st.floats(0, 5)), min_size=1, max_size=60),
    st.integers(1, 4),
)
def test_somebody_is_always_asked_and_nothing_is_counted_twice(steps: list[tuple[str, float]], count: int) -> None:
    replicas, now, turn = standings(count), 0.0, 0
    running: list[tuple[int, float]] = []
    for step, passed in steps:
        now += passed
        if step == "begin":
            position = choose(replicas, now)
            states = [replica.state(now) for replica in replicas]
            if "ready" in states:
                assert states[position] != "resting", "never one that rests beside one that is ready"
            turn += 1
            replicas[position].begin(now, turn)
            running.append((position, now))
        elif running:
            position, began = running.pop()
            replica = replicas[position]
            if step == "answer":
                replica.answered(began)
            elif step == "fail":
                replica.failed(began, now)
            else:
                replica.busy(now, passed)
            replica.end()
        assert sum(replica.in_use for replica in replicas) == len(running)
        assert all(replica.rests_until <= now + LONGEST_REST_S for replica in replicas)
