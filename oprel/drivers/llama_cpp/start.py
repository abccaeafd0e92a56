"""From a plan to a llama.cpp engine that is ready, or to an error with nothing left behind."""

from __future__ import annotations

from functools import partial

from oprel.drivers.children import LogRing, Place, built_environment
from oprel.drivers.contract import DriverOptions
from oprel.drivers.llama_cpp.engine import LlamaEngine
from oprel.drivers.llama_cpp.launch import PARTS
from oprel.drivers.llama_cpp.realized import Props, capabilities_of, realized_plan
from oprel.drivers.llama_cpp.report import LoadReport, classify
from oprel.drivers.local.start import Pace, no_progress_for, starting
from oprel.drivers.upstream import LLAMA_SERVER
from oprel.schema import Plan

__all__ = ["start_engine"]

_PACE = Pace(poll_s=0.015, slow_poll_s=0.1)
_PROPS_LIMIT_S = 10.0


async def start_engine(plan: Plan, options: DriverOptions) -> LlamaEngine:
    """Starts exactly `plan`. EngineStartError carries the cause and the engine's own last lines."""
    report = LoadReport()
    async with starting(
        plan,
        options,
        environment=lambda key: built_environment((*plan.environment, ("LLAMA_API_KEY", key))),
        classify=classify,
        pace=_PACE,
        logs=LogRing(on_line=report.read),
        more=partial(_linked_parts, plan),
    ) as engine:
        await engine.wait_ready(engine.answers_health, overdue=no_progress_for(options.start_timeout_s))
        props = await engine.read("/props", Props, timeout_s=_PROPS_LIMIT_S)
        return LlamaEngine(
            plan=realized_plan(plan, props, report),
            capabilities=capabilities_of(plan, props, report),
            client=engine.client,
            quirks=LLAMA_SERVER,
            child=engine.child,
            stall_timeout_s=options.stall_timeout_s,
            stop_grace_s=options.stop_grace_s,
        )


def _linked_parts(plan: Plan, place: Place) -> dict[str, str]:
    """Links with the names by which an engine that is given the first part of a split file finds the others."""
    if PARTS not in plan.argv:
        return {}
    paths = [file.path for file in plan.files if file.role == "weights"]
    links = [place.add_link(f"model-{number:05}-of-{len(paths):05}.gguf", path) for number, path in enumerate(paths, 1)]
    return {PARTS: str(links[0])}
