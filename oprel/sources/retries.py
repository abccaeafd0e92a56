"""Ask again where another try may succeed, and how long to wait before it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_exponential, wait_random

from oprel.net.outside import TransientSourceError, UnreachableError

__all__ = ["ATTEMPTS", "ATTEMPTS_TO_REACH", "Progress", "attempts", "pause", "retried", "wait_before_retry"]

ATTEMPTS = 6
ATTEMPTS_TO_REACH = 3
MAX_WAIT_S = 60.0
_BACK_OFF = wait_exponential(multiplier=0.5, max=MAX_WAIT_S) + wait_random(0, 0.5)

T = TypeVar("T")


def wait_before_retry(state: RetryCallState) -> float:
    """Seconds: what the server asked for, else doubling from half a second, with some chance in it so that not all
    come back at once; a minute at most."""
    error = state.outcome.exception() if state.outcome is not None else None
    asked = error.retry_after_s if isinstance(error, TransientSourceError) else None
    return min(MAX_WAIT_S, asked) if asked is not None else _BACK_OFF(state)


async def pause(seconds: float) -> None:
    await asyncio.sleep(seconds)


class Progress(Protocol):
    """Work that gets on over several tries; `fruitless` counts those in a row that brought nothing."""

    fruitless: int


def attempts(work: Progress | None = None, *, tries: int = ATTEMPTS) -> AsyncRetrying:
    """Tries of what may succeed another time, with a wait between them: so many, of them three where nobody can be
    reached; or, of `work` that gets on, until so many in a row were fruitless. After the last one, what that raised."""

    def is_last(state: RetryCallState) -> bool:
        if work is not None:
            return work.fruitless >= tries
        error = state.outcome.exception() if state.outcome is not None else None
        return state.attempt_number >= (min(tries, ATTEMPTS_TO_REACH) if isinstance(error, UnreachableError) else tries)

    return AsyncRetrying(
        stop=is_last,
        wait=lambda state: wait_before_retry(state),
        retry=retry_if_exception_type(TransientSourceError),
        sleep=lambda seconds: pause(seconds),
        reraise=True,
    )


async def retried(work: Callable[[], Awaitable[T]], *, tries: int = ATTEMPTS) -> T:
    """What `work` gives; after the last try, what that raised."""
    async for attempt in attempts(tries=tries):
        with attempt:
            return await work()
    raise AssertionError("the last try returns or raises")
