"""No engine outlives the Oprel that started it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from oprel.drivers.children.processes import start_mark

PARENT = """
import asyncio, importlib, sys
from oprel.drivers.children import Child, RunDirectory, built_environment

async def main():
    script = (
        "import os, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        "print(os.getpid(), flush=True); time.sleep(600)"
    )
    child = await Child.spawn(
        (sys.executable, "-c", script), name="e", place=RunDirectory(sys.argv[1]).place(),
        environment=built_environment(), mode=sys.argv[2],
    )
    while not child.logs.tail():
        await asyncio.sleep(0.01)
    print(child.pid, child.logs.tail()[0], flush=True)
    await asyncio.sleep(600)

importlib.import_module(sys.argv[3]).run(main())
"""
MODES = ["signal", "watch"] if sys.platform == "linux" else ["watch"]


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("mode", MODES)
def test_killed_parent_leaves_no_orphan_within_a_second(tmp_path: Path, mode: str, loop: str) -> None:
    command = (sys.executable, "-c", PARENT, str(tmp_path / "run"), mode, loop)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        try:
            assert parent.stdout is not None
            pids = {int(word) for word in parent.stdout.readline().split()}
            assert pids
            assert all(start_mark(pid) is not None for pid in pids)
        finally:
            parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 1.0
    while left := [pid for pid in pids if start_mark(pid) is not None]:
        if time.monotonic() > deadline:
            for pid in left:
                os.kill(pid, signal.SIGKILL)
            pytest.fail(f"{left} outlived their parent by a second")
        time.sleep(0.01)


@pytest.mark.skipif(sys.platform != "linux", reason="only the signal needs it: a pipe that is closed stays closed")
def test_a_parent_that_ended_before_the_signal_was_armed_is_noticed() -> None:
    """The shim is told a parent that isn't its own, as if that one had ended meanwhile."""
    from oprel.drivers.children import shim_command

    command = shim_command((sys.executable, "-c", "print('ran')"), mode="signal")
    command[command.index(str(os.getpid()))] = "1"
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 1
    assert "ran" not in done.stdout
    assert "parent process has ended" in done.stderr
