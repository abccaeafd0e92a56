"""What a pull of one file costs beside `curl -o`, which neither hashes what comes nor waits for the disk; so it is told
beside a curl that waits for the disk, too.

The server is a process of its own and sends by sendfile. `free` sends as fast as it can, faster than SHA-256 runs on
most machines, so the speed of that is told as well; `paced` sends as fast as a network of 4 Gbit/s.

    python tests/bench/pull.py serve FILE RATE     the server: prints its port; RATE in MB/s, 0 as fast as it can
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from oprel.net.outside import OutsideClient
from oprel.sources.transfer import fetch_blob
from oprel.store import Digest, Store

__all__ = ["pull_against_curl"]

_PACED_MB_PER_S = 500
_STEP_BYTES = 1 << 20


class _Pace:
    """What all connections may send together."""

    def __init__(self, mb_per_s: int) -> None:
        self._bytes_per_s = mb_per_s * 1e6
        self._guard = threading.Lock()
        self._free_at = 0.0

    def wait(self, count: int) -> None:
        if not self._bytes_per_s:
            return
        with self._guard:
            now = time.monotonic()
            self._free_at = max(self._free_at, now) + count / self._bytes_per_s
            pause = self._free_at - now
        time.sleep(pause)


def _serve(path: Path, pace: _Pace) -> None:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            with path.open("rb") as handle:
                size = os.fstat(handle.fileno()).st_size
                match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
                first, last = (int(match[1]), min(int(match[2]), size - 1)) if match else (0, size - 1)
                self.send_response(206 if match else 200)
                self.send_header("Content-Length", str(last - first + 1))
                self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
                self.end_headers()
                while first <= last:
                    sent = os.sendfile(
                        self.connection.fileno(), handle.fileno(), first, min(last + 1 - first, _STEP_BYTES)
                    )
                    first += sent
                    pace.wait(sent)

        def log_message(self, format: str, *arguments: Any) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(server.server_address[1], flush=True)
    server.serve_forever()


def pull_against_curl(rounds: int, *, size_bytes: int = 512 << 20) -> dict[str, object]:
    """Medians in MB/s, and the medians of the ratios within a round."""
    with tempfile.TemporaryDirectory(prefix="oprel-bench-pull-") as name:
        folder = Path(name)
        digest = _make(folder / "file", size_bytes)
        result: dict[str, object] = {
            "sha256_mb_per_s": round(size_bytes / 1e6 / _timed(lambda: _hash(folder / "file")))
        }
        for kind, mb_per_s in (("free", 0), ("paced", _PACED_MB_PER_S)):
            with _serving(folder / "file", mb_per_s) as origin:
                result[kind] = _compared(origin, folder, digest, size_bytes, rounds)
    return result


def _compared(origin: str, folder: Path, digest: Digest, size_bytes: int, rounds: int) -> dict[str, float]:
    took: dict[str, list[float]] = {"curl": [], "curl_synced": [], "oprel": []}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory(dir=folder) as name:
            works = (
                partial(_curl, origin, Path(name) / "copy"),
                partial(_curl, origin, Path(name) / "copy-synced", is_synced=True),
                partial(_pull, origin, Path(name), digest, size_bytes),
            )
            for times, work in zip(took.values(), works, strict=True):
                os.sync()
                times.append(_timed(work))
    return {
        **{f"{what}_mb_per_s": round(size_bytes / 1e6 / statistics.median(times)) for what, times in took.items()},
        "ratio": _ratio(took["curl"], took["oprel"]),
        "ratio_synced": _ratio(took["curl_synced"], took["oprel"]),
    }


def _ratio(theirs: list[float], ours: list[float]) -> float:
    return round(statistics.median(curl / own for curl, own in zip(theirs, ours, strict=True)), 2)


def _curl(origin: str, copy: Path, *, is_synced: bool = False) -> None:
    subprocess.run(["curl", "-sf", "-o", str(copy), f"{origin}/file"], check=True)
    if is_synced:
        with copy.open("rb") as handle:
            os.fsync(handle.fileno())


def _pull(origin: str, folder: Path, digest: Digest, size_bytes: int) -> None:
    asyncio.run(_fetch(origin, folder, digest, size_bytes))


async def _fetch(origin: str, folder: Path, digest: Digest, size_bytes: int) -> None:
    store = Store(folder / "models", state_dir=folder / "state")
    async with OutsideClient(trusted=(origin,)) as client:
        with await fetch_blob(
            client,
            f"{origin}/file",
            store,
            digest=digest,
            size_bytes=size_bytes,
            max_bytes=size_bytes,
            completed=lambda done, total: None,
        ) as blob:
            blob.publish()


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _make(path: Path, size_bytes: int) -> Digest:
    with path.open("wb") as handle:
        for _ in range(size_bytes >> 20):
            handle.write(os.urandom(1 << 20))
    return Digest(_hash(path))


def _hash(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


@contextlib.contextmanager
def _serving(path: Path, mb_per_s: int) -> Iterator[str]:
    command = [sys.executable, __file__, "serve", str(path), str(mb_per_s)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            yield f"http://127.0.0.1:{int(server.stdout.readline())}"
        finally:
            server.kill()


if __name__ == "__main__" and sys.argv[1:2] == ["serve"]:
    _serve(Path(sys.argv[2]), _Pace(int(sys.argv[3])))
