"""System tools asked for one fact each."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

__all__ = ["run_tool", "sysctl"]

_LIMIT_S = 5.0


def run_tool(command: Sequence[str], *, timeout_s: float = _LIMIT_S) -> str:
    """Its standard output. Raises OSError where it can't run, `subprocess.SubprocessError` where it fails or hangs."""
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=timeout_s,
        check=True,
        text=True,
        errors="replace",
    )
    return done.stdout


def sysctl(name: str) -> str | None:
    """The value of a kernel setting on macOS and BSD; None where there is no such setting."""
    try:
        return run_tool(("sysctl", "-n", name)).strip() or None
    except (OSError, subprocess.SubprocessError):
        return None
