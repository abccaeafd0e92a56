"""What a pull of one file costs beside `curl -o`: hashed, resumable and durable against none of these."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import re
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from oprel.net.outside import OutsideClient
from oprel.sources.transfer import fetch_blob
from oprel.store import Digest, Store

__all__ = ["pull_against_curl"]


class _Handler(BaseHTTPRequestHandler):
    """One file, by sendfile."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        with self.server.path.open("rb") as handle:  # type: ignore[attr-defined]  # set below
            size = os.fstat(handle.fileno()).st_size
            match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            first, last = (int(match[1]), min(int(match[2]), size - 1)) if match else (0, size - 1)
            self.send_response(206 if match else 200)
            self.send_header("Content-Length", str(last - first + 1))
            self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
            self.end_headers()
            while first <= last:
                first += os.sendfile(self.connection.fileno(), handle.fileno(), first, min(last + 1 - first, 4 << 20))

    def log_message(self, format: str, *arguments: Any) -> None:
        """Quiet."""


def pull_against_curl(rounds: int, *, size_bytes: int = 512 << 20) -> dict[str, float]:
    """Medians in MB/s, and the median of their ratios within a round."""
    with tempfile.TemporaryDirectory(prefix="oprel-bench-pull-") as name:
        folder = Path(name)
        digest = _make(folder / "file", size_bytes)
        with _serving(folder / "file") as origin:
            curls, ours = [], []
            for number in range(rounds):
                began = time.perf_counter()
                subprocess.run(["curl", "-sf", "-o", str(folder / "copy"), f"{origin}/file"], check=True)
                curls.append(size_bytes / 1e6 / (time.perf_counter() - began))
                began = time.perf_counter()
                asyncio.run(_fetch(origin, folder / str(number), digest, size_bytes))
                ours.append(size_bytes / 1e6 / (time.perf_counter() - began))
    return {
        "curl_mb_per_s": round(statistics.median(curls)),
        "oprel_mb_per_s": round(statistics.median(ours)),
        "ratio": round(statistics.median([own / curl for own, curl in zip(ours, curls, strict=True)]), 2),
    }


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


def _make(path: Path, size_bytes: int) -> Digest:
    digest = hashlib.sha256()
    with path.open("wb") as handle:
        for _ in range(size_bytes >> 20):
            block = os.urandom(1 << 20)
            handle.write(block)
            digest.update(block)
    return Digest(digest.hexdigest())


@contextlib.contextmanager
def _serving(path: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.path = path  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
