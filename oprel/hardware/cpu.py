"""How many cores this process may use."""

from __future__ import annotations

import os
from pathlib import Path

from oprel.hardware.tools import sysctl

__all__ = ["count_cores"]


def count_cores(system: str, root: Path, quota: int | None) -> tuple[int, int]:
    """(physical cores, logical processors), after affinity, cpuset and the CPU quota of the control group."""
    if system == "Darwin":
        # The efficiency cores would hold back every barrier between worker threads.
        fast = sysctl("hw.perflevel0.physicalcpu") or sysctl("hw.physicalcpu")
        threads = os.cpu_count() or 1
        return int(fast or threads), threads
    usable = _usable_processors()
    cores = _physical_cores(root, usable)
    threads = len(usable)
    if quota is not None:
        cores, threads = min(cores, quota), min(threads, quota)
    return max(1, cores), max(1, threads)


def _usable_processors() -> frozenset[int]:
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def _physical_cores(root: Path, usable: frozenset[int]) -> int:
    """Processors that share a core count once; where the kernel doesn't tell, each is its own core."""
    cores = set()
    for processor in usable:
        topology = root / f"sys/devices/system/cpu/cpu{processor}/topology"
        try:
            cores.add((topology / "thread_siblings_list").read_text(encoding="ascii").strip())
        except OSError:
            cores.add(str(processor))
    return len(cores)
