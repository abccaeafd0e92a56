"""Servers for tests: a real `oprel serve` in a process of its own, and the app with scripted engines in a thread.

Both listen on a free port, have their own state directory, and are checked when they end: the process with code 0 and
no child left, the scripted one with no engine left.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn.server

from oprel.config import Settings
from oprel.dialects.services import Services
from oprel.scheduler import Scheduler
from oprel.server.running import Serving, loop_factory
from oprel.store import GgufMetadata
from oprel.testing import Script, ScriptedCatalog, ScriptedDriver, ScriptedRegistry, scripted_model

__all__ = [
    "TEST_DRIVER",
    "RealServer",
    "ScriptedPuller",
    "ScriptedServer",
    "clean_environment",
    "descendants",
    "is_alive",
    "real_server",
    "run_oprel",
    "scripted_catalog",
    "scripted_server",
    "wait_until",
]

START_LIMIT_S = 60.0
# The driver that the tests of real clients run on: `vllm` needs OPREL_TEST_VLLM_PYTHON.
TEST_DRIVER = os.environ.get("OPREL_TEST_DRIVER", "llama_cpp")
STOP_LIMIT_S = 40.0


class _HastyAsyncio:
    """asyncio as uvicorn sees it here: at its end it sleeps a tenth of a second for what may still be on its way, and
    two thousand tests end a server each."""

    def __getattr__(self, name: str) -> Any:
        return getattr(asyncio, name)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds / 20)


uvicorn.server.asyncio = _HastyAsyncio()  # type: ignore[assignment]


def wait_until(condition: Callable[[], object], *, limit_s: float = 10.0, what: str = "") -> None:
    """Returns as soon as `condition()` is true; AssertionError past the limit."""
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {limit_s} s in vain for {what or condition}"
        time.sleep(0.01)


# -- a real one


def clean_environment(home: Path, **more: str) -> dict[str, str]:
    """This process's environment without any setting of Oprel's or Ollama's, with another home."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("OPREL_", "OLLAMA_", "XDG_CONFIG"))}
    return {**kept, "HOME": str(home), "PYTHONUNBUFFERED": "1", **more}


@dataclass
class RealServer:
    """`log` holds what it wrote to stdout and stderr."""

    url: str
    port: int
    process: subprocess.Popen[bytes]
    state_dir: Path
    log: Path
    environ: Mapping[str, str] = field(repr=False, default_factory=dict)

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    @property
    def rss_bytes(self) -> int:
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS"):
                return int(line.split()[1]) * 1024
        raise AssertionError("no VmRSS")

    def children(self) -> list[int]:
        return descendants(self.process.pid)

    def stop(self, *, number: int = signal.SIGTERM, limit_s: float = STOP_LIMIT_S) -> int:
        """Signals it and waits; its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(limit_s)


@contextmanager
def real_server(
    *flags: str,
    models_dir: Path | None = None,
    environ: Mapping[str, str] | None = None,
    wait_ready: bool = True,
    expect_clean: bool = True,
    prefix: Sequence[str] = (),
    start_limit_s: float = START_LIMIT_S,
) -> Iterator[RealServer]:
    """`PREFIX oprel serve --port 0 FLAGS`. Ends it by SIGTERM; then, with `expect_clean`, asserts exit code 0 and that
    none of its children is left."""
    with tempfile.TemporaryDirectory(prefix="oprel-test-") as folder:
        home = Path(folder)
        settings = {"OPREL_STATE_DIR": str(home / "state"), "OPREL_MODELS": str(models_dir or home / "models")}
        environment = {**clean_environment(home, **settings), **(environ or {})}
        log = home / "server.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*prefix, sys.executable, "-m", "oprel", "serve", "--port", "0", *flags],
                env=environment,
                cwd=home,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        try:
            told = _wait_told(process, home / "state", log)
            port = int(told["url"].rpartition(":")[2])
            server = RealServer(told["url"], port, process, home / "state", log, environment)
            if wait_ready:
                _wait_ready(server, start_limit_s)
            yield server
            if expect_clean:
                _assert_clean_end(server)
        finally:
            _make_sure_it_ends(process)


def _wait_told(process: subprocess.Popen[bytes], state_dir: Path, log: Path) -> dict[str, Any]:
    """What the server wrote about itself once it had its port."""
    deadline = time.monotonic() + START_LIMIT_S
    while time.monotonic() < deadline:
        for path in state_dir.glob("server-*.json"):
            with suppress(ValueError):
                told: dict[str, Any] = json.loads(path.read_text())
                return told
        assert process.poll() is None, f"the server ended at its start:\n{log.read_text()}"
        time.sleep(0.02)
    raise AssertionError(f"the server was not up in {START_LIMIT_S} s:\n{log.read_text()}")


def _wait_ready(server: RealServer, limit_s: float) -> None:
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        with suppress(OSError), urllib.request.urlopen(f"{server.url}/ready", timeout=5):
            return
        assert server.process.poll() is None, f"the server ended before it was ready:\n{server.output}"
        time.sleep(0.02)
    raise AssertionError(f"the server was not ready in {limit_s} s:\n{server.output}")


def _assert_clean_end(server: RealServer) -> None:
    children = server.children()
    code = server.stop()
    assert code == 0, f"the server ended with {code}:\n{server.output}"
    wait_until(lambda: not any(is_alive(pid) for pid in children), what=f"the children {children} to be gone")
    left = [path.name for path in (server.state_dir / "run").glob("*")]
    assert left == [], f"left in the run directory: {left}"


def _make_sure_it_ends(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def descendants(pid: int) -> list[int]:
    """Children, their children, and so on."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            for child in task.read_text().split():
                found += [int(child), *descendants(int(child))]
    return found


def is_alive(pid: int) -> bool:
    """A zombie is not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def run_oprel(
    *arguments: str,
    environ: Mapping[str, str],
    stdin: str | None = None,
    limit_s: float = 60.0,
    cwd: Path | None = None,
) -> subprocess.CompletedProcess[str]:
    """`oprel ARGUMENTS` to its end. `stdin` None: no input."""
    return subprocess.run(
        [sys.executable, "-m", "oprel", *arguments],
        env=dict(environ),
        input="" if stdin is None else stdin,
        capture_output=True,
        text=True,
        timeout=limit_s,
        cwd=cwd,
        check=False,
    )


# -- a scripted one


class ScriptedPuller:
    """Plays back what a pull would tell; `error` is raised after it. `pulled` are the names that were asked for."""

    def __init__(self, progress: Sequence[Any] = (), *, error: Exception | None = None) -> None:
        self.progress = progress
        self.error = error
        self.pulled: list[str] = []
        self.wishes: list[Any] = []

    async def pull(self, name: str, *, insecure: bool = False, wish: Any = None) -> AsyncGenerator[Any, None]:
        self.pulled.append(name)
        self.wishes.append(wish)
        for told in self.progress:
            yield told
        if self.error is not None:
            raise self.error

    push = pull


class ScriptedServer:
    """The app on a real socket. `driver.engines` and their `calls` tell what engines were asked."""

    def __init__(self, services: Services, driver: ScriptedDriver, listener: socket.socket) -> None:
        self.services = services
        self.driver = driver
        self.said: list[str] = []
        self.port = services.settings.port
        self.url = f"http://127.0.0.1:{self.port}"
        self._listener = listener
        self._open = threading.Event()
        self._serving: Serving | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="scripted-server", daemon=True)

    @property
    def catalog(self) -> ScriptedCatalog:
        return self.services.catalog  # type: ignore[return-value]

    def start(self) -> None:
        self._thread.start()
        assert self._open.wait(START_LIMIT_S), "the scripted server did not open"
        if self._failure is not None:
            raise self._failure

    def ask_stop(self) -> None:
        """What a signal does; a second one hurries."""
        assert self._serving is not None and self._loop is not None
        with suppress(RuntimeError):  # its loop is closed: it has ended
            self._loop.call_soon_threadsafe(self._serving.stop)

    @property
    def is_running(self) -> bool:
        return self._thread.is_alive()

    def wait_end(self, limit_s: float = STOP_LIMIT_S) -> None:
        self._thread.join(limit_s)
        assert not self._thread.is_alive(), "the scripted server did not end"
        self._listener.close()
        if self._failure is not None:
            raise self._failure
        assert self.driver.alive == [], "an engine was left running"

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=loop_factory()) as runner:
                runner.run(self._serve())
        except BaseException as failure:
            self._failure = failure
        finally:
            self._open.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._serving = Serving(self.services, self._listener, say=self.said.append)
        async with asyncio.TaskGroup() as tasks:
            serving = tasks.create_task(self._serving.run())
            opened = tasks.create_task(self._serving.is_open.wait())
            await asyncio.wait((serving, opened), return_when=asyncio.FIRST_COMPLETED)
            self._open.set()
            await serving
            opened.cancel()


def scripted_catalog(*models: Any) -> ScriptedCatalog:
    """Models that can be shown as well: with GGUF metadata that says nothing."""
    nothing = GgufMetadata(version=3, values={}, tensors=(), size_bytes=0, data_offset=0)
    return ScriptedCatalog(*models, metadata={model.name: nothing for model in models})


@contextmanager
def scripted_server(
    script: Script | None = None,
    *,
    scripts: Mapping[str, Script] | None = None,
    models: Sequence[Any] | None = None,
    settings: Settings | None = None,
    puller: Any = None,
    catalog: Any = None,
) -> Iterator[ScriptedServer]:
    """By default with a chat model `scripted:latest` and an embedding model `embedder:latest`."""
    if models is None:
        embedder = scripted_model("embedder:latest", capabilities=frozenset({"embedding"}))
        models = (scripted_model(), embedder)
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    settings = (settings or Settings()).model_copy(update={"port": listener.getsockname()[1]})
    catalog = catalog or scripted_catalog(*models)
    driver = ScriptedDriver(script, scripts=scripts)
    scheduler = Scheduler(
        catalog=catalog,
        registry=ScriptedRegistry(driver),  # type: ignore[arg-type]
        settings=settings.model_copy(update={"drain_timeout": 0.0}),
    )
    services = Services(
        settings=settings,
        catalog=catalog,
        scheduler=scheduler,
        puller=puller or ScriptedPuller(),
        version="0.0.0+scripted",
    )
    server = ScriptedServer(services, driver, listener)
    server.start()
    try:
        yield server
    finally:
        if server.is_running:
            server.ask_stop()
            server.ask_stop()  # nobody waits for what still runs
        server.wait_end()
