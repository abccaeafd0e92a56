"""`oprel drivers check`: the contract tests on an installed driver, in a process of their own, told rule by rule.

The process is another one because a driver under test may do anything: end its process, hang, or leave things behind.
"""

from __future__ import annotations

import importlib.util
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

from oprel.config import Settings
from oprel.drivers import Driver
from oprel.errors import ConfigError, DriverUnavailableError, OprelError, UnsupportedError
from oprel.schema import Hardware, LoadOptions, Model

__all__ = ["Report", "Rule", "check_driver"]

_NEEDED = ("pytest", "jsonschema", "yaml")
_LAST_WORDS_S = 10.0
_TAIL_LINES = 12


class Rule(Struct, frozen=True):
    """One line of the report. `group` is "contract" or "served"; `detail` says what was wrong, or why not looked at."""

    group: str
    text: str
    outcome: Literal["holds", "fails", "skipped"]
    detail: str = ""
    seconds: float = 0.0


class Report(Struct, frozen=True):
    """`problems` are what kept the check itself from ending well."""

    driver: str
    models: tuple[str, ...]
    rules: tuple[Rule, ...]
    problems: tuple[str, ...]
    seconds: float

    @property
    def has_passed(self) -> bool:
        return not self.problems and self.count("holds") > 0 and self.count("fails") == 0

    def count(self, outcome: str) -> int:
        return sum(1 for rule in self.rules if rule.outcome == outcome)


def check_driver(
    name: str,
    settings: Settings,
    *,
    models: Sequence[str] = (),
    on_rule: Callable[[Rule], None] = lambda rule: None,
    limit_s: float = 900.0,
) -> Report:
    """Runs the check; `on_rule` is told each rule when it is known. `models`: installed ones to ask; empty: the
    smallest that the driver runs, one to chat with and one for embeddings. Raises an error with one sentence where
    nothing can be checked."""
    _check_extra()
    began = time.monotonic()
    chosen = _chosen_models(name, settings, models)
    rules: list[Rule] = []
    problems: list[str] = []
    with tempfile.TemporaryDirectory(prefix="oprel-check-") as folder:
        for told in _run(name, chosen, settings, Path(folder), limit_s):
            if isinstance(told, Rule):
                rules.append(told)
                on_rule(told)
            else:
                problems.append(told)
    return Report(name, chosen, tuple(rules), tuple(problems), time.monotonic() - began)


def _check_extra() -> None:
    missing = [module for module in _NEEDED if importlib.util.find_spec(module) is None]
    if missing:
        raise ConfigError(
            "Checking a driver needs the extra 'testing', and "
            f"{', '.join(missing)} can't be imported here: pip install 'pytest>=8.3' 'jsonschema>=4.23' 'pyyaml>=6'"
        )


# -- which models


def _chosen_models(name: str, settings: Settings, wanted: Sequence[str]) -> tuple[str, ...]:
    from oprel.server.compose import make_catalog, make_registry

    registry = make_registry(settings.model_copy(update={"driver": name}))
    driver = registry.get(name)
    hardware = registry.hardware()
    available = driver.availability(hardware)
    if not available.usable:
        raise DriverUnavailableError(f"The driver {name!r} can't be used here: {available.reason}", driver=name)
    catalog = make_catalog(settings)
    if wanted:
        found = tuple(catalog.find(model) for model in wanted)
        for model in found:
            _check_supported(driver, model)
        return tuple(model.name for model in found)
    return _smallest(driver, catalog.list(), hardware)


def _check_supported(driver: Driver, model: Model) -> None:
    support = driver.supports(model)
    if not support.supported:
        text = f"The driver {driver.name!r} can't run {model.name!r}: {support.reason}"
        raise UnsupportedError(text, capability="format", model=model.name, driver=driver.name)


def _smallest(driver: Driver, models: Sequence[Model], hardware: Hardware) -> tuple[str, ...]:
    from oprel.testing.installed import is_embedder

    found: dict[bool, Model] = {}
    for model in sorted(models, key=lambda model: model.size_bytes):
        if is_embedder(model) not in found and _can_run(driver, model, hardware):
            found[is_embedder(model)] = model
    if not found:
        reasons = "; ".join(f"{model.name}: {driver.supports(model).reason}" for model in models[:5])
        raise UnsupportedError(
            f"There is no installed model that the driver {driver.name!r} can run, to check it with: pull one, or "
            f"name one with --model. {reasons or 'No model is installed.'}",
            capability="format",
            driver=driver.name,
        )
    return tuple(model.name for model in found.values())


def _can_run(driver: Driver, model: Model, hardware: Hardware) -> bool:
    if model.damage is not None or not driver.supports(model).supported:
        return False
    try:
        driver.plan(model, LoadOptions(), hardware)
    except OprelError:
        return False
    return True


# -- the process


def _run(name: str, models: Sequence[str], settings: Settings, folder: Path, limit_s: float) -> Iterator[Rule | str]:
    reading, writing = os.pipe()
    output = folder / "output"
    with output.open("wb") as log:
        process = subprocess.Popen(
            _command(name, models, folder, writing),
            env=_environment(settings),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            pass_fds=(writing,),
            start_new_session=True,
        )
    os.close(writing)
    running = ""
    deadline = time.monotonic() + limit_s
    try:
        for line in _lines(reading, deadline):
            told = json.loads(line)
            if "running" in told:
                running = told["running"]
            else:
                running = ""
                yield msgspec.convert(told, Rule)
        code = _wait(process, _LAST_WORDS_S if time.monotonic() < deadline else 0)
    finally:
        os.close(reading)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    where = f", in: {running}" if running else ""
    if code is None:
        yield f"the check didn't end within {limit_s:g} s{where}"
    elif code < 0:
        yield f"the driver ended the process that checked it, by signal {-code}{where}"
    elif code not in (0, 1) or running:
        tail = output.read_text(errors="replace").splitlines()[-_TAIL_LINES:]
        yield f"the check ended with code {code}{where}: {' | '.join(tail)}"


def _command(name: str, models: Sequence[str], folder: Path, report: int) -> list[str]:
    return [
        sys.executable, "-m", "pytest", "-q", "--color=no", "-p", "oprel.testing.plugin", "-p", "no:cacheprovider",
        "-c", os.devnull, "--rootdir", str(folder), "--basetemp", str(folder / "t"), "--tb=native",
        "--pyargs", "oprel.testing.installed",
        "--oprel-report", str(report), "--oprel-driver", name,
        *(part for model in models for part in ("--oprel-model", model)),
    ]  # fmt: skip


def _environment(settings: Settings) -> dict[str, str]:
    """This one's, without other plugins of pytest, and with the settings that were given as flags."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTEST_ADDOPTS"}
    given = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "OPREL_MODELS": str(settings.models_dir)}
    return environment | given


def _lines(descriptor: int, deadline: float) -> Iterator[bytes]:
    """Whole lines as they come; ends with the writer, or at the deadline."""
    rest = b""
    while (left := deadline - time.monotonic()) > 0:
        ready, _, _ = select.select([descriptor], [], [], left)
        if not ready:
            return
        data = os.read(descriptor, 65_536)
        if not data:
            return
        *whole, rest = (rest + data).split(b"\n")
        yield from whole


def _wait(process: subprocess.Popen[bytes], limit_s: float) -> int | None:
    """Its exit code; None where it goes on."""
    try:
        return process.wait(limit_s)
    except subprocess.TimeoutExpired:
        return None
