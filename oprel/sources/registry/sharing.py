"""One download for all who want the same blob at the same time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from oprel.sources.progress import Completed

__all__ = ["SharedDownloads"]

Start = Callable[[Completed], Awaitable[None]]


class _Download:
    def __init__(self, start: Start) -> None:
        self.listeners: list[Completed] = []
        self.task = asyncio.ensure_future(start(self._tell))

    def _tell(self, done: int, total: int | None) -> None:
        for listener in tuple(self.listeners):
            listener(done, total)


class SharedDownloads:
    """Owned by the puller. A download belongs to those who wait for it: the last one to leave ends it."""

    def __init__(self) -> None:
        self._running: dict[str, _Download] = {}

    async def fetch(self, key: str, start: Start, completed: Completed) -> None:
        """`start` is used when nobody is at it yet. Raises what it raised."""
        download = self._running.get(key)
        if download is None or download.task.done():
            download = self._running[key] = _Download(start)
        download.listeners.append(completed)
        try:
            await asyncio.shield(download.task)
        finally:
            download.listeners.remove(completed)
            if not download.listeners:
                if self._running.get(key) is download:
                    del self._running[key]
                download.task.cancel()
                with contextlib.suppress(asyncio.CancelledError, Exception):
                    await download.task
