"""A server on a real socket whose engines play a cassette, or are recorded on one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

from oprel.config import Settings, load_settings
from oprel.testing.cassette import Cassette
from oprel.testing.catalog import ScriptedCatalog, ScriptedRegistry
from oprel.testing.live import LiveServer, live_server
from oprel.testing.player import PlayingDriver
from oprel.testing.recorder import RecordingRegistry

__all__ = ["OpenCassette", "opened", "played", "recorded"]


class OpenCassette(Protocol):
    """What the fixture `oprel_cassette` is."""

    def __call__(self, path: str | Path, *, pace: float = 0.0, settings: Settings | None = None) -> LiveServer: ...


@contextmanager
def played(path: Path, *, pace: float = 0.0, settings: Settings | None = None) -> Iterator[LiveServer]:
    """Serves the models of the cassette. `pace`: 1 as it was recorded, 0 as quick as possible."""
    cassette = Cassette.load(path)
    driver = PlayingDriver(cassette, pace=pace)
    catalog: Any = ScriptedCatalog(*(recorded.model for recorded in cassette.models.values()))
    with live_server(catalog=catalog, registry=ScriptedRegistry(driver), settings=settings or Settings()) as server:
        yield server


@contextmanager
def recorded(path: Path, *, settings: Settings | None = None) -> Iterator[LiveServer]:
    """Serves the installed models by real engines; what passed is written to `path` when the block ends well."""
    from oprel.server.compose import make_catalog, make_registry

    settings = settings or load_settings({})
    cassette = Cassette(name=path.name)
    registry = RecordingRegistry(make_registry(settings), cassette)
    with live_server(catalog=make_catalog(settings), registry=registry, settings=settings) as server:
        yield server
    cassette.save(path)


def opened(stack: ExitStack, *, folder: Path, is_recording: bool) -> OpenCassette:
    """Each server that is opened ends with the stack."""

    def open_one(path: str | Path, *, pace: float = 0.0, settings: Settings | None = None) -> LiveServer:
        if is_recording:
            return stack.enter_context(recorded(folder / path))
        return stack.enter_context(played(folder / path, pace=pace, settings=settings))

    return open_one
