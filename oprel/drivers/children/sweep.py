"""Ends what a crash left running, and removes what it left lying."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path

import msgspec

from oprel.drivers.children.places import STEM_LENGTH, Place, Record
from oprel.drivers.children.processes import is_same_process

__all__ = ["sweep"]


def sweep(run_dir: str | Path) -> tuple[str, ...]:
    """Kills every engine under `run_dir` whose Oprel process is gone, and unlinks its files; engines of Oprel
    processes that are alive are left alone. Answers one sentence for each engine that was still running."""
    folder = Path(run_dir)
    told = [said for path in sorted(folder.glob("*.json")) if (said := _sweep_one(path))]
    # A place writes its record before anything else, so what has none belongs to nobody.
    for stray in folder.glob(f"{'[0-9a-f]' * STEM_LENGTH}.*"):
        if not (folder / f"{stray.name[:STEM_LENGTH]}.json").exists():
            stray.unlink(missing_ok=True)
    return tuple(told)


def _sweep_one(path: Path) -> str | None:
    record = _read(path)
    if record is not None and is_same_process(record.owner_pid, record.owner_mark):
        return None
    said = None
    if record is not None and is_same_process(record.pid, record.mark):
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(record.pid, signal.SIGKILL)
            said = f"{record.engine} (process {record.pid}) was left by an Oprel that crashed, and has been ended"
    Place(path.parent, path.stem).clear()
    return said


def _read(path: Path) -> Record | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Record)
    except (OSError, msgspec.DecodeError):
        return None
