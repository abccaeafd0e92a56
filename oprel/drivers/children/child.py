"""One engine process, from its start to the last file that it leaves."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import cast

from oprel.drivers.children.logs import LogRing
from oprel.drivers.children.places import Place
from oprel.drivers.children.processes import resident_bytes
from oprel.drivers.children.shim_command import Mode, default_mode, shim_command

__all__ = ["Child"]

# A killed process ends at once unless it hangs in the kernel (a GPU driver that is stuck).
_KILL_LIMIT_S = 5.0
# The log's end comes with the process's, unless a grandchild holds it open.
_LOG_END_LIMIT_S = 0.5


class Child:
    """A process in a session and group of its own, which dies with us.

    Its output is drained into `logs` by the event loop itself, so there is no task that could be forgotten. Made by
    `spawn`; whoever made it must call `stop`, whatever happened in between.
    """

    def __init__(self, name: str, place: Place, logs: LogRing) -> None:
        self.name = name
        self.place = place
        self.logs = logs
        self.pid = 0
        self._transport: asyncio.SubprocessTransport | None = None
        self._exited = asyncio.Event()
        self._closed = asyncio.Event()

    def __repr__(self) -> str:
        return f"<Child {self.name} pid={self.pid} returncode={self.returncode}>"

    @classmethod
    async def spawn(
        cls,
        command: Sequence[str],
        *,
        name: str,
        place: Place,
        environment: Mapping[str, str],
        logs: LogRing | None = None,
        mode: Mode | None = None,
    ) -> Child:
        """Starts `command` (its first word an absolute path). On failure and on cancellation nothing is left."""
        mode = mode or default_mode()
        child = cls(name, place, logs or LogRing())
        place.claim(engine=name)
        try:
            # On the loop's own thread: the parent-death signal comes when the thread ends that started the child.
            transport, _ = await asyncio.get_running_loop().subprocess_exec(
                lambda: _Output(child),
                *shim_command(command, mode=mode),
                stdin=asyncio.subprocess.PIPE if mode == "watch" else asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                env=dict(environment),
                cwd="/",
                start_new_session=True,
            )
            child._transport = transport
            child.pid = transport.get_pid()
            place.claim(engine=name, pid=child.pid)
        except BaseException:
            await child.stop(grace_s=0)
            raise
        return child

    @property
    def returncode(self) -> int | None:
        """Negative: the signal that ended it. None: it runs."""
        return self._transport.get_returncode() if self._transport is not None else None

    @property
    def is_running(self) -> bool:
        return self._transport is not None and not self._exited.is_set()

    async def wait(self) -> int:
        """Returns when the process has ended and its log is complete."""
        await self._exited.wait()
        with suppress(TimeoutError):
            async with asyncio.timeout(_LOG_END_LIMIT_S):
                await self._closed.wait()
        return self.returncode or 0

    def describe_death(self) -> str | None:
        """One sentence about how it ended; None while it runs."""
        code = self.returncode
        if code is None:
            return None
        if code >= 0:
            return f"{self.name} (process {self.pid}) ended with code {code}"
        try:
            called = signal.Signals(-code).name
        except ValueError:
            called = str(-code)
        return f"{self.name} (process {self.pid}) was ended by signal {called}"

    def kill(self) -> None:
        """Ends it and all that it started, at once, whatever state it is in."""
        self._signal(signal.SIGKILL)

    async def stop(self, *, grace_s: float) -> None:
        """TERM, `grace_s` of patience, KILL of the group, its files removed. Cancelled, it kills without patience.
        Safe to call twice. A process that not even KILL ends keeps its record, for the next start to find."""
        try:
            if self.is_running and grace_s > 0:
                self._signal(signal.SIGTERM)
                with suppress(TimeoutError):
                    async with asyncio.timeout(grace_s):
                        await self._exited.wait()
        finally:
            self.kill()
            await self._wait_ended()
            if self._transport is not None:
                self._transport.close()
            if not self.is_running:
                self.place.clear()

    def memory_bytes(self) -> int | None:
        return resident_bytes(self.pid) if self.is_running else None

    async def _wait_ended(self) -> None:
        if self._transport is None:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(_KILL_LIMIT_S):
                await self.wait()

    def _signal(self, number: signal.Signals) -> None:
        # Once it has been reaped the number may belong to somebody else.
        if self.is_running:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, number)

    def _note_exit(self) -> None:
        # What it started itself must not outlive it. Within milliseconds of the end the group can't be anyone else's.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        self._exited.set()

    def _note_closed(self) -> None:
        self.logs.finish()
        self._closed.set()


class _Output(asyncio.SubprocessProtocol):
    def __init__(self, child: Child) -> None:
        self._child = child

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._child._transport = cast("asyncio.SubprocessTransport", transport)
        self._child.pid = self._child._transport.get_pid()

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        self._child.logs.feed(data)

    def process_exited(self) -> None:
        self._child._note_exit()

    def connection_lost(self, exc: Exception | None) -> None:
        self._child._note_closed()
