"""One child process, in both ways of dying with its parent."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from oprel.drivers.children import Child, Place, RunDirectory, built_environment
from oprel.drivers.children.processes import start_mark

Mode = Any
MODES = ["signal", "watch"] if sys.platform == "linux" else ["watch"]


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> Mode:
    return request.param


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return RunDirectory(tmp_path / "run").place()


def run(work: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(20):
            await work

    asyncio.run(bounded())


async def start(place: Place, script: str, mode: Mode = None) -> Child:
    command = (sys.executable, "-I", "-S", "-c", script)
    return await Child.spawn(command, name="engine", place=place, environment=built_environment(), mode=mode)


async def said(child: Child, text: str) -> None:
    """Returns when the child has written `text`."""
    while not any(text in line for line in child.logs.tail()):  # noqa: ASYNC110 - it is another process
        await asyncio.sleep(0.005)


async def gone(pid: int) -> None:
    while start_mark(pid) is not None:  # noqa: ASYNC110
        await asyncio.sleep(0.005)


def left(place: Place) -> list[str]:
    return [path.name for path in place.folder.iterdir()]


def test_output_of_both_streams_is_read(place: Place, mode: Mode) -> None:
    async def work() -> None:
        child = await start(place, "import sys; print('out', flush=True); print('err', file=sys.stderr)", mode)
        assert await child.wait() == 0
        assert child.logs.tail() == ("out", "err")
        assert child.describe_death() == f"engine (process {child.pid}) ended with code 0"
        await child.stop(grace_s=1)

    run(work())
    assert left(place) == []


@pytest.mark.parametrize(
    ("end", "code", "told"),
    [
        ("sys.exit(7)", 7, "ended with code 7"),
        ("os.kill(os.getpid(), signal.SIGABRT)", -6, "signal SIGABRT"),
        ("os.kill(os.getpid(), signal.SIGKILL)", -9, "signal SIGKILL"),
    ],
)
def test_how_it_ended_is_told(place: Place, mode: Mode, end: str, code: int, told: str) -> None:
    async def work() -> None:
        child = await start(place, f"import os, signal, sys; {end}", mode)
        assert await child.wait() == code
        assert told in (child.describe_death() or "")
        await child.stop(grace_s=1)

    run(work())


def test_an_end_is_noticed_at_once(place: Place, mode: Mode) -> None:
    async def work() -> None:
        child = await start(place, "import time; print('up', flush=True); time.sleep(60)", mode)
        await said(child, "up")
        began = asyncio.get_running_loop().time()
        os.killpg(child.pid, signal.SIGKILL)
        await child.wait()
        assert asyncio.get_running_loop().time() - began < 0.5
        await child.stop(grace_s=1)

    run(work())


def test_stop_is_polite_first(place: Place, mode: Mode) -> None:
    script = (
        "import os, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (os.write(1, b'bye\\n'), sys.exit(0)))\n"
        "os.write(1, b'up\\n'); time.sleep(60)"
    )

    async def work() -> None:
        child = await start(place, script, mode)
        await said(child, "up")
        await child.stop(grace_s=10)
        assert child.returncode == 0
        assert "bye" in child.logs.tail()
        await child.stop(grace_s=10)

    run(work())
    assert left(place) == []


STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"


def test_what_ignores_term_is_killed_after_the_grace(place: Place, mode: Mode) -> None:
    async def work() -> None:
        child = await start(place, STUBBORN, mode)
        await said(child, "up")
        await child.stop(grace_s=0.1)
        assert child.returncode == -9

    run(work())
    assert left(place) == []


def test_what_is_stopped_by_a_signal_is_killed_too(place: Place, mode: Mode) -> None:
    async def work() -> None:
        child = await start(place, STUBBORN, mode)
        await said(child, "up")
        os.killpg(child.pid, signal.SIGSTOP)
        await child.stop(grace_s=0.1)
        assert child.returncode == -9

    run(work())


def test_a_cancelled_stop_still_leaves_nothing(place: Place, mode: Mode) -> None:
    async def work() -> None:
        child = await start(place, STUBBORN, mode)
        await said(child, "up")
        stopping = asyncio.create_task(child.stop(grace_s=60))
        await asyncio.sleep(0)
        stopping.cancel()
        with pytest.raises(asyncio.CancelledError):
            await stopping
        assert child.returncode == -9

    run(work())
    assert left(place) == []


def test_grandchildren_go_with_it(place: Place, mode: Mode) -> None:
    script = "import os, time\npid = os.fork()\nif pid: print('grandchild', pid, flush=True)\nelse: time.sleep(60)\n"

    async def work() -> None:
        child = await start(place, script, mode)
        await said(child, "grandchild")
        pid = int(child.logs.tail()[0].split()[1])
        await child.wait()
        await gone(pid)
        await child.stop(grace_s=1)

    run(work())


def test_a_flood_never_blocks_it(place: Place, mode: Mode) -> None:
    """Far more than a pipe holds, with nobody reading the ring."""
    script = "import os\nfor _ in range(400): os.write(2, b'x' * 99 + b'\\n' + b'y' * 9899)\nprint('done')"

    async def work() -> None:
        child = await start(place, script, mode)
        assert await child.wait() == 0
        assert child.logs.tail()[-1].endswith("done")
        assert sum(map(len, child.logs.tail())) <= 64 * 1024
        await child.stop(grace_s=1)

    run(work())


def test_what_cannot_be_run_says_so(place: Place, mode: Mode) -> None:
    async def work() -> None:
        child = await Child.spawn(("/no/such/engine",), name="e", place=place, environment={}, mode=mode)
        assert await child.wait() == 127
        assert child.logs.tail() == ("cannot run /no/such/engine: No such file or directory",)
        await child.stop(grace_s=1)

    run(work())
    assert left(place) == []


def test_its_environment_is_the_built_one(place: Place, mode: Mode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "canary")
    monkeypatch.setenv("LLAMA_ARG_HOST", "elsewhere")

    async def work() -> None:
        child = await start(place, "import os; print(sorted(os.environ))", mode)
        await child.wait()
        names = child.logs.tail()[0]
        assert "PATH" in names
        assert not {"HF_TOKEN", "LLAMA_ARG_HOST"} & set(eval(names))  # noqa: S307
        await child.stop(grace_s=1)

    run(work())


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_it_can_gain_no_privileges_and_leaves_no_core(place: Place, mode: Mode) -> None:
    script = "import resource; print(open('/proc/self/status').read(), resource.getrlimit(resource.RLIMIT_CORE))"

    async def work() -> None:
        child = await start(place, script, mode)
        await child.wait()
        assert "NoNewPrivs:\t1" in child.logs.tail()
        assert child.logs.tail()[-1].endswith("(0, 0)")
        await child.stop(grace_s=1)

    run(work())


def test_its_record_names_it_while_it_runs(place: Place, mode: Mode) -> None:
    async def work() -> None:
        child = await start(place, "import time; time.sleep(60)", mode)
        assert f'"pid":{child.pid}' in place.record.read_text()
        await child.stop(grace_s=0)

    run(work())
    assert left(place) == []


def test_a_cancelled_spawn_leaves_nothing(place: Place, mode: Mode) -> None:
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children")
    before = children.read_text() if children.exists() else ""

    async def work() -> None:
        spawning = asyncio.create_task(start(place, "import time; time.sleep(60)", mode))
        for _ in range(3):
            await asyncio.sleep(0)
        spawning.cancel()
        with pytest.raises(asyncio.CancelledError):
            await spawning

    run(work())
    assert left(place) == []
    if children.exists():
        assert children.read_text() == before


def test_uvloop_does_the_same(place: Place, mode: Mode) -> None:
    uvloop = pytest.importorskip("uvloop")

    async def work() -> None:
        child = await start(place, "import time; print('up', flush=True); time.sleep(60)", mode)
        await said(child, "up")
        await child.stop(grace_s=5)
        assert child.returncode == -15

    uvloop.run(work())
    assert left(place) == []
