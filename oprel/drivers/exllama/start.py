"""From a plan to an engine that is ready, or to an error with nothing left behind."""

from __future__ import annotations

import asyncio
import os
import secrets
from contextlib import suppress
from pathlib import Path

import msgspec

from oprel.drivers.children import Child, LogRing, Place, RunDirectory, built_environment
from oprel.drivers.contract import DriverOptions
from oprel.drivers.exllama.engine import ExllamaEngine, HostHealth
from oprel.drivers.exllama.exits import Cause, classify
from oprel.drivers.exllama.options import ExllamaOptions
from oprel.drivers.exllama.plan import CACHE, SOCKET, TEMPLATE
from oprel.drivers.exllama.realized import Props, capabilities_of, realized_plan
from oprel.errors import EngineStartError
from oprel.net import QuickClient, QuickError
from oprel.schema import Plan

__all__ = ["start_engine"]

_HEALTH_LIMIT_S = 2.0
_PROPS_LIMIT_S = 10.0
_POLL_S = 0.03
_SLOW_POLL_S = 0.25
_SLOW_AFTER_POLLS = 100
_TAIL_LINES = 20
_BUILDING = "building"


async def start_engine(plan: Plan, options: DriverOptions, own: ExllamaOptions) -> ExllamaEngine:
    """Starts exactly `plan`. EngineStartError carries the cause and the host's own last lines."""
    place = RunDirectory(options.run_dir).place()
    key = secrets.token_hex(32)
    child = await _spawn(plan, place, key, own)
    client = QuickClient(f"unix:{place.socket}", api_key=key)
    try:
        await _Watch(plan, child, client, options.start_timeout_s, own.build_timeout_s).wait_ready()
        props = await _read_props(plan, child, client)
        return ExllamaEngine(
            plan=realized_plan(plan, props),
            capabilities=capabilities_of(plan, props),
            client=client,
            child=child,
            stall_timeout_s=options.stall_timeout_s,
            stop_grace_s=options.stop_grace_s,
        )
    except BaseException:
        # Nothing that it could lose is in it yet: no patience.
        try:
            await client.aclose()
        finally:
            await child.stop(grace_s=0)
        raise


async def _spawn(plan: Plan, place: Place, key: str, own: ExllamaOptions) -> Child:
    place.claim(engine=plan.engine)
    try:
        values = {SOCKET: str(place.socket), TEMPLATE: str(_template_file(plan, place))}
        return await Child.spawn(
            [values.get(word, word) for word in plan.argv],
            name=plan.engine,
            place=place,
            environment=_environment(plan, key, own),
            logs=LogRing(),
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


def _environment(plan: Plan, key: str, own: ExllamaOptions) -> dict[str, str]:
    base = built_environment()
    folder = own.build_dir or str(_cache_dir(base) / "oprel" / "torch_extensions")
    extra = [(name, value.replace(CACHE, folder)) for name, value in plan.environment]
    # Kernels are compiled with the ninja of the environment, which is not on the user's PATH.
    programs = str(Path(plan.argv[0]).parent)
    path = os.pathsep.join(part for part in (programs, base.get("PATH", os.defpath)) if part)
    return built_environment((*extra, ("PATH", path), ("OPREL_HOST_KEY", key)))


def _cache_dir(environment: dict[str, str]) -> Path:
    if found := environment.get("XDG_CACHE_HOME"):
        return Path(found)
    return Path(environment.get("HOME") or Path.home()) / ".cache"


class _Watch:
    """Waits for one host. `limit_s` bounds the time without any sign of progress; building has a limit of its own,
    for a compiler shows none."""

    def __init__(self, plan: Plan, child: Child, client: QuickClient, limit_s: float, build_limit_s: float) -> None:
        self._plan = plan
        self._child = child
        self._client = client
        self._limit_s = limit_s
        self._build_limit_s = build_limit_s
        self._health = HostHealth()

    async def wait_ready(self) -> None:
        loop = asyncio.get_running_loop()
        seen, since, polls = self._progress(), loop.time(), 0
        while True:
            if not self._child.is_running:
                raise await _death(self._plan, self._child)
            if await self._is_ready():
                return
            if (now := self._progress()) != seen:
                seen, since = now, loop.time()
            is_building = self._health.phase == _BUILDING
            limit_s = self._build_limit_s if is_building else self._limit_s
            if loop.time() > since + limit_s:
                doing = "its kernels were not compiled within" if is_building else "it made no progress for"
                raise _failure(self._plan, self._child, "engine", f"{doing} {limit_s:g} s")
            polls += 1
            with suppress(TimeoutError):
                async with asyncio.timeout(_POLL_S if polls < _SLOW_AFTER_POLLS else _SLOW_POLL_S):
                    await self._child.wait()

    async def _is_ready(self) -> bool:
        try:
            answer = await self._client.request("GET", "/health", timeout_s=_HEALTH_LIMIT_S)
            self._health = msgspec.json.decode(answer.body, type=HostHealth)
        except (QuickError, msgspec.DecodeError):
            return False
        return answer.status == 200

    def _progress(self) -> tuple[object, ...]:
        """The phase and how far it is; while weights are read, the log and MiB of memory too."""
        if self._health.phase == _BUILDING:
            return (_BUILDING,)
        memory = (self._child.memory_bytes() or 0) >> 20
        return self._health.phase, self._health.done, self._child.logs.total_bytes, memory


async def _read_props(plan: Plan, child: Child, client: QuickClient) -> Props:
    try:
        answer = await client.request("GET", "/props", timeout_s=_PROPS_LIMIT_S)
        if answer.status != 200:
            raise _failure(plan, child, "engine", f"it answered {answer.status} to /props")
        return msgspec.json.decode(answer.body, type=Props)
    except (QuickError, msgspec.DecodeError) as error:
        if not child.is_running:
            raise await _death(plan, child) from error
        raise _failure(plan, child, "engine", f"its /props can't be read: {error}") from error


async def _death(plan: Plan, child: Child) -> EngineStartError:
    code = await child.wait()
    cause, clause = classify(child.logs.tail(), code)
    return _failure(plan, child, cause, clause)


def _failure(plan: Plan, child: Child, cause: Cause, clause: str) -> EngineStartError:
    return EngineStartError(
        f"{plan.engine} could not load {plan.model!r}: {clause}.",
        driver=plan.driver,
        log_tail=child.logs.tail(_TAIL_LINES),
        cause=cause,
    )
