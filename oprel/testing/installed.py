"""The contract on an installed driver: what `oprel drivers check` runs.

pytest --pyargs oprel.testing.installed -p oprel.testing.plugin --oprel-driver NAME --oprel-model MODEL
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest

from oprel.config import Settings, load_settings
from oprel.drivers import Driver, DriverOptions, Engine
from oprel.drivers.checked.driver import CheckedDriver
from oprel.drivers.checked.processes import descendants
from oprel.drivers.registry import Registry
from oprel.schema import Model, ModelFile
from oprel.store import Catalog
from oprel.testing.contract import DriverContract, Subject
from oprel.testing.served import Served, ServedContract, served

__all__ = ["Installed", "TestContract", "TestServed", "is_embedder"]

_CUT_BYTES = 65_536
# Engines that compile or read much take minutes; the check as a whole has its own limit.
_START_LIMIT_S = 600.0
_STOP_LIMIT_S = 30.0


@dataclass(frozen=True)
class Installed:
    """A driver of this installation, as it is without any wrapper, and models for it."""

    driver: Driver
    settings: Settings
    catalog: Catalog
    models: tuple[Model, ...]

    @property
    def chat(self) -> Model | None:
        return next((model for model in self.models if not is_embedder(model)), None)

    @property
    def embed(self) -> Model | None:
        """Of two of which nothing is known (remote ones), the second."""
        unknown = (model for model in self.models[1:] if not model.capabilities)
        return next((model for model in self.models if is_embedder(model)), next(unknown, None))

    def make(self, options: DriverOptions) -> Driver:
        """Another one of its kind, which notes the processes that its engines start."""
        own = self.driver.options
        full = msgspec.structs.replace(
            options,
            executables=own.executables,
            remotes=own.remotes,
            tables=own.tables,
            start_timeout_s=own.start_timeout_s,
        )
        return _noting(type(self.driver)(full))


def is_embedder(model: Model) -> bool:
    return model.is_embedding and "completion" not in model.capabilities


@pytest.fixture(scope="session")
def installed(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    name = pytestconfig.getoption("oprel_driver") or pytest.skip("--oprel-driver names the driver")
    settings = load_settings({})
    registry = _registry(settings, name, tmp_path_factory)
    found = registry.get(name)
    catalog = Catalog.from_settings(settings)
    models = tuple(catalog.find(model) for model in pytestconfig.getoption("oprel_model") or ())
    return Installed(found.inner if isinstance(found, CheckedDriver) else found, settings, catalog, models)


class TestContract(DriverContract):
    @pytest.fixture(scope="class")
    @classmethod
    def subject(cls, installed: Installed, tmp_path_factory: pytest.TempPathFactory) -> Subject:
        whole = installed.chat or installed.embed
        return Subject(
            make=installed.make,
            chat=installed.chat,
            embed=installed.embed,
            damaged=_damaged(whole, tmp_path_factory.mktemp("damaged")) if whole is not None else None,
            kill=_kill,
            start_limit_s=_START_LIMIT_S,
            stop_limit_s=_STOP_LIMIT_S,
        )


class TestServed(ServedContract):
    @pytest.fixture(scope="class")
    @classmethod
    def served(cls, installed: Installed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
        name = installed.driver.name
        chat, embed = installed.chat, installed.embed
        with served(
            catalog=installed.catalog,
            registry=_registry(installed.settings, name, tmp_path_factory),
            settings=installed.settings,
            driver=name,
            chat=chat.name if chat is not None else None,
            embed=embed.name if embed is not None else None,
        ) as found:
            yield found


def _registry(settings: Settings, name: str, folders: pytest.TempPathFactory) -> Registry:
    from oprel.server.compose import make_registry

    run_dir = folders.mktemp("run")
    here = settings.model_copy(update={"driver": name, "state_dir": run_dir})
    return make_registry(here)


def _damaged(model: Model, folder: Path) -> Model | None:
    """The same with weights that break off, what else lies beside them there too; None where there is no file to
    cut."""
    weights = [Path(file.path) for file in model.files if file.role == "weights" and Path(file.path).is_file()]
    if not weights:
        return None
    root = weights[0].parent
    files = []
    for file in model.files:
        path = Path(file.path)
        if path not in weights and not path.is_relative_to(root):
            files.append(file)
            continue
        copy = folder / (path.relative_to(root) if path.is_relative_to(root) else path.name)
        copy.parent.mkdir(parents=True, exist_ok=True)
        with path.open("rb") as whole:
            copy.write_bytes(whole.read(min(_CUT_BYTES, file.size_bytes // 2) if path in weights else -1))
        files.append(ModelFile(file.role, str(copy), file.digest, copy.stat().st_size))
    return msgspec.structs.replace(model, name="damaged:latest", files=tuple(files))


def _noting(driver: Driver) -> Driver:
    started = driver.start

    async def start(plan: Any) -> Engine:
        before = descendants()
        engine = await started(plan)
        engine.__dict__["oprel_started"] = tuple(descendants().keys() - before.keys())
        return engine

    driver.__dict__["start"] = start
    return driver


def _kill(engine: Engine) -> None:
    """As the out-of-memory killer would."""
    pids = engine.__dict__.get("oprel_started") or pytest.skip("the engine has no process of its own")
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
