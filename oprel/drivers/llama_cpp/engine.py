"""A llama.cpp engine that is ready."""

from __future__ import annotations

import msgspec

from oprel.drivers.contract import Health
from oprel.drivers.local.engine import HEALTH_LIMIT_S, LocalEngine, slots_in_use

__all__ = ["LlamaEngine"]


class LlamaEngine(LocalEngine):
    async def look(self) -> Health:
        """Asks for the slots, because /health says 200 of an engine that hangs."""
        answer = await self.client.request("GET", "/slots", timeout_s=HEALTH_LIMIT_S)
        if answer.status != 200:
            return Health("ready")
        slots = msgspec.json.decode(answer.body, type=list[_Slot])
        return slots_in_use(sum(slot.is_processing for slot in slots), self.plan.slots)


class _Slot(msgspec.Struct):
    is_processing: bool = False
