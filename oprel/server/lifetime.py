"""The part of a server that runs: its scheduler, started once, drained once, stopped once, by one owner."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import TracebackType

from oprel.dialects.services import Services

__all__ = ["Lifetime"]

_log = logging.getLogger("oprel.server")


class Lifetime:
    """The scheduler lives in a task of its own, so that whoever learns first that it is over may stop it: a signal
    that can't wait, or the end of the app. `is_draining`: what runs may end, and nothing new begins."""

    def __init__(self, services: Services) -> None:
        self.is_draining = False
        self.stop_requested = asyncio.Event()  # by `POST /oprel/shutdown`; whoever serves the app waits for it
        self._services = services
        self._over = asyncio.Event()
        self._owner: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Lifetime:
        started = asyncio.Event()
        self._owner = asyncio.create_task(self._own(started), name="oprel-lifetime")
        starting = asyncio.ensure_future(started.wait())
        try:
            await asyncio.wait((self._owner, starting), return_when=asyncio.FIRST_COMPLETED)
        finally:
            starting.cancel()
        if self._owner.done():
            await self._owner  # raises what kept it from starting
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def stop(self) -> None:
        """Engines are gone when it returns; safe to call twice, and by two at once."""
        self.is_draining = True
        self._over.set()
        if self._owner is not None:
            await asyncio.shield(self._owner)

    async def _own(self, started: asyncio.Event) -> None:
        async with self._marked(), self._services.scheduler:
            started.set()
            await self._over.wait()

    @asynccontextmanager
    async def _marked(self) -> AsyncIterator[None]:
        """After an unclean end every file is read again before it is loaded."""
        mark = self._services.mark
        if mark is None:
            yield
            return
        if await asyncio.to_thread(mark.begin):
            _log.warning("the server before this one was cut off: models are read whole before they are loaded again")
            await asyncio.to_thread(self._services.catalog.store.verified.forget_all)
        try:
            yield
        finally:
            await asyncio.to_thread(mark.end)
