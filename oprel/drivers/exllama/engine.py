"""An ExLlama host that is ready: its requests go the way of every HTTP engine, its process is ours."""

from __future__ import annotations

import msgspec

from oprel.drivers.children import Child
from oprel.drivers.contract import Health
from oprel.drivers.exllama.exits import read_exit
from oprel.drivers.upstream import HttpEngine, Quirks
from oprel.net import AnswerTimeout, CannotConnect, QuickClient, QuickError
from oprel.schema import Capabilities, Plan

__all__ = ["EXLLAMA_HOST", "ExllamaEngine"]

_HEALTH_LIMIT_S = 1.0

EXLLAMA_HOST = Quirks(
    completion_path="/v1/completions",
    completion_shape="openai",
    infill_path=None,
    props_path=None,
    normalize_field=None,
    prompt_cache_field=None,
)


class HostHealth(msgspec.Struct):
    """The host's /health, ready or not."""

    phase: str = ""
    done: int = 0
    total: int = 0
    slots: int = 0
    busy: int = 0
    error: str = ""


class ExllamaEngine(HttpEngine):
    """Owns the process and its connections; `stop` ends both, connections first."""

    def __init__(
        self,
        *,
        plan: Plan,
        capabilities: Capabilities,
        client: QuickClient,
        child: Child,
        stall_timeout_s: float,
        stop_grace_s: float,
    ) -> None:
        super().__init__(
            plan=plan,
            capabilities=capabilities,
            client=client,
            quirks=EXLLAMA_HOST,
            stall_timeout_s=stall_timeout_s,
        )
        self._child = child
        self._stop_grace_s = stop_grace_s

    def __repr__(self) -> str:
        return f"<ExllamaEngine {self.plan.model} on {self._child!r}>"

    async def health(self) -> Health:
        """The host's event loop answers, whatever its generator does; how long that hasn't stepped is for the
        requests' own watch to judge."""
        if (death := self.describe_death()) is not None:
            return Health("dead", f"{death}.")
        try:
            answer = await self.client.request("GET", "/health", timeout_s=_HEALTH_LIMIT_S)
        except CannotConnect as error:
            return Health("dead", f"The engine doesn't take connections any more: {error}.")
        except AnswerTimeout:
            return Health("busy", f"The engine doesn't answer within {_HEALTH_LIMIT_S:g} s: it works, or hangs.")
        except QuickError as error:
            return Health("dead", f"The engine's answer broke off: {error}.")
        try:
            told = msgspec.json.decode(answer.body, type=HostHealth)
        except msgspec.DecodeError as error:
            return Health("busy", f"The engine's health can't be read: {error}.")
        if answer.status != 200:
            return Health("dead", f"The engine is {told.phase or 'not ready'}. {told.error}".strip())
        detail = f"{told.busy} of {self.plan.slots} slots are in use."
        return Health("busy" if told.busy >= self.plan.slots else "ready", detail)

    async def wait_dead(self) -> str:
        await self._child.wait()
        return self.describe_death() or f"{self.plan.engine} ended"

    async def on_stall(self) -> None:
        """A step that hangs in the GPU's driver isn't moved by TERM."""
        self._child.kill()

    async def stop(self) -> None:
        try:
            await self.client.aclose()
        finally:
            await self._child.stop(grace_s=self._stop_grace_s)

    def describe_death(self) -> str | None:
        death = self._child.describe_death()
        told = read_exit(self._child.logs.tail(), self._child.returncode) if death is not None else None
        return f"{death}: {told.message}" if told is not None else death

    def log_tail(self) -> tuple[str, ...]:
        return self._child.logs.tail(20)

    def memory_bytes(self) -> int | None:
        return self._child.memory_bytes()
