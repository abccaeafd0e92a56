"""An ExLlama host that is ready."""

from __future__ import annotations

import msgspec

from oprel.drivers.contract import Health
from oprel.drivers.exllama.exits import read_exit
from oprel.drivers.local.engine import HEALTH_LIMIT_S, LocalEngine, slots_in_use
from oprel.drivers.upstream import Quirks

__all__ = ["EXLLAMA_HOST", "ExllamaEngine", "HostHealth"]

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


class ExllamaEngine(LocalEngine):
    async def look(self) -> Health:
        """The host's event loop answers, whatever its generator does; how long that hasn't stepped is for the
        requests' own watch to judge."""
        answer = await self.client.request("GET", "/health", timeout_s=HEALTH_LIMIT_S)
        try:
            told = msgspec.json.decode(answer.body, type=HostHealth)
        except msgspec.DecodeError as error:
            return Health("busy", f"The engine's health can't be read: {error}.")
        if answer.status != 200:
            return Health("dead", f"The engine is {told.phase or 'not ready'}. {told.error}".strip())
        return slots_in_use(told.busy, self.plan.slots)

    def describe_death(self) -> str | None:
        death = super().describe_death()
        told = read_exit(self._child.logs.tail(), self._child.returncode) if death is not None else None
        return f"{death}: {told.message}" if told is not None else death
