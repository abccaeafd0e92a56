"""A clock that a test turns by hand, and the one way to wait for something that happens on the loop."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Callable

__all__ = ["FakeClock", "eventually"]

_WALL_START = 1_700_000_000.0


class FakeClock:
    """Keeps `oprel.scheduler.Clock`; time passes only in `advance`. `wall_offset_s` may be changed: a clock jump."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.wall_offset_s = 0.0
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._order = itertools.count()

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return _WALL_START + self.now + self.wall_offset_s

    async def sleep(self, seconds: float) -> None:
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self.now + seconds, next(self._order), woken))
        await woken

    @property
    def sleeping(self) -> int:
        """How many tasks sleep on this clock."""
        return sum(not woken.done() for _, _, woken in self._sleepers)

    async def advance(self, seconds: float) -> None:
        """Lets time pass: each sleeper wakes at its own moment and runs as far as it can before time goes on."""
        end = self.now + seconds
        await settle()
        while self._sleepers and self._sleepers[0][0] <= end:
            due, _, woken = heapq.heappop(self._sleepers)
            if woken.done():
                continue
            self.now = max(self.now, due)
            woken.set_result(None)
            await settle()
        self.now = end
        await settle()


async def settle(rounds: int = 30) -> None:
    """Lets the loop's ready callbacks run, and theirs; threads are not waited for (`eventually` does)."""
    for _ in range(rounds):
        await asyncio.sleep(0)


async def eventually(condition: Callable[[], object], *, limit_s: float = 10.0) -> None:
    """Waits until `condition()` is true; AssertionError past `limit_s` seconds of real time."""
    loop = asyncio.get_running_loop()
    end = loop.time() + limit_s
    while not condition():
        if loop.time() > end:
            raise AssertionError(f"still not so after {limit_s} s")
        await asyncio.sleep(0.001)
