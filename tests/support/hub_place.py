"""A machine that pulls models from a hub on loopback, and what it asked that hub for."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

from oprel.schema import Hardware
from oprel.sources import Puller
from oprel.sources.lockfile import LockedModel
from oprel.sources.pins import Pins
from oprel.sources.repair import Mended, Repair
from oprel.store import Catalog, Store, Trees
from oprel.store.verification import verify
from support.hub import HubServer

__all__ = ["HubPlace", "files_of"]

HARDWARE = Hardware("Linux", "x86_64", 4, 4, 16 << 30, 16 << 30)


def files_of(folder: Path) -> Mapping[str, bytes]:
    """By name, as a repository has them."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


class HubPlace:
    def __init__(self, folder: Path, hub: HubServer) -> None:
        self.hub = hub
        self.trees = Trees(folder / "trees", state_dir=folder / "state")
        self.store = Store(folder / "models", state_dir=folder / "state")
        self.catalog = Catalog(self.store, shelves=(self.trees,))
        self.pins = Pins(self.catalog, self.make_puller)

    def make_puller(self, catalog: Catalog) -> Puller:
        trees = catalog.trees[0]
        return Puller(catalog, trees=trees, read_access=self.hub.access, hardware=lambda: HARDWARE)

    def pull(self, name: str) -> None:
        async def run() -> None:
            async for _ in self.make_puller(self.catalog).pull(name):
                pass

        asyncio.run(run())

    def sync(self, *models: LockedModel) -> list[str]:
        """What it told."""

        async def run() -> list[str]:
            return [line.status for model in models async for line in self.pins.sync(model)]

        return asyncio.run(run())

    def repair(self) -> list[Mended]:
        """All that a verification finds."""
        repair = Repair(self.catalog, self.make_puller)

        async def run() -> None:
            async for _ in repair.run(verify(self.catalog).harmful):
                pass

        asyncio.run(run())
        return repair.results

    def file(self, model: str, name: str) -> Path:
        """Of a folder's model."""
        return self.trees.trees_dir / self.catalog.find(model).digest / name

    def take_fetched(self) -> list[str]:
        """Names of the files that the hub was asked for since the last time."""
        asked = [path.split("/resolve/")[1].partition("/")[2] for path, _ in self.hub.requests if "/resolve/" in path]
        self.hub.requests.clear()
        self.hub.cdn.requests.clear()
        return asked
