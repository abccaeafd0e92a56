"""From a plan to an ExLlama host that is ready, or to an error with nothing left behind."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from oprel.drivers.children import built_environment
from oprel.drivers.contract import DriverOptions
from oprel.drivers.exllama.engine import EXLLAMA_HOST, ExllamaEngine, HostHealth
from oprel.drivers.exllama.exits import classify
from oprel.drivers.exllama.options import ExllamaOptions
from oprel.drivers.exllama.plan import CACHE
from oprel.drivers.exllama.realized import Props, capabilities_of, realized_plan
from oprel.drivers.local.start import Pace, Starting, no_progress_for, starting
from oprel.net import QuickError
from oprel.schema import Plan

__all__ = ["start_engine"]

_PACE = Pace(poll_s=0.03, slow_poll_s=0.25)
_PROPS_LIMIT_S = 10.0
_BUILDING = "building"


async def start_engine(plan: Plan, options: DriverOptions, own: ExllamaOptions) -> ExllamaEngine:
    """Starts exactly `plan`. EngineStartError carries the cause and the host's own last lines."""
    async with starting(
        plan,
        options,
        environment=lambda key: _environment(plan, key, own),
        classify=classify,
        pace=_PACE,
    ) as engine:
        watch = _Watch(engine, options.start_timeout_s, own.build_timeout_s)
        await engine.wait_ready(watch.is_ready, overdue=watch.overdue, progress=watch.progress)
        props = await engine.read("/props", Props, timeout_s=_PROPS_LIMIT_S)
        return ExllamaEngine(
            plan=realized_plan(plan, props),
            capabilities=capabilities_of(plan, props),
            client=engine.client,
            quirks=EXLLAMA_HOST,
            child=engine.child,
            stall_timeout_s=options.stall_timeout_s,
            stop_grace_s=options.stop_grace_s,
        )


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
    """What one host says of its start. Building has a limit of its own, for a compiler shows no progress."""

    def __init__(self, engine: Starting, limit_s: float, build_limit_s: float) -> None:
        self._engine = engine
        self._no_progress = no_progress_for(limit_s)
        self._build_limit_s = build_limit_s
        self._health = HostHealth()

    async def is_ready(self) -> bool:
        try:
            answer = await self._engine.client.request("GET", "/health", timeout_s=_PACE.health_limit_s)
            self._health = msgspec.json.decode(answer.body, type=HostHealth)
        except (QuickError, msgspec.DecodeError):
            return False
        return answer.status == 200

    def overdue(self, waited_s: float) -> str | None:
        if self._health.phase != _BUILDING:
            return self._no_progress(waited_s)
        is_over = waited_s > self._build_limit_s
        return f"its kernels were not compiled within {self._build_limit_s:g} s" if is_over else None

    def progress(self) -> tuple[object, ...]:
        """The phase and how far it is; while weights are read, the log and MiB of memory too."""
        if self._health.phase == _BUILDING:
            return (_BUILDING,)
        return self._health.phase, self._health.done, *self._engine.progress()
