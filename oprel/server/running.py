"""`oprel serve`: the app on a socket, from the first line it says to the last engine gone."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn

from oprel.config import Settings
from oprel.dialects.services import Services
from oprel.errors import ConfigError
from oprel.server.access import is_loopback
from oprel.server.app import create_app
from oprel.server.compose import compose
from oprel.server.gate import Gate, request_id
from oprel.server.lifetime import Lifetime
from oprel.server.listen import bind
from oprel.server.opening import engine_lines, opening_lines
from oprel.server.protocol import bounded_protocol
from oprel.server.state import server_state

__all__ = ["Say", "check_exposure", "configure_logging", "serve"]

_log = logging.getLogger("oprel.server")

Say = Callable[[str], None]
"""Takes one line for the person who started the server."""

# After engines are gone, answers need no longer than this to end.
_LAST_WORDS_S = 5
_KEEP_ALIVE_S = 75


def serve(settings: Settings, *, say: Say) -> None:
    """Serves until a signal or `POST /oprel/shutdown`; returns when engines and sockets are gone. ConfigError when it
    can't start; nothing is left then. Port 0: one that is free."""
    check_exposure(settings)
    listener = bind(settings)
    try:
        settings = settings.model_copy(update={"port": listener.getsockname()[1]})
        configure_logging(verbose=settings.verbose)
        with server_state(settings), asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(_Serving(settings, listener, say).run())
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


def configure_logging(*, verbose: bool) -> None:
    """Lines of the log go to stderr; each carries the id of the request it is about."""
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(_with_request_id)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s [%(request)s] %(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("oprel").setLevel(logging.DEBUG if verbose else logging.INFO)


def _with_request_id(record: logging.LogRecord) -> bool:
    record.request = request_id.get()
    return True


class _Serving:
    """One run. The first signal, or a request to stop, drains: new requests are refused, running ones end, at the
    latest when `drain_timeout` is over. A second signal doesn't wait."""

    def __init__(self, settings: Settings, listener: socket.socket, say: Say) -> None:
        self._settings = settings
        self._listener = listener
        self._say = say
        self._signals = 0
        self._hurry = asyncio.Event()

    async def run(self) -> None:
        services = compose(self._settings)
        app = create_app(services)
        lifetime: Lifetime = app.state["lifetime"]
        server = _Server(uvicorn.Config(app, **self._uvicorn_options()))
        with self._signals_to(lifetime):
            async with asyncio.TaskGroup() as tasks:
                ending = tasks.create_task(self._end(server, app.state["gate"], lifetime))
                opening = tasks.create_task(self._open(server, services))
                try:
                    await server.serve(sockets=[self._listener])
                finally:
                    ending.cancel()
                    opening.cancel()

    def _uvicorn_options(self) -> dict[str, Any]:
        settings = self._settings
        return {
            "http": bounded_protocol(
                header_timeout=settings.header_timeout,
                body_timeout=settings.body_timeout,
                send_timeout=settings.send_timeout,
            ),
            "ws": "none",
            "lifespan": "on",
            "log_config": None,
            "access_log": False,
            "server_header": False,
            "timeout_keep_alive": _KEEP_ALIVE_S,
            "timeout_graceful_shutdown": _LAST_WORDS_S,
        }

    @contextlib.contextmanager
    def _signals_to(self, lifetime: Lifetime) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        caught = (signal.SIGINT, signal.SIGTERM)
        for number in caught:
            loop.add_signal_handler(number, self._on_signal, lifetime)
        try:
            yield
        finally:
            for number in caught:
                loop.remove_signal_handler(number)

    def _on_signal(self, lifetime: Lifetime) -> None:
        self._signals += 1
        lifetime.stop_requested.set()
        if self._signals > 1:
            self._hurry.set()

    async def _open(self, server: _Server, services: Services) -> None:
        """Says what is served, where, and (as soon as it is known) with which engines."""
        await server.is_open.wait()
        for line in await opening_lines(self._settings, services):
            self._say(line)
        if services.registry is not None:
            for line in await engine_lines(services.registry):
                self._say(line)

    async def _end(self, server: _Server, gate: Gate, lifetime: Lifetime) -> None:
        await lifetime.stop_requested.wait()
        lifetime.is_draining = True
        if gate.running:
            self._say(f"stopping: {gate.running} running requests may end; stop again to end them now")
        hurry = asyncio.ensure_future(self._hurry.wait())
        idle = asyncio.ensure_future(gate.wait_idle())
        try:
            await asyncio.wait((hurry, idle), timeout=self._settings.drain_timeout, return_when=asyncio.FIRST_COMPLETED)
        finally:
            hurry.cancel()
            idle.cancel()
        # Engines go first: what still runs is told so by its stream, and ends with an error in its dialect.
        await lifetime.stop()
        server.should_exit = True


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: the end of a server is more than closing its sockets."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.is_open = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.is_open.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop
