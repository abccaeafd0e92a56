"""Time as the scheduler sees it, so that tests need not wait."""

from __future__ import annotations

import asyncio
import time
from typing import Protocol

__all__ = ["Clock", "SystemClock"]


class Clock(Protocol):
    """Intervals are measured by `monotonic`, which no clock jump moves; `wall` is only shown to people. Seconds."""

    def monotonic(self) -> float: ...

    def wall(self) -> float:
        """Unix time."""

    async def sleep(self, seconds: float) -> None: ...


class SystemClock:
    """The machine's own clocks."""

    def monotonic(self) -> float:
        return time.monotonic()

    def wall(self) -> float:
        return time.time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
