"""A store with what pulls into it and pushes from it, for tests of registries."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path

from oprel.sources import Puller, PullProgress
from oprel.sources.registry import Logins
from oprel.store import Catalog, Store
from oprel.store.disk import Disk

__all__ = ["Place", "lines_of"]


class Place:
    """`keys` are where this machine's key may be; without any, nothing is signed."""

    def __init__(
        self, folder: Path, *, disk: Disk | None = None, trusted: tuple[str, ...] = (), keys: tuple[Path, ...] = ()
    ) -> None:
        self.store = Store(folder / "models", state_dir=folder / "state", disk=disk)
        self.logins = Logins(folder / "state/logins.json")
        self.puller = Puller(Catalog(self.store), logins=self.logins.path, trusted_registries=trusted, key_files=keys)

    def pull(self, name: str, *, insecure: bool = True) -> list[PullProgress]:
        return asyncio.run(lines_of(self.puller.pull(name, insecure=insecure)))

    def push(self, name: str, *, insecure: bool = True) -> list[PullProgress]:
        return asyncio.run(lines_of(self.puller.push(name, insecure=insecure)))

    def files(self) -> list[str]:
        folder = self.store.models_dir
        return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


async def lines_of(steps: AsyncGenerator[PullProgress, None]) -> list[PullProgress]:
    return [step async for step in steps]
