"""From a plan to an engine that is ready, or to an error with nothing left behind.

async with starting(plan, options, environment=environment, classify=classify, pace=pace) as engine:
    await engine.wait_ready(engine.answers_health, overdue=no_progress_for(options.start_timeout_s))
    props = await engine.read("/props", Props, timeout_s=10)
    return MyEngine(plan=plan, client=engine.client, child=engine.child, ...)
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TypeVar

import msgspec

from oprel.drivers.children import Child, LogRing, Place, RunDirectory
from oprel.drivers.children.shim_command import Mode
from oprel.drivers.contract import DriverOptions
from oprel.drivers.local.words import SOCKET, TEMPLATE, Cause
from oprel.errors import EngineStartError
from oprel.net import QuickClient, QuickError
from oprel.schema import Plan

__all__ = ["Classify", "Overdue", "Pace", "Starting", "no_progress_for", "starting"]

T = TypeVar("T")
Classify = Callable[[Sequence[str], int], tuple[Cause, str]]
"""From an engine's last lines and its exit status (negative: a signal) to why it ended, and a clause about that."""

Overdue = Callable[[float], str | None]
"""From the seconds since an engine was last seen to get on to what to say of one that has had time enough."""

_TAIL_LINES = 20


class Pace(msgspec.Struct, frozen=True):
    """How often an engine that starts is asked whether it is ready: every `poll_s`, after `quick_polls` of them every
    `slow_poll_s`. A small model is ready before that, and a large one doesn't need to be asked as often."""

    poll_s: float
    slow_poll_s: float
    quick_polls: int = 100
    health_limit_s: float = 2.0


def no_progress_for(limit_s: float) -> Overdue:
    return lambda waited_s: f"it made no progress for {limit_s:g} s" if waited_s > limit_s else None


class Starting:
    """An engine's process that isn't ready yet, and the words for what goes wrong with it."""

    def __init__(self, plan: Plan, child: Child, client: QuickClient, classify: Classify, pace: Pace) -> None:
        self.plan = plan
        self.child = child
        self.client = client
        self._classify = classify
        self._pace = pace

    async def wait_ready(
        self,
        is_ready: Callable[[], Awaitable[bool]],
        *,
        overdue: Overdue,
        progress: Callable[[], object] | None = None,
    ) -> None:
        """Returns when `is_ready` says so. `overdue` bounds the time in which `progress` stays the same: a large model
        on a slow disk takes its time, but reads on."""
        loop = asyncio.get_running_loop()
        progress = progress or self.progress
        seen, since, polls = progress(), loop.time(), 0
        while True:
            if not self.child.is_running:
                raise await self.death()
            if await is_ready():
                return
            if (now := progress()) != seen:
                seen, since = now, loop.time()
            elif clause := overdue(loop.time() - since):
                raise self.failure("engine", clause)
            polls += 1
            pace = self._pace
            with suppress(TimeoutError):
                async with asyncio.timeout(pace.poll_s if polls < pace.quick_polls else pace.slow_poll_s):
                    await self.child.wait()

    async def answers_health(self) -> bool:
        try:
            answer = await self.client.request("GET", "/health", timeout_s=self._pace.health_limit_s)
        except QuickError:
            return False
        return answer.status == 200

    def progress(self) -> tuple[int, int]:
        """Log written, and MiB of memory taken: a model that is mapped grows by what was read of it."""
        return self.child.logs.total_bytes, (self.child.memory_bytes() or 0) >> 20

    async def read(self, path: str, kind: type[T], *, timeout_s: float) -> T:
        """What the engine says there of itself. Raises EngineStartError."""
        try:
            answer = await self.client.request("GET", path, timeout_s=timeout_s)
            if answer.status != 200:
                raise self.failure("engine", f"it answered {answer.status} to {path}")
            return msgspec.json.decode(answer.body, type=kind)
        except (QuickError, msgspec.DecodeError) as error:
            if not self.child.is_running:
                raise await self.death() from error
            raise self.failure("engine", f"its {path} can't be read: {error}") from error

    async def death(self) -> EngineStartError:
        """Why it ended, when it has."""
        code = await self.child.wait()
        return self.failure(*self._classify(self.child.logs.tail(), code))

    def failure(self, cause: Cause, clause: str) -> EngineStartError:
        return EngineStartError(
            f"{self.plan.engine} could not load {self.plan.model!r}: {clause}.",
            driver=self.plan.driver,
            log_tail=self.child.logs.tail(_TAIL_LINES),
            cause=cause,
        )


@asynccontextmanager
async def starting(
    plan: Plan,
    options: DriverOptions,
    *,
    environment: Callable[[str], Mapping[str, str]],
    classify: Classify,
    pace: Pace,
    logs: LogRing | None = None,
    more: Callable[[Place], Mapping[str, str]] | None = None,
    mode: Mode | None = None,
) -> AsyncIterator[Starting]:
    """The process of exactly `plan`, and a client for it. `environment` is given the key that the engine has to ask
    for; `more` are further words of the command line that are known only now. A block that fails leaves nothing:
    what isn't ready has nothing to lose, so it is ended without patience. Raises EngineStartError."""
    place = RunDirectory(options.run_dir).place()
    key = secrets.token_hex(32)
    child = await _spawn(plan, place, environment(key), logs or LogRing(), more, mode)
    client = QuickClient(f"unix:{place.socket}", api_key=key)
    try:
        yield Starting(plan, child, client, classify, pace)
        child.logs.on_line = None
    except BaseException:
        try:
            await client.aclose()
        finally:
            await child.stop(grace_s=0)
        raise


async def _spawn(
    plan: Plan,
    place: Place,
    environment: Mapping[str, str],
    logs: LogRing,
    more: Callable[[Place], Mapping[str, str]] | None,
    mode: Mode | None,
) -> Child:
    place.claim(engine=plan.engine)
    try:
        values = {SOCKET: str(place.socket), TEMPLATE: str(_template_file(plan, place))}
        values |= more(place) if more is not None else {}
        return await Child.spawn(
            [values.get(word, word) for word in plan.argv],
            name=plan.engine,
            place=place,
            environment=environment,
            logs=logs,
            mode=mode,
        )
    except OSError as error:
        place.clear()
        raise EngineStartError(f"{plan.engine} can't be started: {error}.", driver=plan.driver) from error
    except BaseException:
        place.clear()
        raise


def _template_file(plan: Plan, place: Place) -> Path | None:
    if TEMPLATE not in plan.argv or plan.options.chat_template is None:
        return None
    return place.add_file("jinja", plan.options.chat_template)
