"""Calls into code that isn't ours: each has a limit, and whatever it raises comes back as something that can be told.

A call that never returns can't be ended from outside; it is left behind (a daemon thread, a task that was told to end)
and nobody waits for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Generic, TypeVar

__all__ = ["GRACE_S", "Hung", "Raised", "bounded", "contained", "described", "held", "let_go", "outcome_of"]

GRACE_S = 5.0
"""What is told to end has so long to do it."""

T = TypeVar("T")


class Raised(Exception):
    """What a call raised, whatever it was: SystemExit, and a CancelledError that nobody asked for, included."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(f"raised {described(error)}")
        self.error = error


class Hung(Exception):
    """A call didn't return in time."""

    def __init__(self, limit_s: float) -> None:
        super().__init__(f"didn't return within {limit_s:g} s")


class _Outcome(Generic[T]):
    value: T
    error: BaseException | None = None


def bounded(call: Callable[[], T], *, limit_s: float) -> T:
    """`call()`, made in a thread that nothing waits for at exit. Raises Raised or Hung."""
    outcome: _Outcome[T] = _Outcome()

    def run() -> None:
        try:
            outcome.value = call()
        except BaseException as error:  # SystemExit in a driver must not be ours
            outcome.error = error

    thread = threading.Thread(target=run, name="oprel third party", daemon=True)
    thread.start()
    thread.join(limit_s)
    if thread.is_alive():
        raise Hung(limit_s)
    if outcome.error is not None:
        raise Raised(outcome.error) from outcome.error
    return outcome.value


async def held(call: Callable[[], Awaitable[T]], *, limit_s: float | None) -> T:
    """What `call()` comes to, in a task of its own. Raises Raised or Hung. When this is cancelled, so is the work; it
    has a moment to end, and is then let go, whatever it does."""
    work = contained(call)
    task = asyncio.create_task(work)
    try:
        await asyncio.wait({task}, timeout=limit_s)
    except asyncio.CancelledError:
        await let_go(task, work)
        raise
    if not task.done():
        await let_go(task, work)
        raise Hung(limit_s or 0.0)
    return outcome_of(task)


async def contained(call: Callable[[], Awaitable[T]]) -> T | Raised:
    """What `call()` comes to, or Raised, as a value: a task that ends with SystemExit or KeyboardInterrupt would end
    the loop with it. CancelledError goes through."""
    try:
        return await call()
    except asyncio.CancelledError:
        raise
    except BaseException as error:
        return Raised(error)


def outcome_of(task: asyncio.Task[T | Raised]) -> T:
    """Of a task of `contained` that is done and that nobody cancelled."""
    if task.cancelled():
        raise Raised(asyncio.CancelledError("it cancelled itself"))
    outcome = task.result()
    if isinstance(outcome, Raised):
        raise outcome
    return outcome


async def let_go(task: asyncio.Task[Any], work: Coroutine[Any, Any, Any]) -> bool:
    """Cancels `task`, which runs `work`, and waits a moment for its end. One that refuses is closed by force, as far as
    that goes; whether it ended by itself is returned. Its outcome is of no interest any more."""
    task.add_done_callback(_swallow)
    task.cancel()
    await asyncio.wait({task}, timeout=GRACE_S)
    if task.done():
        return True
    with contextlib.suppress(BaseException):
        work.close()
    task.cancel()
    return False


def _swallow(task: asyncio.Task[Any]) -> None:
    if not task.cancelled():
        task.exception()


def described(error: BaseException) -> str:
    text = str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
