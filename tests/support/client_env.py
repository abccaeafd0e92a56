"""Environments of their own for clients whose requirements would move the packages that Oprel is developed with.

An environment is made once from the package index, as pip is configured on this machine, and kept in the tests' cache,
under its name and a hash of what it was asked for. It holds the newest versions of the day that it was made: remove
the folder to have it made anew. A client's script is run in it, and what it prints is JSON for a test to judge.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from support.models import cache_dir, locked

__all__ = ["client_environment", "run_client"]

_INSTALL_LIMIT_S = 600
_RUN_LIMIT_S = 800


def client_environment(name: str, requirements: Sequence[str]) -> Path:
    """The Python of an environment that has the requirements. Processes that want the same one wait for each other."""
    wanted = "\n".join([f"{sys.version_info.major}.{sys.version_info.minor}", *sorted(requirements)])
    folder = cache_dir() / f"clients-{name}-{hashlib.sha256(wanted.encode()).hexdigest()[:12]}"
    python = folder / "bin" / "python"
    made = folder / "made"  # written last: a folder without it was left by a process that ended in the middle
    with locked(folder.with_name(f"{folder.name}.lock")):
        if not made.exists():
            shutil.rmtree(folder, ignore_errors=True)
            _run([sys.executable, "-m", "venv", "--without-pip", str(folder)])
            # Bytecode is made of what is imported, when it is: these clients bring far more than that.
            pip = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check"]
            _run([*pip, "install", "--quiet", "--no-compile", *requirements])
            made.write_text(wanted)
    return python


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=_INSTALL_LIMIT_S, check=False)
    assert done.returncode == 0, f"{' '.join(command)}:\n{done.stdout[-1000:]}\n{done.stderr[-3000:]}"


def run_client(python: Path, script: Path, *arguments: str) -> Any:
    """What the script printed, read as JSON. It sees no settings of clients, nor packages, of the tests' own process;
    third parties' warnings are theirs."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
    done = subprocess.run(
        [str(python), "-W", "ignore", str(script), *arguments],
        env=kept,
        capture_output=True,
        text=True,
        timeout=_RUN_LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, f"{script.name} ended with {done.returncode}:\n{done.stdout}\n{done.stderr[-4000:]}"
    return json.loads(done.stdout)
