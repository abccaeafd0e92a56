"""Why a host ended, by its exit code and the line of JSON that it leaves in its log."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from oprel.drivers.local.words import Cause

__all__ = ["Exit", "classify", "read_exit"]


# By the host's exit code: what the scheduler is told, and what the user is. A plan with less context may help where
# GPU memory ran out, and nowhere else.
_CAUSES: dict[int, tuple[Cause, str]] = {
    2: ("engine", "it doesn't understand its command line"),
    3: ("engine", "its library can't be imported or built"),
    4: ("gpu", "it finds no CUDA device"),
    5: ("model", "the model can't be used"),
    6: ("gpu", "GPU memory ran out"),
    70: ("engine", "its generator failed for good"),
}


class Exit(msgspec.Struct):
    code: int
    message: str = ""


class _Line(msgspec.Struct):
    oprel_exit: Exit


def read_exit(lines: Sequence[str], returncode: int | None) -> Exit | None:
    """What the host said of its end; None: it said nothing, or ended in another way than it said."""
    for line in reversed(lines):
        if line.startswith('{"oprel_exit"'):
            try:
                told = msgspec.json.decode(line, type=_Line).oprel_exit
            except msgspec.DecodeError:  # cut by the length of a line in the log
                return None
            return told if told.code == returncode else None
    return None


def classify(lines: Sequence[str], returncode: int) -> tuple[Cause, str]:
    """Why a start failed: the cause, and a clause that says it."""
    told = read_exit(lines, returncode)
    if returncode in _CAUSES:
        cause, meaning = _CAUSES[returncode]
        if told is not None:
            return cause, f"{meaning} ({told.message})"
        if lines:
            return cause, f"{meaning}; its last line was: {lines[-1].strip()}"
        return cause, meaning
    if returncode == -9:
        return "memory", "it was killed, which the system does when memory runs out"
    said = [line.strip() for line in lines if line.strip()]
    return "engine", f"its last line was: {said[-1]}" if said else "it said nothing"
