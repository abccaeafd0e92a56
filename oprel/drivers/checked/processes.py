"""The processes that a driver's engine started: who they are, and that none of them stays."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from oprel.drivers.children.places import Record
from oprel.drivers.children.processes import is_same_process, start_mark

__all__ = ["Claim", "descendants", "end_all"]

_GRACE_S = 1.0
_POLL_S = 0.05
# Helpers of the interpreter's own, shared by all that use multiprocessing, which end with it.
_PYTHONS_OWN = (b"multiprocessing.resource_tracker", b"multiprocessing.forkserver")


class Claim:
    """What came up below this process between two moments. Only one engine is started at a time, so it is the
    engine's; children that Oprel itself supervises (they have a record in the run directory) are left out.

    A process that cuts itself loose from its parents is not seen.
    """

    def __init__(self, before: Mapping[int, str], after: Mapping[int, str], run_dir: str) -> None:
        ours = _supervised(run_dir)
        self._marks = {
            pid: mark
            for pid in after.keys() - before.keys() - ours
            if not _is_pythons_own(pid) and (mark := start_mark(pid)) is not None
        }
        self._names = dict(after)

    @property
    def pids(self) -> tuple[int, ...]:
        return tuple(sorted(self._marks))

    def left(self) -> dict[int, str]:
        """Those of them that are there still, by name."""
        return {pid: self._names[pid] for pid, mark in self._marks.items() if is_same_process(pid, mark)}


def descendants() -> dict[int, str]:
    """The living processes below this one, by name. Takes some milliseconds."""
    found = dict(_linux() if sys.platform == "linux" else _by_ps())
    below = {os.getpid()}
    while more := {pid for pid, (parent, _) in found.items() if parent in below} - below:
        below |= more
    return {pid: found[pid][1] for pid in below - {os.getpid()} if pid in found}


async def end_all(claim: Claim) -> dict[int, str]:
    """Gives them a moment to end by themselves, and kills the rest, which is returned."""
    waited = 0.0
    while (left := claim.left()) and waited < _GRACE_S:
        await asyncio.sleep(_POLL_S)
        waited += _POLL_S
    for pid in left:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
    return left


def _linux() -> Iterator[tuple[int, tuple[int, str]]]:
    """(pid, (parent, name)); the name stands in brackets and may hold anything. Zombies are no more."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            before, _, after = path.read_text(errors="replace").rpartition(")")
            pid, _, name = before.partition(" (")
            fields = after.split()
            if fields[0] not in ("Z", "X"):
                yield int(pid), (int(fields[1]), name)


def _by_ps() -> Iterator[tuple[int, tuple[int, str]]]:
    command = ["/bin/ps", "-A", "-o", "pid=,ppid=,comm="]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=5)
        for line in done.stdout.splitlines():
            pid, parent, name = line.split(None, 2)
            if not name.endswith("ps"):
                yield int(pid), (int(parent), name)


def _supervised(run_dir: str) -> set[int]:
    pids = set()
    for path in Path(run_dir).glob("*.json") if run_dir else ():
        with contextlib.suppress(OSError, msgspec.DecodeError):
            pids.add(msgspec.json.decode(path.read_bytes(), type=Record).pid)
    return pids


def _is_pythons_own(pid: int) -> bool:
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    return any(word in command for word in _PYTHONS_OWN)
