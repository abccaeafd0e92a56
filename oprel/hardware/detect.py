"""One look at the machine."""

from __future__ import annotations

import platform
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec

from oprel.hardware.amd import amd_gpus
from oprel.hardware.apple import apple_gpus
from oprel.hardware.cgroups import read_limits
from oprel.hardware.cpu import count_cores
from oprel.hardware.memory import read_memory
from oprel.hardware.nvidia import nvidia_gpus
from oprel.schema import Gpu, Hardware

__all__ = ["detect_hardware", "with_free_memory"]

T = TypeVar("T")


def detect_hardware(*, root: Path = Path("/")) -> Hardware:
    """Blocks for as long as `nvidia-smi` takes where NVML isn't installed (5 s at most), else for milliseconds.

    Never raises: what couldn't be found out is a sentence in `notes`. `root` is where /proc and /sys are looked for.
    """
    system, machine = platform.system(), platform.machine()
    notes: list[str] = []
    limits = read_limits(root)
    cores, threads = _noting(notes, "the cores", lambda: count_cores(system, root, limits.cpus), (1, 1))
    total, available = _noting(notes, "the memory", lambda: read_memory(system, root, limits), (0, 0))
    return Hardware(
        system=system,
        machine=machine,
        cores=cores,
        threads=threads,
        ram_total_bytes=total,
        ram_available_bytes=available,
        gpus=_gpus(notes, system, machine, root, (total, available)),
        notes=tuple(notes),
    )


def with_free_memory(hardware: Hardware, *, root: Path = Path("/")) -> Hardware:
    """`hardware` with the free memory of this moment, and nothing else looked at again."""
    notes: list[str] = []
    known = (hardware.ram_total_bytes, hardware.ram_available_bytes)
    limits = read_limits(root)
    total, available = _noting(notes, "the memory", lambda: read_memory(hardware.system, root, limits), known)
    gpus = hardware.gpus and _gpus(notes, hardware.system, hardware.machine, root, (total, available))
    return msgspec.structs.replace(
        hardware, ram_total_bytes=total, ram_available_bytes=available, gpus=gpus or hardware.gpus
    )


def _gpus(notes: list[str], system: str, machine: str, root: Path, memory: tuple[int, int]) -> tuple[Gpu, ...]:
    if system == "Darwin":
        return _noting(notes, "the GPU", lambda: apple_gpus(machine, *memory), ())
    none: tuple[Gpu, ...] = ()
    nothing: tuple[tuple[Gpu, ...], tuple[str, ...]] = (none, ())
    nvidia, problems = _noting(notes, "NVIDIA GPUs", lambda: nvidia_gpus(root), nothing)
    notes += problems
    return nvidia + _noting(notes, "AMD GPUs", lambda: amd_gpus(root), none)


def _noting(notes: list[str], what: str, look: Callable[[], T], otherwise: T) -> T:
    """What `look` finds; a surprise becomes a note, because a machine that can't be measured must still serve."""
    try:
        return look()
    except Exception as error:
        notes.append(f"{what} could not be found out: {type(error).__name__}: {error}")
        return otherwise
