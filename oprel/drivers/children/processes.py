"""Which process is which: a pid alone may have been given to another one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

__all__ = ["is_same_process", "resident_bytes", "start_mark", "tree_resident_bytes"]


def start_mark(pid: int) -> str | None:
    """A text that no other process with this pid ever has: boot and start time. None: there is no such process."""
    if sys.platform != "linux":
        return _start_by_ps(pid)
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return None
    # The name in parentheses may hold anything; start time is the 22nd field, the 20th after the name.
    fields = stat.rpartition(")")[2].split()
    if fields[0] in ("Z", "X"):
        return None
    return f"{boot}:{fields[19]}"


def is_same_process(pid: int, mark: str | None) -> bool:
    return mark is not None and pid > 0 and start_mark(pid) == mark


def resident_bytes(pid: int) -> int | None:
    """RAM that the process holds now; None where it can't be measured."""
    try:
        pages = Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]
    except (OSError, IndexError):
        return None
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def tree_resident_bytes(pid: int) -> int | None:
    """The same for a process and all below it; what they share counts for each."""
    own = resident_bytes(pid)
    if own is None:
        return None
    below = 0
    for listing in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = listing.read_text(encoding="ascii").split()
        except OSError:
            continue
        below += sum(tree_resident_bytes(int(child)) or 0 for child in children)
    return own + below


def _start_by_ps(pid: int) -> str | None:
    """`ps` answers within milliseconds, and is asked once when a model is loaded."""
    try:
        done = subprocess.run(
            ("/bin/ps", "-o", "stat=,lstart=", "-p", str(pid)), capture_output=True, text=True, timeout=5, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    state, _, started = done.stdout.strip().partition(" ")
    return None if state.startswith("Z") else started.strip() or None
