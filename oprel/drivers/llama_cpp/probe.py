"""Which llama.cpp engines are on this machine, what they can do, or why they can't be used."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from oprel.drivers.children.asking import NoAnswerError, ask
from oprel.schema import Device, EngineProbe

__all__ = ["DRIVER", "LLAMA_SERVER", "REQUIRED_FLAGS", "XLLAMACPP", "probe_bundled", "probe_engines", "probe_server"]

DRIVER = "llama_cpp"
LLAMA_SERVER = "llama-server"
XLLAMACPP = "xllamacpp"

# A command line without these can't be spoken to in the way that we do: such a build is too old (or too new).
REQUIRED_FLAGS = frozenset(
    {"--model", "--host", "--alias", "--ctx-size", "--parallel", "--threads", "--batch-size", "--ubatch-size"}
    | {"--jinja", "--embeddings", "--pooling"}
)
_HELP_LIMIT_S = 10.0
# The first use of a GPU after a boot loads its driver.
_DEVICES_LIMIT_S = 30.0
_MIB = 1024 * 1024
_INSTALL = (
    "put a llama-server on PATH, name one with --llama-server (OPREL_LLAMA_SERVER), "
    "or install the bundled engine: pip install xllamacpp"
)
_OPTION_NAMES = re.compile(r"^(?:--?[A-Za-z][\w-]*,?[ \t]*)+")
_LONG_NAME = re.compile(r"(?<![\w-])--[A-Za-z][\w-]*")
_DEVICE_LINE = re.compile(r"^\s+(\S+): (.*) \((\d+) MiB, (\d+) MiB free\)\s*$", re.MULTILINE)
_VERSION_LINE = re.compile(r"^version:\s*(.+)$", re.MULTILINE)


class _ProbeError(Exception):
    """Why an executable can't be used, in the words that follow its name."""


def probe_engines(configured: str | None = None, *, search_path: str | None = None) -> tuple[EngineProbe, ...]:
    """The configured llama-server and no other; else the one on PATH, then the bundled engine, up to the first that
    can be used. Blocks for a second or so; never raises."""
    if configured is not None:
        return (_configured(configured),)
    found = shutil.which(LLAMA_SERVER, path=search_path)
    if found is None:
        return (probe_bundled(),)
    on_path = probe_server(Path(found).absolute())
    return (on_path,) if on_path.problem is None else (on_path, probe_bundled())


def probe_server(executable: Path) -> EngineProbe:
    """Asks a llama-server for its version, options and devices."""
    command = (str(executable),)
    try:
        flags = _flags(executable)
        version = _version(executable)
        devices = _devices(executable) if "--list-devices" in flags else ()
    except _ProbeError as error:
        problem = f"{executable} {error}"
        return EngineProbe(driver=DRIVER, engine=LLAMA_SERVER, command=command, problem=problem)
    return EngineProbe(
        driver=DRIVER, engine=LLAMA_SERVER, command=command, version=version, flags=flags, devices=devices
    )


def probe_bundled() -> EngineProbe:
    """Asks the xllamacpp wheel, in a child: its library is large, and may not suit this processor."""
    spec = importlib.util.find_spec("xllamacpp")
    if spec is None or spec.origin is None:
        problem = f"no llama-server was found, and the bundled engine isn't installed: {_INSTALL}"
        return EngineProbe(driver=DRIVER, engine=XLLAMACPP, command=(), problem=problem)
    host = str(Path(__file__).with_name("host.py"))
    import_path = str(Path(spec.origin).parent.parent)
    command = (sys.executable, "-I", "-S", host, "--import-path", import_path)
    try:
        report = json.loads(_ask((*command, "--probe"), timeout_s=_DEVICES_LIMIT_S).strip().splitlines()[-1])
    except (_ProbeError, ValueError, IndexError) as error:
        problem = f"the bundled engine (xllamacpp) {error}; {_INSTALL}"
        return EngineProbe(driver=DRIVER, engine=XLLAMACPP, command=command, problem=problem)
    devices = tuple(
        Device(
            id=entry["id"],
            name=entry["name"],
            total_bytes=entry["total_bytes"],
            free_bytes=entry["free_bytes"],
            integrated=entry["integrated"],
        )
        for entry in report["devices"]
        if _is_real(entry["name"], entry["total_bytes"])
    )
    return EngineProbe(
        driver=DRIVER,
        engine=XLLAMACPP,
        command=command,
        version=report["version"],
        flags=frozenset(report["flags"]),
        devices=devices,
    )


def _configured(path: str) -> EngineProbe:
    executable = Path(path).expanduser()
    if os.sep not in path and (found := shutil.which(path)):
        executable = Path(found)
    probe = probe_server(executable.absolute())
    if probe.problem is None:
        return probe
    said = f"the configured llama-server {probe.problem}: name one that works with --llama-server, or unset it"
    return EngineProbe(driver=DRIVER, engine=LLAMA_SERVER, command=probe.command, problem=said)


def _flags(executable: Path) -> frozenset[str]:
    text = _ask((str(executable), "--help"), timeout_s=_HELP_LIMIT_S)
    flags = frozenset(
        name
        for line in text.splitlines()
        if (head := _OPTION_NAMES.match(line)) is not None
        for name in _LONG_NAME.findall(head.group())
    )
    if "--model" not in flags:
        raise _ProbeError("isn't a llama-server (its --help doesn't read like one)")
    missing = sorted(REQUIRED_FLAGS - flags)
    if missing:
        raise _ProbeError(f"is too old: it has no {', '.join(missing)}")
    # The option's text tells since sockets came; a list of bare names tells by an option that came after them.
    if ".sock" not in text and "--kv-unified" not in flags:
        raise _ProbeError("is too old: it can't listen on a unix socket")
    return flags


def _version(executable: Path) -> str:
    found = _VERSION_LINE.search(_ask((str(executable), "--version"), timeout_s=_HELP_LIMIT_S))
    return found.group(1).strip() if found else ""


def _devices(executable: Path) -> tuple[Device, ...]:
    text = _ask((str(executable), "--list-devices"), timeout_s=_DEVICES_LIMIT_S)
    return tuple(
        Device(id=name, name=called, total_bytes=int(total) * _MIB, free_bytes=int(free) * _MIB)
        for name, called, total, free in _DEVICE_LINE.findall(text)
        if _is_real(called, int(total))
    )


def _is_real(name: str, total: int) -> bool:
    """Vulkan lists software renderers too, and BLAS libraries are devices without memory."""
    return total > 0 and "llvmpipe" not in name.lower() and "swiftshader" not in name.lower()


def _ask(command: Sequence[str], *, timeout_s: float) -> str:
    """What `command` says on both streams. May gain privileges, unlike an engine: NVIDIA's library makes its device
    files by a setuid helper when it is first used, and no model's file is read here."""
    try:
        said = ask(command, timeout_s=timeout_s, may_gain_privileges=True, question=command[-1])
    except NoAnswerError as error:
        raise _ProbeError(str(error)) from error
    if said.code != 0:
        raise _ProbeError(f"can't be run: {said.last_line}")
    return said.text
