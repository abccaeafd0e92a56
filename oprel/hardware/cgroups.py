"""What the control groups of this process leave it: containers and services have less than the machine."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["CgroupLimits", "read_limits"]

# Version 1 writes "no limit" as the largest multiple of the page size that fits 63 bits.
_NO_LIMIT_BYTES = 1 << 60


@dataclass(frozen=True, slots=True)
class CgroupLimits:
    """None: no limit. `free_bytes` counts page cache that can be dropped as free; `cpus` is the CPU time in whole
    processors, rounded up."""

    memory_bytes: int | None = None
    free_bytes: int | None = None
    cpus: int | None = None


def read_limits(root: Path = Path("/")) -> CgroupLimits:
    """The tightest limits on the way from this process's groups up to the root; nothing readable is no limit."""
    memory, free, cpus = None, None, None
    for folder in _folders(root, "memory"):
        limit = _memory_limit(folder)
        if limit is None:
            continue
        memory = _least(memory, limit)
        free = _least(free, max(0, limit - _working_set(folder)))
    for folder in _folders(root, "cpu"):
        cpus = _least(cpus, _cpu_quota(folder))
    return CgroupLimits(memory, free, cpus)


def _folders(root: Path, controller: str) -> Iterator[Path]:
    """The group of this process for `controller` and all above it, in both versions of the interface."""
    mount = root / "sys/fs/cgroup"
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        if names == "":
            base = mount
        elif controller in names.split(","):
            base = mount / controller if (mount / controller).is_dir() else mount / names
        else:
            continue
        folder = base / path.lstrip("/")
        while folder != base:
            yield folder
            folder = folder.parent
        yield base


def _memory_limit(folder: Path) -> int | None:
    for name in ("memory.max", "memory.limit_in_bytes"):
        limit = _number(folder / name)
        if limit is not None and limit < _NO_LIMIT_BYTES:
            return limit
    return None


def _working_set(folder: Path) -> int:
    """Bytes in use, without the page cache that the kernel would drop first."""
    used = _number(folder / "memory.current") or _number(folder / "memory.usage_in_bytes") or 0
    stat = dict(line.split(" ", 1) for line in _text(folder / "memory.stat").splitlines() if " " in line)
    droppable = stat.get("inactive_file") or stat.get("total_inactive_file") or "0"
    return max(0, used - int(droppable))


def _cpu_quota(folder: Path) -> int | None:
    quota, _, period = _text(folder / "cpu.max").strip().partition(" ")
    if not period:
        quota, period = _text(folder / "cpu.cfs_quota_us").strip(), _text(folder / "cpu.cfs_period_us").strip()
    if not quota.isdigit() or not period.isdigit() or int(period) == 0:
        return None
    return max(1, math.ceil(int(quota) / int(period)))


def _number(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if text.isdigit() else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _least(first: int | None, second: int | None) -> int | None:
    return min((n for n in (first, second) if n is not None), default=None)
