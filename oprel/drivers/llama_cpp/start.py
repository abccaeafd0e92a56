"""From a plan to an engine that is ready, or to an error with nothing left behind."""

from __future__ import annotations

import asyncio
import secrets
from contextlib import suppress
from pathlib import Path

import msgspec

from oprel.drivers.children import Child, LogRing, Place, RunDirectory, built_environment
from oprel.drivers.contract import DriverOptions
from oprel.drivers.llama_cpp.engine import LlamaEngine
from oprel.drivers.llama_cpp.launch import PARTS, SOCKET, TEMPLATE
from oprel.drivers.llama_cpp.probe import DRIVER
from oprel.drivers.llama_cpp.realized import Props, capabilities_of, realized_plan
from oprel.drivers.llama_cpp.report import Cause, LoadReport, classify
from oprel.errors import EngineStartError
from oprel.net import QuickClient, QuickError
from oprel.schema import Plan

__all__ = ["start_engine"]

_HEALTH_LIMIT_S = 2.0
_PROPS_LIMIT_S = 10.0
_POLL_S = 0.015
_SLOW_POLL_S = 0.1
# A small model is ready before this; a large one doesn't need to be asked as often.
_SLOW_AFTER_POLLS = 100
_TAIL_LINES = 20


async def start_engine(plan: Plan, options: DriverOptions) -> LlamaEngine:
    """Starts exactly `plan`. EngineStartError carries the cause and the engine's own last lines."""
    place = RunDirectory(options.run_dir).place()
    report = LoadReport()
    key = secrets.token_hex(32)
    child = await _spawn(plan, place, LogRing(on_line=report.read), key)
    client = QuickClient(f"unix:{place.socket}", api_key=key)
    try:
        await _wait_ready(plan, child, client, options.start_timeout_s)
        props = await _read_props(plan, child, client)
        child.logs.on_line = None
        return LlamaEngine(
            plan=realized_plan(plan, props, report),
            capabilities=capabilities_of(plan, props, report),
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


async def _spawn(plan: Plan, place: Place, logs: LogRing, key: str) -> Child:
    place.claim(engine=plan.engine)
    try:
        template = _template_file(plan, place)
        values = {SOCKET: str(place.socket), TEMPLATE: str(template), PARTS: str(_linked_parts(plan, place))}
        return await Child.spawn(
            [values.get(word, word) for word in plan.argv],
            name=plan.engine,
            place=place,
            environment=built_environment((*plan.environment, ("LLAMA_API_KEY", key))),
            logs=logs,
        )
    except OSError as error:
        place.clear()
        raise EngineStartError(f"{plan.engine} can't be started: {error}.", driver=DRIVER) from error
    except BaseException:
        place.clear()
        raise


def _template_file(plan: Plan, place: Place) -> Path | None:
    if TEMPLATE not in plan.argv or plan.options.chat_template is None:
        return None
    return place.add_file("jinja", plan.options.chat_template)


def _linked_parts(plan: Plan, place: Place) -> Path | None:
    """Links with the names by which an engine that is given the first part of a split file finds the others."""
    if PARTS not in plan.argv:
        return None
    paths = [file.path for file in plan.files if file.role == "weights"]
    links = [place.add_link(f"model-{number:05}-of-{len(paths):05}.gguf", path) for number, path in enumerate(paths, 1)]
    return links[0]


async def _wait_ready(plan: Plan, child: Child, client: QuickClient, limit_s: float) -> None:
    """Returns when the engine says that it is ready. `limit_s` bounds the time without any sign of progress: a large
    model on a slow disk takes its time, but reads on."""
    loop = asyncio.get_running_loop()
    seen, deadline, polls = _progress(child), loop.time() + limit_s, 0
    while True:
        if not child.is_running:
            raise await _death(plan, child)
        if await _is_ready(client):
            return
        if (now := _progress(child)) != seen:
            seen, deadline = now, loop.time() + limit_s
        elif loop.time() > deadline:
            raise _failure(plan, child, "engine", f"it made no progress for {limit_s:g} s")
        polls += 1
        with suppress(TimeoutError):
            async with asyncio.timeout(_POLL_S if polls < _SLOW_AFTER_POLLS else _SLOW_POLL_S):
                await child.wait()


async def _is_ready(client: QuickClient) -> bool:
    try:
        return (await client.request("GET", "/health", timeout_s=_HEALTH_LIMIT_S)).status == 200
    except QuickError:
        return False


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


def _progress(child: Child) -> tuple[int, int]:
    """Log written, and MiB of memory taken: a model that is mapped grows by what was read of it."""
    return child.logs.total_bytes, (child.memory_bytes() or 0) >> 20


async def _death(plan: Plan, child: Child) -> EngineStartError:
    code = await child.wait()
    cause, clause = classify(child.logs.tail(), code)
    return _failure(plan, child, cause, clause)


def _failure(plan: Plan, child: Child, cause: Cause, clause: str) -> EngineStartError:
    return EngineStartError(
        f"{plan.engine} could not load {plan.model!r}: {clause}.",
        driver=DRIVER,
        log_tail=child.logs.tail(_TAIL_LINES),
        cause=cause,
    )
