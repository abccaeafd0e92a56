"""How each replica stands, by what came of its requests; and which one is asked next. Pure: time is a parameter.

| state | when | asked |
|---|---|---|
| ready | what it was asked last, it answered | the least busy of these first; of equals the one not asked for longest |
| on trial | its rest is over | by one request at a time, like a ready one; its first answer makes it ready |
| resting | it failed, or said when it may be asked again | only when there is no other, the one whose rest ends first |
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal

__all__ = ["FIRST_REST_S", "LONGEST_REST_S", "Standing", "choose"]

FIRST_REST_S = 0.25
LONGEST_REST_S = 60.0


class Standing:
    """Of one replica. Times in seconds of one clock; `began` is when a request was sent to it.

    Requests that fail together are one failure: only one that began after the last failure tells of another.
    """

    __slots__ = ("asked", "failing_since", "failures", "in_use", "is_tried", "last_failed", "rests_until")

    def __init__(self) -> None:
        self.in_use = 0
        self.asked = 0
        self.failures = 0
        self.failing_since: float | None = None
        self.last_failed = -1.0
        self.rests_until = 0.0
        self.is_tried = False

    def state(self, now: float) -> Literal["ready", "trial", "resting"]:
        if now < self.rests_until:
            return "resting"
        return "ready" if self.failures == 0 else "trial"

    def begin(self, now: float, turn: int) -> None:
        """`turn` counts the requests of all replicas."""
        self.in_use += 1
        self.asked = turn
        if self.state(now) != "ready":
            self.is_tried = True

    def end(self) -> None:
        self.in_use -= 1

    def answered(self, began: float) -> None:
        """It made progress, or refused in earnest: it's alive."""
        if began >= self.last_failed:
            self.failures = 0
            self.failing_since = None
            self.rests_until = 0.0
        self.is_tried = False

    def failed(self, began: float, now: float) -> None:
        self.is_tried = False
        if began < self.last_failed:
            return
        self.failures += 1
        self.last_failed = now
        if self.failing_since is None:
            self.failing_since = now
        self.rests_until = now + min(LONGEST_REST_S, FIRST_REST_S * 2.0 ** min(self.failures - 1, 16))

    def busy(self, now: float, wait_s: float) -> None:
        """It's alive, and said when it may be asked again."""
        self.is_tried = False
        self.rests_until = max(self.rests_until, now + min(LONGEST_REST_S, wait_s))


def choose(standings: Sequence[Standing], now: float, *, passed_over: Collection[int] = ()) -> int:
    """The position of the replica that is asked next; those of `passed_over` (this request's own failures) only when
    the others rest."""

    def rank(position: int) -> tuple[float, ...]:
        standing = standings[position]
        state = standing.state(now)
        if state == "resting":
            return (3, standing.rests_until, standing.in_use, standing.asked)
        kind = 2 if position in passed_over else 1 if state == "trial" and standing.is_tried else 0
        return (kind, standing.in_use, standing.asked)

    return min(range(len(standings)), key=rank)
