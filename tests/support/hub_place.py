"""A machine that pulls models from a hub on loopback, and what it asked that hub for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from oprel.schema import Hardware
from oprel.sources import Puller
from oprel.store import Catalog, Store, Trees
from support.hub import HubServer
from support.place import Place

__all__ = ["HubPlace", "files_of"]

HARDWARE = Hardware("Linux", "x86_64", 4, 4, 16 << 30, 16 << 30)


def files_of(folder: Path) -> Mapping[str, bytes]:
    """By name, as a repository has them."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


class HubPlace(Place):
    def __init__(self, folder: Path, hub: HubServer) -> None:
        self.hub = hub
        self.trees = Trees(folder / "trees", state_dir=folder / "state")
        self.store = Store(folder / "models", state_dir=folder / "state")
        super().__init__(Catalog(self.store, shelves=(self.trees,)))

    def make_puller(self, catalog: Catalog) -> Puller:
        trees = catalog.trees[0]
        return Puller(catalog, trees=trees, read_access=self.hub.access, hardware=lambda: HARDWARE)

    def file(self, model: str, name: str) -> Path:
        """Of a folder's model."""
        return self.trees.trees_dir / self.catalog.find(model).digest / name

    def take_fetched(self) -> list[str]:
        """Names of the files that the hub was asked for since the last time."""
        asked = [path.split("/resolve/")[1].partition("/")[2] for path, _ in self.hub.requests if "/resolve/" in path]
        self.hub.requests.clear()
        self.hub.cdn.requests.clear()
        return asked
