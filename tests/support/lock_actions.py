"""A locked model and a source that has it: a puller that takes a file of the test's own, whatever is asked for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path

from oprel.sources import Puller, PullProgress, PullWish
from oprel.sources.lockfile import LockedModel, read_lock
from oprel.sources.pins import Pins
from oprel.store import Catalog, ModelName, Store
from oprel.store.versions import Change

__all__ = ["FilePuller", "bring", "catalog_over"]


class FilePuller(Puller):
    """Every source is the file `path`, stored as `name`."""

    def __init__(self, catalog: Catalog, path: Path, name: str = "from/source:1") -> None:
        super().__init__(catalog)
        self._path = path
        self._name = ModelName.parse(name)
        self.asked: list[str] = []

    async def pull(
        self, name: str, *, insecure: bool = False, wish: PullWish | None = None
    ) -> AsyncGenerator[PullProgress, None]:
        self.asked.append(name)
        store = self._catalog.store
        yield PullProgress("pulling manifest")
        with store.new_blob() as blob:
            blob.write(self._path.read_bytes())
            store.install(blob, self._name, change=Change("pull", name))
        yield PullProgress("success")


def catalog_over(store: Store) -> Catalog:
    return Catalog(store)


def bring(folder: Path, store: Store) -> None:
    """What `folder/oprel.lock` pins, from `folder/new.gguf`."""

    async def run(models: tuple[LockedModel, ...]) -> None:
        pins = Pins(catalog_over(store), lambda catalog: FilePuller(catalog, folder / "new.gguf"))
        for model in models:
            async for _ in pins.sync(model):
                pass

    asyncio.run(run(read_lock(folder / "oprel.lock")))
