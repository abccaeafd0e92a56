"""How the shim is put before an engine's command."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

__all__ = ["Mode", "default_mode", "shim_command"]

Mode = Literal["signal", "watch"]

_SHIM = str(Path(__file__).with_name("shim.py"))


def default_mode() -> Mode:
    return "signal" if sys.platform == "linux" else "watch"


def shim_command(command: Sequence[str], *, mode: Mode | None = None, may_gain_privileges: bool = False) -> list[str]:
    """`command` (its first word an absolute path) behind the shim, as a child of the calling process."""
    privileges = "keep" if may_gain_privileges else "none"
    return [sys.executable, "-I", "-S", _SHIM, mode or default_mode(), str(os.getpid()), privileges, *command]
