"""Blocking work in a thread that stops when its task is cancelled."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Executor
from contextvars import copy_context
from typing import TypeVar

__all__ = ["StopFlag", "Stopped", "in_thread"]

T = TypeVar("T")


class Stopped(Exception):
    """Raised inside the thread by `StopFlag.check`; the task that waits sees its own cancellation instead."""


class StopFlag:
    def __init__(self) -> None:
        self._event = threading.Event()

    def set(self) -> None:
        self._event.set()

    def check(self) -> None:
        """Call it between blocks of work."""
        if self._event.is_set():
            raise Stopped


async def in_thread(
    work: Callable[[StopFlag], T], *, pool: Executor | None = None, on_stop: Callable[[], None] | None = None
) -> T:
    """Run `work(stop)` in a thread, of `pool` where one is given, in this task's context. When cancelled, waits until
    the thread has ended, so that what it used can be cleaned up: `work` looks at `stop` often, or `on_stop` makes it
    end."""
    stop = StopFlag()
    running = asyncio.get_running_loop().run_in_executor(pool, copy_context().run, work, stop)
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        stop.set()
        if on_stop is not None:
            on_stop()
        while not running.done():
            try:
                await asyncio.wait([running])
            except asyncio.CancelledError:
                continue  # told twice; the thread ends soon in any case
        if not running.cancelled():
            running.exception()  # seen, so that the loop doesn't report it
        raise
