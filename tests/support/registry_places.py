"""A store with what pulls into it and pushes from it, for tests of registries."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

import pytest

from oprel.sources import Puller, PullProgress
from oprel.sources.registry import Logins
from oprel.store import Catalog, Store
from oprel.store.disk import Disk
from support.model_registry import ModelRegistry
from support.tiny_gguf import write_tiny_gguf

__all__ = ["Place", "lines_of", "prepared", "trust"]


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


def trust(monkeypatch: pytest.MonkeyPatch, origin: str) -> None:
    """Let a second origin on loopback count as one outside."""
    from oprel.net.outside import OutsideClient

    real: Callable[..., None] = OutsideClient.__init__

    def made(self: OutsideClient, *, trusted: tuple[str, ...] = (), **more: Any) -> None:
        real(self, trusted=(*trusted, origin), **more)

    monkeypatch.setattr(OutsideClient, "__init__", made)


def prepared(place: Place, registry: ModelRegistry, tmp_path: Path, *, size: int = 5000) -> str:
    """A model of a GGUF file with so many bytes more, to be pushed as `a/b:c`; its name."""
    gguf = write_tiny_gguf(tmp_path / "m.gguf")
    with gguf.open("ab") as handle:
        handle.write(random.Random(1).randbytes(size))  # noqa: S311
    name = f"{registry.host}/a/b:c"
    place.store.import_gguf(gguf, name)
    return name
