"""A local engine that is ready: its requests go the way of every HTTP engine, its process is ours."""

from __future__ import annotations

from abc import abstractmethod

from oprel.drivers.children import Child
from oprel.drivers.contract import Health
from oprel.drivers.upstream import HttpEngine, Quirks
from oprel.net import AnswerTimeout, CannotConnect, QuickClient, QuickError
from oprel.schema import Capabilities, Plan

__all__ = ["HEALTH_LIMIT_S", "LocalEngine", "slots_in_use"]

HEALTH_LIMIT_S = 1.0
_TAIL_LINES = 20


class LocalEngine(HttpEngine):
    """Owns the process and the connections to it; `stop` ends both, connections first: a server that is told to end
    waits for its clients. Subclasses say how the engine is asked for its health, in `look`."""

    def __init__(
        self,
        *,
        plan: Plan,
        capabilities: Capabilities,
        client: QuickClient,
        quirks: Quirks,
        child: Child,
        stall_timeout_s: float,
        stop_grace_s: float,
    ) -> None:
        super().__init__(
            plan=plan,
            capabilities=capabilities,
            client=client,
            quirks=quirks,
            stall_timeout_s=stall_timeout_s,
        )
        self._child = child
        self._stop_grace_s = stop_grace_s

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.plan.model} on {self._child!r}>"

    @abstractmethod
    async def look(self) -> Health:
        """What an engine says that takes connections. Each question within HEALTH_LIMIT_S; QuickError is for the
        caller."""

    async def health(self) -> Health:
        if (death := self.describe_death()) is not None:
            return Health("dead", f"{death}.")
        try:
            return await self.look()
        except CannotConnect as error:
            return Health("dead", f"The engine doesn't take connections any more: {error}.")
        except AnswerTimeout:
            return Health("busy", f"The engine doesn't answer within {HEALTH_LIMIT_S:g} s: it works, or hangs.")
        except QuickError as error:
            return Health("dead", f"The engine's answer broke off: {error}.")

    async def wait_dead(self) -> str:
        await self._child.wait()
        return self.describe_death() or f"{self.plan.engine} ended"

    async def on_stall(self) -> None:
        """What hangs ignores TERM, and so do its other slots; a step that hangs in a GPU's driver isn't moved by it."""
        self._child.kill()

    async def stop(self) -> None:
        try:
            await self.client.aclose()
        finally:
            await self._child.stop(grace_s=self._stop_grace_s)

    def describe_death(self) -> str | None:
        return self._child.describe_death()

    def log_tail(self) -> tuple[str, ...]:
        return self._child.logs.tail(_TAIL_LINES)

    def memory_bytes(self) -> int | None:
        return self._child.memory_bytes()


def slots_in_use(taken: int, slots: int) -> Health:
    """The health of an engine of which `taken` requests run, where `slots` may."""
    return Health("busy" if taken >= slots else "ready", f"{taken} of {slots} slots are in use.")
