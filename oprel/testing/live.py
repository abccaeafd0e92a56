"""The app on a real socket, in a thread of this process: what a client library is pointed at in a test."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from oprel.dialects.services import Services
from oprel.scheduler import Scheduler
from oprel.server.running import Serving, loop_factory
from oprel.version import __version__

if TYPE_CHECKING:
    from oprel.config import Settings
    from oprel.scheduler.owner import Registry
    from oprel.sources import Puller
    from oprel.store import Catalog

__all__ = ["LiveServer", "live_server"]

_OPEN_S = 60.0
_END_S = 60.0


class LiveServer:
    """`url` is for Ollama's clients, `openai_url` for OpenAI's; `said` is what it told when it opened."""

    def __init__(self, make: Callable[[int], Services]) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.openai_url = f"{self.url}/v1"
        self.said: list[str] = []
        self.services = make(self.port)
        self._open = threading.Event()
        self._failure: BaseException | None = None
        self._serving: Serving | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="oprel live server", daemon=True)

    def __repr__(self) -> str:
        return f"<LiveServer at {self.url}>"

    def start(self) -> None:
        self._thread.start()
        if not self._open.wait(_OPEN_S):
            raise TimeoutError(f"the server didn't open within {_OPEN_S:g} s")
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """Ends it at once; running requests end with it. TimeoutError when it doesn't end."""
        if self._loop is not None and self._serving is not None:
            with suppress(RuntimeError):  # its loop is closed: it has ended
                for _ in range(2):  # the second time it doesn't wait
                    self._loop.call_soon_threadsafe(self._serving.stop)
        self._thread.join(_END_S)
        if self._thread.is_alive():
            raise TimeoutError(f"the server didn't end within {_END_S:g} s")
        self._listener.close()
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=loop_factory()) as runner:
                runner.run(self._serve())
        except BaseException as failure:
            self._failure = failure
        finally:
            self._open.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._serving = Serving(self.services, self._listener, say=self.said.append)
        async with asyncio.TaskGroup() as tasks:
            serving = tasks.create_task(self._serving.run())
            opened = tasks.create_task(self._serving.is_open.wait())
            await asyncio.wait((serving, opened), return_when=asyncio.FIRST_COMPLETED)
            self._open.set()
            await serving
            opened.cancel()


@contextmanager
def live_server(
    *, catalog: Catalog, registry: Registry, settings: Settings, puller: Puller | None = None
) -> Iterator[LiveServer]:
    """Serves `catalog` by `registry` for the time of the block; no engine is left after it."""

    def make(port: int) -> Services:
        here = settings.model_copy(update={"port": port, "drain_timeout": 0.0})
        return Services(
            settings=here,
            catalog=catalog,
            scheduler=Scheduler(catalog=catalog, registry=registry, settings=here),
            puller=puller,  # type: ignore[arg-type]  # a server without one pulls nothing
            version=__version__,
        )

    server = LiveServer(make)
    server.start()
    try:
        yield server
    finally:
        server.stop()
