"""From a plan to a vLLM that is ready, or to an error with nothing left behind."""

from __future__ import annotations

import asyncio
import os
from functools import partial
from pathlib import Path

import msgspec

from oprel.drivers.children import Child, LogRing, built_environment
from oprel.drivers.children.processes import tree_resident_bytes
from oprel.drivers.contract import DriverOptions
from oprel.drivers.local.start import Pace, Starting, no_progress_for, starting
from oprel.drivers.upstream import Quirks
from oprel.drivers.vllm.abilities import MOST
from oprel.drivers.vllm.engine import VLLM, VllmEngine
from oprel.drivers.vllm.launch import ADAPTER
from oprel.drivers.vllm.probe import DRIVER
from oprel.drivers.vllm.report import LoadReport, classify
from oprel.errors import EngineStartError, OprelError
from oprel.schema import Capabilities, Plan
from oprel.store.folders import FolderFacts, read_facts

__all__ = ["start_engine"]

# It imports, reads and compiles for a minute or for many.
_PACE = Pace(poll_s=0.1, slow_poll_s=0.1, health_limit_s=5.0)
_MODELS_LIMIT_S = 10.0
# The whole of its own patience with its engine and workers; ours is with what makes no progress.
_READY_LIMIT_S = 3600
# With answers under way it never ends by TERM, but without it takes a second or two.
_STOP_GRACE_S = 10.0
_LOG_LINES = 600
_LOG_BYTES = 128 * 1024


async def start_engine(plan: Plan, options: DriverOptions) -> VllmEngine:
    """Starts exactly `plan`. EngineStartError carries the cause and vLLM's own last lines."""
    facts = await asyncio.to_thread(_look, plan)
    report = LoadReport()
    async with starting(
        plan,
        options,
        environment=lambda key: _environment(plan, key),
        classify=classify,
        pace=_PACE,
        logs=LogRing(max_lines=_LOG_LINES, max_bytes=_LOG_BYTES, on_line=report.read),
        # The shim stays and watches us: were only the server killed at our end, its engine and workers would live on.
        mode="watch",
    ) as engine:
        await engine.wait_ready(
            partial(_is_ready, engine),
            overdue=no_progress_for(options.start_timeout_s),
            progress=partial(_progress, engine.child),
        )
        models = await engine.read("/v1/models", _Models, timeout_s=_MODELS_LIMIT_S)
        realized = _realized(plan, models.context_tokens or plan.context_tokens, report)
        return VllmEngine(
            plan=realized,
            capabilities=_capabilities(realized, facts),
            client=engine.client,
            quirks=_quirks(plan, facts),
            child=engine.child,
            stall_timeout_s=options.stall_timeout_s,
            stop_grace_s=max(options.stop_grace_s, _STOP_GRACE_S),
        )


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


async def _is_ready(engine: Starting) -> bool:
    """It takes connections, and says that it is well."""
    return engine.child.place.socket.exists() and await engine.answers_health()


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


def _quirks(plan: Plan, facts: FolderFacts) -> Quirks:
    model = None if _option(plan, "--lora-modules") is None else ADAPTER
    return msgspec.structs.replace(VLLM, model=model, start_token=facts.start_token)


def _option(plan: Plan, name: str) -> str | None:
    return plan.argv[plan.argv.index(name) + 1] if name in plan.argv else None


class _Listed(msgspec.Struct):
    max_model_len: int | None = None


class _Models(msgspec.Struct):
    data: tuple[_Listed, ...] = ()

    @property
    def context_tokens(self) -> int | None:
        return next((model.max_model_len for model in self.data if model.max_model_len), None)
