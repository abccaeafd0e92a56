"""`llama-quantize`, where it is installed: a GGUF file in floats becomes a smaller one."""

from __future__ import annotations

import os
import re
import selectors
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from oprel.drivers.children import built_environment, shim_command
from oprel.drivers.llama_cpp.probe import DRIVER
from oprel.errors import EngineFailedError

__all__ = ["LLAMA_QUANTIZE", "LlamaQuantize"]

LLAMA_QUANTIZE = "llama-quantize"

# It tells each tensor as `[  12/ 272] blk.1.attn_k.weight - …`; the largest take minutes on a small machine.
_TENSOR = re.compile(rb"\[\s*(\d{1,6})\s*/\s*(\d{1,6})\s*\]")
_SILENCE_LIMIT_S = 900.0
_STEP_S = 0.1
_TAIL_BYTES = 4096
# What it calls the types that have another name in requests.
_NAMES = {"Q4_K": "Q4_K_M"}


class LlamaQuantize:
    """Blocks until the child has ended; what `progress` raises ends the child."""

    def __init__(self, executable: Path) -> None:
        self.executable = executable

    @classmethod
    def find(cls, llama_server: str | Path | None = None, *, search_path: str | None = None) -> LlamaQuantize | None:
        """Beside the configured llama-server, else on PATH."""
        if llama_server is not None:
            beside = Path(llama_server).expanduser().absolute().with_name(LLAMA_QUANTIZE)
            if os.access(beside, os.X_OK) and beside.is_file():
                return cls(beside)
        found = shutil.which(LLAMA_QUANTIZE, path=search_path)
        return None if found is None else cls(Path(found).absolute())

    def __call__(self, source: Path, target: Path, kind: str, progress: Callable[[float], None]) -> None:
        """Raises EngineFailedError with what it said last."""
        command = [str(self.executable), str(source), str(target), _NAMES.get(kind, kind)]
        process = subprocess.Popen(
            shim_command(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=built_environment(),
            cwd="/",
            start_new_session=True,
        )
        with process:
            try:
                tail = _followed(process, progress)
            finally:
                if process.poll() is None:
                    with suppress(ProcessLookupError, PermissionError):
                        os.killpg(process.pid, signal.SIGKILL)
        if process.returncode:
            raise _failed(f"ended with code {process.returncode}", tail)


def _followed(process: subprocess.Popen[bytes], progress: Callable[[float], None]) -> bytes:
    """Its last words, when it has ended."""
    if process.stdout is None:
        raise RuntimeError("the child was started without a pipe")
    tail, share, heard_at = b"", 0.0, time.monotonic()
    with selectors.DefaultSelector() as ready:
        ready.register(process.stdout, selectors.EVENT_READ)
        while True:
            if ready.select(_STEP_S):
                data = os.read(process.stdout.fileno(), 65_536)
                if not data:
                    break
                heard_at = time.monotonic()
                tail = (tail + data)[-_TAIL_BYTES:]
                for found in _TENSOR.finditer(tail):
                    share = max(share, int(found[1]) / max(int(found[2]), 1))
            elif time.monotonic() - heard_at > _SILENCE_LIMIT_S:
                raise _failed(f"said nothing for {_SILENCE_LIMIT_S:g} s", tail)
            progress(min(share, 1.0))
    process.wait(timeout=_SILENCE_LIMIT_S)
    return tail


def _failed(what: str, tail: bytes) -> EngineFailedError:
    lines = tuple(line.strip() for line in tail.decode("utf-8", "replace").splitlines() if line.strip())
    last = f": {lines[-1][:300]}" if lines else ""
    return EngineFailedError(f"{LLAMA_QUANTIZE} {what}{last}", driver=DRIVER, log_tail=lines[-20:])
