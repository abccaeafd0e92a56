"""The engine of the `xllamacpp` wheel in a child process of the test, with nothing of Oprel around it."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["real_engine"]

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


@contextmanager
def real_engine(model: Path, *, embedding: bool = False, slots: int = 2, context_tokens: int = 1024) -> Iterator[str]:
    """The address of an engine with this model; it ends with the block, or with this process (its stdin closes)."""
    with tempfile.TemporaryDirectory(prefix="oprel-test-") as folder:
        path = Path(folder) / "engine.sock"
        settings = {
            "model.path": str(model),
            "hostnames": [str(path)],
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
            yield f"unix:{path}"
        finally:
            child.kill()
            child.communicate(timeout=10)
