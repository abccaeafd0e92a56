"""A machine with a store: what its user asks of it."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator

from oprel.sources import Puller, PullProgress
from oprel.sources.lockfile import LockedModel
from oprel.sources.pins import Pins
from oprel.sources.repair import Mended, Repair
from oprel.store import Catalog
from oprel.store.verification import verify

__all__ = ["Place"]


class Place(ABC):
    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog
        self.pins = Pins(catalog, self.make_puller)

    @abstractmethod
    def make_puller(self, catalog: Catalog) -> Puller:
        """One that writes into that catalog."""

    def pull(self, name: str) -> None:
        _statuses(self.make_puller(self.catalog).pull(name))

    def sync(self, *models: LockedModel) -> list[str]:
        """What it told."""
        return [status for model in models for status in _statuses(self.pins.sync(model))]

    def repair(self) -> list[Mended]:
        """All that a verification finds."""
        repair = Repair(self.catalog, self.make_puller)
        _statuses(repair.run(verify(self.catalog).harmful))
        return repair.results


def _statuses(lines: AsyncGenerator[PullProgress, None]) -> list[str]:
    async def run() -> list[str]:
        return [line.status async for line in lines]

    return asyncio.run(run())
