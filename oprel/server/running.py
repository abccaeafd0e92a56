"""`oprel serve`: the app on a socket, from the first line it says to the last engine gone."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import socket
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn
from litestar.types import ASGIApp

from oprel.config import Settings
from oprel.dialects.services import Services
from oprel.drivers.registry import AUTO
from oprel.errors import ConfigError, OprelError
from oprel.server.access import is_loopback
from oprel.server.app import create_app
from oprel.server.compose import compose
from oprel.server.descriptors import allowed_connections, raise_limit
from oprel.server.gate import Gate
from oprel.server.lifetime import Lifetime
from oprel.server.listen import bind
from oprel.server.log import configure_logging
from oprel.server.opening import engine_lines, look_into_models, opening_lines
from oprel.server.protocol import bounded_protocol
from oprel.server.state import server_state

__all__ = [
    "Observe",
    "Say",
    "Serving",
    "check_exposure",
    "loop_factory",
    "serve",
]

_log = logging.getLogger("oprel.server")

Say = Callable[[str], None]
"""Takes one line for the person who started the server."""

Observe = Callable[[ASGIApp], ASGIApp]
"""Puts something around the app, through which all that is asked and answered passes."""

# After engines are gone, answers need no longer than this to end.
_LAST_WORDS_S = 5
_KEEP_ALIVE_S = 75
_TICK_S = 1.0


def serve(settings: Settings, *, say: Say, observe: Observe | None = None) -> None:
    """Serves until a signal or `POST /oprel/shutdown`; returns when engines and sockets are gone. An error says
    why it can't start; nothing is left then. Port 0: one that is free. `observe` stands around the app."""
    check_exposure(settings)
    listener = bind(settings)
    try:
        settings = settings.model_copy(update={"port": listener.getsockname()[1]})
        configure_logging(verbose=settings.verbose, log_file=settings.log_file)
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            runner.run(_serve(settings, listener, say, observe))
    finally:
        listener.close()


def check_exposure(settings: Settings) -> None:
    """A server that others can reach needs a key."""
    if is_loopback(settings.host) or settings.api_keys or settings.allow_unauthenticated:
        return
    raise ConfigError(
        f"--host {settings.host} lets other machines use this server, and it has no key: give --api-key-file "
        "(or OPREL_API_KEY), or --allow-unauthenticated where the network itself keeps strangers out"
    )


async def _serve(settings: Settings, listener: socket.socket, say: Say, observe: Observe | None) -> None:
    # Nothing is awaited until there is something to stop: the loop calls a signal's handler when it is free.
    with _signals_to(lambda: serving.stop()), server_state(settings):
        services = compose(settings)
        if services.registry is not None and settings.driver != AUTO:
            services.registry.get(settings.driver)  # raises now what every request would be told
        serving = Serving(services, listener, say=say, observe=observe)
        gc.collect()
        gc.freeze()  # it stays: looking through all modules again and again took a tenth of the time of a stream
        await serving.run()


@contextlib.contextmanager
def _signals_to(stop: Callable[[], None]) -> Iterator[None]:
    """Ctrl-C and SIGTERM."""
    loop = asyncio.get_running_loop()
    caught = (signal.SIGINT, signal.SIGTERM)
    for number in caught:
        loop.add_signal_handler(number, stop)
    try:
        yield
    finally:
        for number in caught:
            loop.remove_signal_handler(number)


class Serving:
    """One run of the app on a listening socket. The first `stop`, or a request to stop, drains: new requests are
    refused, running ones end, at the latest when `drain_timeout` is over. A second `stop` doesn't wait.

    `is_open` is set once requests are answered."""

    def __init__(
        self, services: Services, listener: socket.socket, *, say: Say, observe: Observe | None = None
    ) -> None:
        app = create_app(services)
        self.is_open = asyncio.Event()
        self._services = services
        self._settings = services.settings
        self._listener = listener
        self._say = say
        self._lifetime: Lifetime = app.state["lifetime"]
        self._gate: Gate = app.state["gate"]
        served: Any = app if observe is None else observe(app)
        self._server = _Server(uvicorn.Config(served, **self._uvicorn_options()), self.is_open)
        self._hurry = asyncio.Event()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            ending = tasks.create_task(self._end())
            opening = tasks.create_task(self._open())
            try:
                await self._server.serve(sockets=[self._listener])
            finally:
                ending.cancel()
                opening.cancel()

    def stop(self) -> None:
        """On the loop's thread; safe to call again."""
        if self._lifetime.stop_requested.is_set():
            self._hurry.set()
        self._lifetime.stop_requested.set()

    def _uvicorn_options(self) -> dict[str, Any]:
        return {
            "http": bounded_protocol(self._settings, max_connections=allowed_connections(raise_limit())),
            "ws": "none",
            "lifespan": "on",
            "log_config": None,
            "access_log": False,
            "server_header": False,
            "timeout_keep_alive": _KEEP_ALIVE_S,
            "timeout_graceful_shutdown": _LAST_WORDS_S,
        }

    async def _open(self) -> None:
        """Says what is served, where, and (as soon as it is known) with which engines; then looks into the models."""
        await self.is_open.wait()
        try:
            models = await asyncio.to_thread(self._services.catalog.list, described=False)
            for line in opening_lines(self._settings, self._services.version, models):
                self._say(line)
            if self._services.registry is not None:
                for line in await engine_lines(self._services.registry):
                    self._say(line)
            await look_into_models(self._services, models)
        except OprelError as error:  # what can't be told yet is told to whoever asks for it
            self._say(f"warning: {error}")

    async def _end(self) -> None:
        await self._lifetime.stop_requested.wait()
        self._lifetime.is_draining = True
        if self._gate.running:
            self._say(f"stopping: {self._gate.running} running requests may end; stop again to end them now")
        await self._wait_drained()
        # Engines go first: what still runs is told so by its stream, and ends with an error in its dialect.
        await self._lifetime.stop()
        self._server.end()

    async def _wait_drained(self) -> None:
        hurry = asyncio.ensure_future(self._hurry.wait())
        idle = asyncio.ensure_future(self._gate.wait_idle())
        try:
            await asyncio.wait((hurry, idle), timeout=self._settings.drain_timeout, return_when=asyncio.FIRST_COMPLETED)
        finally:
            hurry.cancel()
            idle.cancel()


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: the end of a server is more than closing its sockets."""

    def __init__(self, config: uvicorn.Config, is_open: asyncio.Event) -> None:
        super().__init__(config)
        self._is_open = is_open
        self._is_over = asyncio.Event()

    def end(self) -> None:
        self.should_exit = True
        self._is_over.set()

    async def main_loop(self) -> None:
        """Once a second, for the `Date` of answers, and at once when it is over: uvicorn's own looks ten times a second
        whether it is, which keeps a processor from sleep."""
        while not await self.on_tick(0):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_TICK_S):
                    await self._is_over.wait()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._is_open.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop
