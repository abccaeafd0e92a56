"""A llama.cpp engine that is ready: its requests go the way of every HTTP engine, its process is ours."""

from __future__ import annotations

import msgspec

from oprel.drivers.children import Child
from oprel.drivers.contract import Health
from oprel.drivers.upstream import LLAMA_SERVER, HttpEngine
from oprel.net import AnswerTimeout, CannotConnect, QuickClient, QuickError
from oprel.schema import Capabilities, Plan

__all__ = ["LlamaEngine"]

_HEALTH_LIMIT_S = 1.0


class LlamaEngine(HttpEngine):
    """Owns the process and its connections; `stop` ends both, connections first: a llama-server that is told to end
    waits for its clients."""

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
            quirks=LLAMA_SERVER,
            stall_timeout_s=stall_timeout_s,
        )
        self._child = child
        self._stop_grace_s = stop_grace_s

    def __repr__(self) -> str:
        return f"<LlamaEngine {self.plan.model} on {self._child!r}>"

    async def health(self) -> Health:
        """Asks for the slots, because /health says 200 of an engine that hangs."""
        if (death := self.describe_death()) is not None:
            return Health("dead", f"{death}.")
        try:
            answer = await self.client.request("GET", "/slots", timeout_s=_HEALTH_LIMIT_S)
        except CannotConnect as error:
            return Health("dead", f"The engine doesn't take connections any more: {error}.")
        except AnswerTimeout:
            return Health("busy", f"The engine doesn't answer within {_HEALTH_LIMIT_S:g} s: it works, or hangs.")
        except QuickError as error:
            return Health("dead", f"The engine's answer broke off: {error}.")
        if answer.status != 200:
            return Health("ready")
        taken = sum(slot.is_processing for slot in msgspec.json.decode(answer.body, type=list[_Slot]))
        detail = f"{taken} of {self.plan.slots} slots are in use."
        return Health("busy" if taken >= self.plan.slots else "ready", detail)

    async def wait_dead(self) -> str:
        await self._child.wait()
        return self.describe_death() or f"{self.plan.engine} ended"

    async def on_stall(self) -> None:
        """It ignores TERM while it hangs, and so do its other slots."""
        self._child.kill()

    async def stop(self) -> None:
        try:
            await self.client.aclose()
        finally:
            await self._child.stop(grace_s=self._stop_grace_s)

    def describe_death(self) -> str | None:
        return self._child.describe_death()

    def log_tail(self) -> tuple[str, ...]:
        return self._child.logs.tail(20)

    def memory_bytes(self) -> int | None:
        return self._child.memory_bytes()


class _Slot(msgspec.Struct):
    is_processing: bool = False
