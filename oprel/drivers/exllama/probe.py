"""What the configured environment has. It is asked for metadata only: an import may compile for minutes."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from oprel.drivers.children.asking import NoAnswerError, ask
from oprel.drivers.exllama.flavour import Flavour
from oprel.schema import EngineProbe

__all__ = ["HOST", "probe_environment"]

HOST = str(Path(__file__).with_name("host.py").absolute())
_LIMIT_S = 20.0


class _ProbeError(Exception):
    """Why an interpreter can't be used, in the words that follow its name."""


def probe_environment(flavour: Flavour, configured: str | None) -> EngineProbe:
    """`configured` is an interpreter, or the folder of a virtual environment. Never raises; `flags` of the answer are
    what is installed, as `name==version`."""
    if configured is None:
        return _unusable(flavour, (), f"no Python with {flavour.name} is named: {_how(flavour)}")
    python = _interpreter(configured)
    # -I: what is in the environment counts, and nothing else.
    command = (str(python), "-I", "-u", HOST)
    try:
        report = _ask((*command, "--probe"))
        packages: dict[str, str] = dict(report["packages"])
        versions = {**packages, "python": str(report["python"])}
    except _ProbeError as error:
        return _unusable(flavour, command, f"the configured Python {python} {error}: {_how(flavour)}")
    except (KeyError, TypeError, ValueError):
        return _unusable(flavour, command, f"the configured Python {python} answers nonsense: {_how(flavour)}")
    if missing := [name for name in flavour.needs if name not in packages]:
        text = f"{python} has no {' and no '.join(missing)}: run {python} -m {flavour.install}"
        return _unusable(flavour, command, text)
    return EngineProbe(
        driver=flavour.name,
        engine=flavour.name,
        command=command,
        version=packages[flavour.name],
        flags=frozenset(f"{name}=={version}" for name, version in versions.items()),
    )


def _unusable(flavour: Flavour, command: tuple[str, ...], problem: str) -> EngineProbe:
    return EngineProbe(driver=flavour.name, engine=flavour.name, command=command, problem=problem)


def _how(flavour: Flavour) -> str:
    return (
        f"make a virtual environment on a machine with an NVIDIA GPU, {flavour.install} in it, and name its "
        "interpreter with exllama_python (OPREL_EXLLAMA_PYTHON)"
    )


def _interpreter(configured: str) -> Path:
    """Absolute, and never resolved: in a virtual environment it is the link's own place that counts."""
    path = Path(configured).expanduser()
    if os.sep not in configured and (found := shutil.which(configured)):
        path = Path(found)
    return (path / "bin" / "python" if path.is_dir() else path).absolute()


def _ask(command: tuple[str, ...]) -> dict[str, Any]:
    try:
        said = ask(command, timeout_s=_LIMIT_S)
    except NoAnswerError as error:
        raise _ProbeError(str(error)) from error
    if said.code != 0:
        raise _ProbeError(f"can't be used ({said.last_line[:300]})")
    if not said.text.strip():
        raise _ProbeError("says nothing")
    found: dict[str, Any] = json.loads(said.last_line)
    return found
