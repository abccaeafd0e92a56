"""NVIDIA GPUs: by NVML where its binding is installed (`oprel[nvidia]`), else by `nvidia-smi`."""

from __future__ import annotations

import csv
import importlib
import io
import shutil
import subprocess
from pathlib import Path
from typing import Any

from oprel.hardware.tools import run_tool
from oprel.schema import Gpu

__all__ = ["nvidia_gpus"]

_VENDOR = "0x10de"
_QUERY = ("--query-gpu=index,name,uuid,memory.total,memory.free", "--format=csv,noheader,nounits")
_MIB = 1024 * 1024


def nvidia_gpus(root: Path = Path("/")) -> tuple[tuple[Gpu, ...], tuple[str, ...]]:
    """The GPUs and, where one is in the machine but can't be asked, a note that says why."""
    problems: list[str] = []
    for look in (_by_nvml, _by_smi):
        try:
            gpus = look()
        except _NotHereError:
            continue
        except Exception as error:
            problems.append(_sentence(error))
            continue
        if gpus:
            return gpus, ()
    # NVML's binding may be installed on a machine that has no such GPU: that is nothing to tell.
    if not _is_on_the_bus(root) and not any(problem.startswith("nvidia-smi") for problem in problems):
        return (), ()
    why = problems[-1] if problems else "neither NVML nor nvidia-smi is installed"
    return (), (f"NVIDIA's driver can't be asked ({why}): check that `nvidia-smi` works",)


class _NotHereError(Exception):
    """This way of looking isn't installed: nothing to tell."""


def _by_nvml() -> tuple[Gpu, ...]:
    try:
        nvml: Any = importlib.import_module("pynvml")
    except ImportError:
        raise _NotHereError from None
    nvml.nvmlInit()
    try:
        return tuple(_nvml_gpu(nvml, index) for index in range(nvml.nvmlDeviceGetCount()))
    finally:
        nvml.nvmlShutdown()


def _nvml_gpu(nvml: Any, index: int) -> Gpu:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    return Gpu(
        index=index,
        name=_text(nvml.nvmlDeviceGetName(handle)),
        vendor="nvidia",
        total_bytes=int(memory.total),
        free_bytes=int(memory.free),
        found_by="nvml",
        uuid=_text(nvml.nvmlDeviceGetUUID(handle)),
    )


def _by_smi() -> tuple[Gpu, ...]:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        raise _NotHereError
    rows = csv.reader(io.StringIO(run_tool((tool, *_QUERY))), skipinitialspace=True)
    return tuple(_smi_gpu(row) for row in rows if len(row) == 5)


def _smi_gpu(row: list[str]) -> Gpu:
    index, name, uuid, total, free = (cell.strip() for cell in row)
    return Gpu(
        index=int(index),
        name=name,
        vendor="nvidia",
        # GPUs that share the machine's memory answer "[N/A]".
        total_bytes=int(total) * _MIB if total.isdigit() else 0,
        free_bytes=int(free) * _MIB if free.isdigit() else 0,
        found_by="nvidia-smi",
        uuid=uuid,
    )


def _is_on_the_bus(root: Path) -> bool:
    for device in (root / "sys/bus/pci/devices").glob("*"):
        try:
            is_display = (device / "class").read_text(encoding="ascii").startswith("0x03")
            if is_display and (device / "vendor").read_text(encoding="ascii").strip() == _VENDOR:
                return True
        except OSError:
            continue
    return False


def _sentence(error: Exception) -> str:
    if isinstance(error, subprocess.CalledProcessError):
        said = (error.stdout or error.stderr or "").strip().splitlines()
        return f"nvidia-smi: {said[0]}" if said else f"nvidia-smi ended with code {error.returncode}"
    if isinstance(error, subprocess.TimeoutExpired):
        return f"nvidia-smi did not answer within {error.timeout:g} s"
    return f"{type(error).__name__}: {error}"


def _text(value: str | bytes) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
