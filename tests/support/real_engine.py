"""The engine of the `xllamacpp` wheel in a child process of the test, with nothing of Oprel around it."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["RealEngine", "real_engine", "real_engine_on_tcp"]

_HOST = """
import json, signal, sys
import xllamacpp
params = xllamacpp.CommonParams()
for name, value in json.loads(sys.argv[1]).items():
    target, *path = name.split(".")[::-1]
    owner = params
    for part in reversed(path):
        owner = getattr(owner, part)
    setattr(owner, target, value)
server = xllamacpp.Server(params)
print("ready", flush=True)
sys.stdin.read()
"""


@dataclass(frozen=True)
class RealEngine:
    """`address` as QuickClient takes it."""

    address: str
    process: subprocess.Popen[bytes]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)


@contextmanager
def real_engine(model: Path, *, embedding: bool = False, slots: int = 2, context_tokens: int = 1024) -> Iterator[str]:
    """The address of an engine with this model; it ends with the block, or with this process (its stdin closes)."""
    with tempfile.TemporaryDirectory(prefix="oprel-test-") as folder:
        path = Path(folder) / "engine.sock"
        where = {"hostnames": [str(path)]}
        with _running(model, where, embedding=embedding, slots=slots, context_tokens=context_tokens):
            yield f"unix:{path}"


@contextmanager
def real_engine_on_tcp(
    model: Path, *, embedding: bool = False, slots: int = 2, context_tokens: int = 1024, key: str = ""
) -> Iterator[RealEngine]:
    """The same on a port of the loopback interface, with a key if one is given."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    where: dict[str, Any] = {"hostnames": ["127.0.0.1"], "port": port, "api_keys": [key] if key else []}
    with _running(model, where, embedding=embedding, slots=slots, context_tokens=context_tokens) as process:
        yield RealEngine(f"http://127.0.0.1:{port}", process)


@contextmanager
def _running(
    model: Path, where: dict[str, Any], *, embedding: bool, slots: int, context_tokens: int
) -> Iterator[subprocess.Popen[bytes]]:
    settings = {
        "model.path": str(model),
        **where,
        "n_parallel": slots,
        "n_ctx": slots * context_tokens,
        "n_batch": 512,
        "n_ubatch": 512,
        "cpuparams.n_threads": 1,
        "cpuparams_batch.n_threads": 1,
        "cache_ram_mib": 0,
        "warmup": False,
        "fit_params": False,
        "ui": False,
        "embedding": embedding,
        "verbosity": -1,
    }
    child = subprocess.Popen(
        [sys.executable, "-c", _HOST, json.dumps(settings)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n", "the engine didn't start"
        yield child
    finally:
        child.kill()
        child.communicate(timeout=10)
