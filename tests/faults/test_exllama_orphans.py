"""No ExLlama host, nor what it started, outlives the Oprel that started it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.exllama_driver import model_in
from support.exllama_python import install, runs

from oprel.drivers.children.processes import start_mark

pytest.importorskip("jinja2", reason="chat templates are rendered by jinja2, which an engine's environment has")

PARENT = """
import asyncio, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from support.exllama_driver import driver_for, make_hardware, model_in
from oprel.schema import LoadOptions

async def main():
    folder = Path(sys.argv[2])
    driver = driver_for(folder / "run", folder / "env" / "python")
    plan = driver.plan(model_in(folder / "model"), LoadOptions(context_tokens=512), make_hardware(*driver.probe()))
    engine = await driver.start(plan)
    print(engine._child.pid, flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the renderer's parent-death signal is Linux's")
def test_a_killed_oprel_leaves_no_host_and_no_renderer(tmp_path: Path) -> None:
    install(tmp_path / "env")
    model_in(tmp_path / "model")
    command = (sys.executable, "-c", PARENT, str(Path(__file__).parents[1]), str(tmp_path))
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        try:
            assert parent.stdout is not None
            host = int(parent.stdout.readline())
            assert host == runs(tmp_path / "env")[0]["pid"]
            pids = {host, *_below(host)}
            assert len(pids) == 2
        finally:
            parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 1.0
    while left := [pid for pid in pids if start_mark(pid) is not None]:
        if time.monotonic() > deadline:
            for pid in left:
                os.kill(pid, signal.SIGKILL)
            pytest.fail(f"{left} outlived their parent by a second")
        time.sleep(0.01)


def _below(parent: int) -> set[int]:
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == parent:
            found.add(int(path.parent.name))
    return found
