"""How much RAM this process may use, and how much of it is free."""

from __future__ import annotations

import re
from pathlib import Path

from oprel.hardware.cgroups import CgroupLimits
from oprel.hardware.tools import run_tool, sysctl

__all__ = ["read_memory"]

# What macOS gives back under pressure without writing anything out.
_RECLAIMABLE = ("free", "inactive", "speculative", "purgeable")


def read_memory(system: str, root: Path, limits: CgroupLimits) -> tuple[int, int]:
    """(total, available) in bytes; a control group's limit counts as the machine's."""
    total, available = _darwin() if system == "Darwin" else _linux(root)
    if limits.memory_bytes is not None:
        total = min(total, limits.memory_bytes)
    if limits.free_bytes is not None:
        available = min(available, limits.free_bytes)
    return total, min(total, available)


def _linux(root: Path) -> tuple[int, int]:
    fields = {}
    for line in (root / "proc/meminfo").read_text(encoding="ascii").splitlines():
        name, _, rest = line.partition(":")
        fields[name] = int(rest.split()[0]) * 1024
    available = fields.get("MemAvailable", fields.get("MemFree", 0) + fields.get("Cached", 0))
    return fields["MemTotal"], available


def _darwin() -> tuple[int, int]:
    total = int(sysctl("hw.memsize") or 0)
    report = run_tool(("vm_stat",))
    page = re.search(r"page size of (\d+) bytes", report)
    pages = sum(
        int(found.group(1)) for kind in _RECLAIMABLE if (found := re.search(rf"Pages {kind}:\s+(\d+)\.", report))
    )
    return total, pages * int(page.group(1) if page else 4096)
