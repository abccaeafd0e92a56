"""The server that a first `oprel run` starts: detached from its terminal, one for each port, until `oprel stop`.

| file in the state directory | holds (0600) |
|---|---|
| `server-<port>.json` | pid, url and version of the server, written by itself, removed when it ends |
| `server-<port>.log` | what it says |
| `server-<port>.lock` | nothing: who starts it holds it, so that two programs start one server |
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from oprel.config import Settings
from oprel.errors import BackendError, OprelError
from oprel.server.access import is_loopback
from oprel.server.listen import program_at, who_answers

__all__ = ["ensure_server", "wait_gone"]

_START_LIMIT_S = 60.0
_POLL_S = 0.05
_LOG_LINES = 12


def ensure_server(
    settings: Settings, *, environ: Mapping[str, str] | None = None, on_start: Callable[[], None] = lambda: None
) -> str:
    """The URL of an Oprel server at the address of `settings`, started if nothing is there; `on_start` is called
    before it is. OprelError names another program on the port; BackendError quotes a server that didn't come up."""
    if who_answers(settings.base_url) == "oprel":
        return settings.base_url
    if not is_loopback(_host(settings)):
        raise BackendError(f"no server answers at {settings.base_url}, and one can be started on this machine only")
    settings.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _locked(settings.state_dir / f"server-{settings.port}.lock"):
        if not _is_ours(settings):
            on_start()
            _start(settings, environ)
    return settings.base_url


def wait_gone(settings: Settings, *, limit_s: float) -> bool:
    """Whether the server at this address is gone before the limit."""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        if who_answers(settings.base_url, timeout_s=1.0) is None and not _state_file(settings).exists():
            return True
        time.sleep(_POLL_S)
    return False


def _is_ours(settings: Settings) -> bool:
    """False: nothing listens. OprelError: somebody else does."""
    answers = who_answers(settings.base_url)
    if answers in (None, "oprel"):
        return answers == "oprel"
    program = program_at(settings.port)
    who = f"{answers} ({program})" if program else answers
    raise OprelError(
        f"{who} answers at {settings.base_url}, and not Oprel: end it, or choose another port for Oprel with --port "
        "or OPREL_HOST"
    )


def _start(settings: Settings, environ: Mapping[str, str] | None) -> None:
    log = settings.state_dir / f"server-{settings.port}.log"
    # -P: a folder `oprel` in the current directory must not be taken for this package.
    command = [sys.executable, "-P", "-m", "oprel", "serve", "--host", _host(settings), "--port", str(settings.port)]
    command += ["--log-file", str(log)]
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=descriptor,
            stderr=descriptor,
            env=None if environ is None else dict(environ),
            start_new_session=True,
        )
    finally:
        os.close(descriptor)
    # It outlives this program; until then somebody has to collect it when it ends.
    threading.Thread(target=process.wait, daemon=True, name=f"server-{settings.port}").start()
    _wait_up(settings, process, log)


def _wait_up(settings: Settings, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _START_LIMIT_S
    while time.monotonic() < deadline:
        if process.returncode is not None:
            raise BackendError(f"the server ended at its start: {_last_line(log)}", log_tail=_tail(log))
        if who_answers(settings.base_url, timeout_s=1.0) == "oprel":
            return
        time.sleep(_POLL_S)
    process.kill()
    raise BackendError(f"the server was not up after {_START_LIMIT_S:.0f} s: see {log}", log_tail=_tail(log))


def _tail(log: Path) -> tuple[str, ...]:
    return tuple(log.read_text(errors="replace").splitlines()[-_LOG_LINES:])


def _last_line(log: Path) -> str:
    lines = [line for line in _tail(log) if line.strip()]
    return lines[-1].removeprefix("oprel: ") if lines else f"it said nothing ({log})"


def _host(settings: Settings) -> str:
    return settings.host or "127.0.0.1"


def _state_file(settings: Settings) -> Path:
    return settings.state_dir / f"server-{settings.port}.json"


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # who holds it gives up after _START_LIMIT_S
        yield
    finally:
        os.close(descriptor)
