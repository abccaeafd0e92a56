"""Ask again where another try may succeed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt

from oprel.net.outside import TransientSourceError
from oprel.sources import download

__all__ = ["pause", "retried"]

T = TypeVar("T")


async def pause(seconds: float) -> None:
    await asyncio.sleep(seconds)


async def retried(work: Callable[[], Awaitable[T]]) -> T:
    """What `work` gives; after the last try, what that raised."""
    async for attempt in AsyncRetrying(
        stop=stop_after_attempt(download.ATTEMPTS),
        wait=lambda state: download.wait_before_retry(state),
        retry=retry_if_exception_type(TransientSourceError),
        sleep=lambda seconds: pause(seconds),
        reraise=True,
    ):
        with attempt:
            return await work()
    raise AssertionError("the last try returns or raises")
