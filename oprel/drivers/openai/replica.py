"""One server of a remote: an HTTP engine that isn't ours to start or end."""

from __future__ import annotations

from oprel.drivers.contract import Health
from oprel.drivers.openai.failures import RemoteFailures
from oprel.drivers.openai.standing import Standing
from oprel.drivers.upstream import HttpEngine, Quirks
from oprel.errors import EngineFailedError
from oprel.net import QuickClient, QuickError
from oprel.schema import Capabilities, Plan

__all__ = ["Replica"]


class Replica(HttpEngine):
    """`standing` is kept by who chooses among replicas."""

    def __init__(
        self,
        *,
        plan: Plan,
        capabilities: Capabilities,
        client: QuickClient,
        quirks: Quirks,
        stall_timeout_s: float,
        failures: RemoteFailures,
    ) -> None:
        super().__init__(
            plan=plan,
            capabilities=capabilities,
            client=client,
            quirks=quirks,
            stall_timeout_s=stall_timeout_s,
            failures=failures,
        )
        self.standing = Standing()
        self._lost = failures.lost

    def __repr__(self) -> str:
        return f"<Replica {self.client!r}>"

    async def _gone(self, error: QuickError) -> EngineFailedError:
        """No process ends with it whose end could be waited for."""
        return self._lost(error)

    async def health(self) -> Health:
        return Health("ready")  # asked of all replicas together

    async def wait_dead(self) -> str:
        raise NotImplementedError("a replica is part of an engine")

    async def stop(self) -> None:
        await self.client.aclose()
