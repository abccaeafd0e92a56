"""The rooms below the server, put together from settings: the only place that knows how all of them are made."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oprel.config import Settings
from oprel.dialects.services import Services
from oprel.drivers import DriverOptions
from oprel.drivers.children import choose_run_dir, sweep
from oprel.drivers.registry import Registry
from oprel.scheduler import Scheduler
from oprel.store import Catalog, Trees
from oprel.store.running_mark import RunningMark
from oprel.version import __version__

if TYPE_CHECKING:
    from oprel.sources import Puller

__all__ = ["compose", "key_files", "logins_file", "make_catalog", "make_puller", "make_registry"]

OPENAI = "openai"

_log = logging.getLogger("oprel.server")


def compose(settings: Settings) -> Services:
    """Nothing is started yet. What a crash left running is ended, before anything new is."""
    catalog = make_catalog(settings)
    registry = make_registry(settings)
    for told in sweep(registry.options.run_dir):
        _log.warning("%s", told)
    # The server waits for running requests itself, and can be told to hurry; when it stops the scheduler, it is over.
    at_once = settings.model_copy(update={"drain_timeout": 0.0})
    return Services(
        settings=settings,
        catalog=catalog,
        scheduler=Scheduler(catalog=catalog, registry=registry, settings=at_once),
        puller=make_puller(settings, catalog),
        version=__version__,
        registry=registry,
        mark=RunningMark(settings.state_dir / "running"),
    )


def make_catalog(settings: Settings) -> Catalog:
    return Catalog.from_settings(settings)


def _tables(settings: Settings) -> tuple[tuple[str, dict[str, Any]], ...]:
    """Drivers' own options. Checked here, since a driver is made when it is first needed, which may be never."""
    tables: list[tuple[str, dict[str, Any]]] = []
    if settings.vllm:
        from oprel.drivers.vllm.options import VllmOptions

        VllmOptions.parse(settings.vllm)
        tables.append(("vllm", settings.vllm))
    if settings.exllama:
        from oprel.drivers.exllama.options import ExllamaOptions

        ExllamaOptions.parse(settings.exllama)
        tables.append(("exllama", settings.exllama))
    return tuple(tables)


def make_puller(settings: Settings, catalog: Catalog | None = None) -> Puller:
    from oprel.sources import Puller

    catalog = catalog or make_catalog(settings)
    return Puller(
        catalog,
        trees=next(shelf for shelf in catalog.shelves if isinstance(shelf, Trees)),
        logins=logins_file(settings),
        trusted_registries=settings.trusted_registries,
        key_files=key_files(settings),
    )


def logins_file(settings: Settings) -> Path:
    """Where logins to registries are kept."""
    return settings.state_dir.expanduser() / "logins.json"


def key_files(settings: Settings) -> tuple[Path, ...]:
    """Where this machine's key for registries may be; it is made at the last. An account knows the key that Ollama has
    already, so that comes first; where Oprel writes into Ollama's own store, there is no other."""
    ollama = Path("~/.ollama").expanduser()
    is_shared = settings.models_dir.expanduser() == ollama / "models"
    own = () if is_shared else (settings.state_dir.expanduser() / "id_ed25519",)
    return (ollama / "id_ed25519", *own)


def make_registry(settings: Settings) -> Registry:
    """Imports no driver. Its run directory is made, private, if it isn't there."""
    named = {
        "llama-server": settings.llama_server,
        "vllm": settings.vllm_python,
        "exllama": settings.exllama_python,
    }
    executables = tuple((name, str(path)) for name, path in named.items() if path is not None)
    options = DriverOptions(
        run_dir=str(choose_run_dir(settings.state_dir / "run")),
        executables=executables,
        remotes=settings.remotes,
        tables=_tables(settings),
        start_timeout_s=settings.load_timeout,
        stall_timeout_s=settings.stall_timeout,
    )
    # Light to import, and it takes no model but those that the settings put on other servers.
    return Registry(options, wanted=(settings.driver, *settings.drivers, OPENAI), model_drivers=settings.model_drivers)
