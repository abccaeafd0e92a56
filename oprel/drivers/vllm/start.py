"""From a plan to a vLLM that is ready, or to an error with nothing left behind."""

from __future__ import annotations

import asyncio
import os
import secrets
from contextlib import suppress
from pathlib import Path

import msgspec

from oprel.drivers.children import Child, LogRing, Place, RunDirectory, built_environment
from oprel.drivers.children.processes import tree_resident_bytes
from oprel.drivers.contract import DriverOptions
from oprel.drivers.vllm.abilities import MOST
from oprel.drivers.vllm.engine import VLLM, VllmEngine
from oprel.drivers.vllm.launch import ADAPTER, SOCKET, TEMPLATE
from oprel.drivers.vllm.probe import DRIVER
from oprel.drivers.vllm.report import Cause, LoadReport, classify
from oprel.errors import EngineStartError, OprelError
from oprel.net import QuickClient, QuickError
from oprel.schema import Capabilities, Plan
from oprel.store.folders import FolderFacts, read_facts

__all__ = ["start_engine"]

_HEALTH_LIMIT_S = 5.0
_MODELS_LIMIT_S = 10.0
_POLL_S = 0.1
# The whole of its own patience with its engine and workers; ours is with what makes no progress.
_READY_LIMIT_S = 3600
# With answers under way it never ends by TERM, but without it takes a second or two.
_STOP_GRACE_S = 10.0
_TAIL_LINES = 20
_LOG_LINES = 600
_LOG_BYTES = 128 * 1024


async def start_engine(plan: Plan, options: DriverOptions) -> VllmEngine:
    """Starts exactly `plan`. EngineStartError carries the cause and vLLM's own last lines."""
    facts = await asyncio.to_thread(_look, plan)
    place = RunDirectory(options.run_dir).place()
    report = LoadReport()
    key = secrets.token_hex(32)
    logs = LogRing(max_lines=_LOG_LINES, max_bytes=_LOG_BYTES, on_line=report.read)
    child = await _spawn(plan, place, logs, key)
    client = QuickClient(f"unix:{place.socket}", api_key=key)
    try:
        await _wait_ready(plan, child, client, options.start_timeout_s)
        context = await _read_context(plan, child, client)
        child.logs.on_line = None
        realized = _realized(plan, context, report)
        return VllmEngine(
            plan=realized,
            capabilities=_capabilities(realized, facts),
            client=client,
            child=child,
            quirks=VLLM if _option(plan, "--lora-modules") is None else msgspec.structs.replace(VLLM, model=ADAPTER),
            start_token=facts.start_token,
            stall_timeout_s=options.stall_timeout_s,
            stop_grace_s=max(options.stop_grace_s, _STOP_GRACE_S),
        )
    except BaseException:
        # Nothing that it could lose is in it yet: no patience.
        try:
            await client.aclose()
        finally:
            await child.stop(grace_s=0)
        raise


def _look(plan: Plan) -> FolderFacts:
    """What vLLM would need half a minute to find out."""
    folder = Path(_option(plan, "--model") or "")
    if not folder.is_dir():
        raise _refusal(plan, f"the folder {folder.name!r} of the model isn't there any more")
    adapter = _option(plan, "--lora-modules")
    if adapter is not None and not (path := Path(adapter.removeprefix(f"{ADAPTER}="))).is_dir():
        raise _refusal(plan, f"there is no folder {str(path)!r}, which [vllm] names as its lora")
    try:
        return read_facts(folder)
    except OprelError as problem:
        raise _refusal(plan, problem.message.rstrip(".")) from problem


def _refusal(plan: Plan, why: str) -> EngineStartError:
    return EngineStartError(f"{plan.engine} could not load {plan.model!r}: {why}.", driver=DRIVER, cause="model")


async def _spawn(plan: Plan, place: Place, logs: LogRing, key: str) -> Child:
    place.claim(engine=plan.engine)
    try:
        template = _template_file(plan, place)
        values = {SOCKET: str(place.socket), TEMPLATE: str(template)}
        # The shim stays and watches us: were only the server killed at our end, its engine and workers would live on.
        return await Child.spawn(
            [values.get(word, word) for word in plan.argv],
            name=plan.engine,
            place=place,
            environment=_environment(plan, key),
            logs=logs,
            mode="watch",
        )
    except OSError as error:
        place.clear()
        raise EngineStartError(f"{plan.engine} can't be started: {error}.", driver=DRIVER) from error
    except BaseException:
        place.clear()
        raise


def _environment(plan: Plan, key: str) -> dict[str, str]:
    """Compilers and helpers that lie beside its Python are found first, as in an activated environment."""
    built = built_environment(
        (
            *plan.environment,
            ("VLLM_API_KEY", key),
            ("VLLM_ENGINE_READY_TIMEOUT_S", str(_READY_LIMIT_S)),
        )
    )
    beside = str(Path(plan.argv[0]).parent)
    return {**built, "PATH": os.pathsep.join((beside, built.get("PATH", os.defpath)))}


def _template_file(plan: Plan, place: Place) -> Path | None:
    if TEMPLATE not in plan.argv or plan.options.chat_template is None:
        return None
    return place.add_file("jinja", plan.options.chat_template)


async def _wait_ready(plan: Plan, child: Child, client: QuickClient, limit_s: float) -> None:
    """Returns when vLLM takes connections and says that it is well. `limit_s` bounds the time without any sign of
    progress: it imports, reads and compiles for a minute or for many."""
    loop = asyncio.get_running_loop()
    seen, deadline = _progress(child), loop.time() + limit_s
    while True:
        if not child.is_running:
            raise await _death(plan, child)
        if child.place.socket.exists() and await _is_ready(client):
            return
        if (now := _progress(child)) != seen:
            seen, deadline = now, loop.time() + limit_s
        elif loop.time() > deadline:
            raise _failure(plan, child, "engine", f"it made no progress for {limit_s:g} s")
        with suppress(TimeoutError):
            async with asyncio.timeout(_POLL_S):
                await child.wait()


async def _is_ready(client: QuickClient) -> bool:
    try:
        return (await client.request("GET", "/health", timeout_s=_HEALTH_LIMIT_S)).status == 200
    except QuickError:
        return False


async def _read_context(plan: Plan, child: Child, client: QuickClient) -> int:
    try:
        answer = await client.request("GET", "/v1/models", timeout_s=_MODELS_LIMIT_S)
        if answer.status != 200:
            raise _failure(plan, child, "engine", f"it answered {answer.status} to /v1/models")
        listed = msgspec.json.decode(answer.body, type=_Models).data
    except (QuickError, msgspec.DecodeError) as error:
        if not child.is_running:
            raise await _death(plan, child) from error
        raise _failure(plan, child, "engine", f"its list of models can't be read: {error}") from error
    return next((model.max_model_len for model in listed if model.max_model_len), None) or plan.context_tokens


def _progress(child: Child) -> tuple[int, int]:
    """Log written, and MiB of memory taken by all its processes."""
    return child.logs.total_bytes, (tree_resident_bytes(child.pid) or 0) >> 20


def _realized(plan: Plan, context: int, report: LoadReport) -> Plan:
    reasons = list(plan.reasons)
    if context < plan.context_tokens:
        text = f"vLLM gives each request {context} tokens of context, not the {plan.context_tokens} planned"
        reasons.append(("context_reduced", text))
    if report.cache_tokens is not None:
        reasons.append(("cache", f"vLLM's cache holds {report.cache_tokens} tokens of all requests together"))
    return msgspec.structs.replace(plan, context_tokens=context, reasons=tuple(reasons), fallbacks=())


def _capabilities(plan: Plan, facts: FolderFacts) -> Capabilities:
    context = plan.context_tokens
    if plan.embedding:
        return Capabilities(embed=True, tokenize=True, context_tokens=context)
    return Capabilities(
        chat=plan.chat,
        complete=True,
        vision=plan.chat and facts.has_vision,
        audio=plan.chat and facts.has_audio,
        tools=plan.chat and "--tool-call-parser" in plan.argv,
        thinking=plan.chat and "--reasoning-parser" in plan.argv,
        json_schema=True,
        logprobs=True,
        lora="--enable-lora" in plan.argv,
        tokenize=True,
        sampling=MOST.sampling,
        context_tokens=context,
    )


def _option(plan: Plan, name: str) -> str | None:
    return plan.argv[plan.argv.index(name) + 1] if name in plan.argv else None


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


class _Listed(msgspec.Struct):
    max_model_len: int | None = None


class _Models(msgspec.Struct):
    data: tuple[_Listed, ...] = ()
