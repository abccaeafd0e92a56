"""The server is killed while a file is uploaded: nothing of it is seen, and the upload can be done again."""

from __future__ import annotations

import hashlib
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
from support.servers import RealServer, real_server, wait_until
from support.store_checks import assert_valid_store
from support.tiny_gguf import gguf_bytes

DATA = gguf_bytes() + bytes(12_000_000)
DIGEST = f"sha256:{hashlib.sha256(DATA).hexdigest()}"


def test_a_kill_in_the_middle_of_an_upload(tmp_path: Path) -> None:
    models = tmp_path / "models"
    with real_server(models_dir=models, expect_clean=False) as server:

        def halves() -> Iterator[bytes]:
            yield DATA[:8_000_000]
            wait_until(lambda: _written(server, models) > 1_000_000, what="a part of it to be on the disk")
            server.process.send_signal(signal.SIGKILL)
            server.process.wait(20)
            yield DATA[8_000_000:]

        try:
            httpx.post(f"{server.url}/api/blobs/{DIGEST}", content=halves(), timeout=60)
        except httpx.TransportError:
            pass
        else:
            raise AssertionError("a dead server answered")
    assert assert_valid_store(models) == 0
    assert not list((models / "blobs").glob("sha256-*"))
    with real_server(models_dir=models) as server:
        assert httpx.post(f"{server.url}/api/blobs/{DIGEST}", content=DATA, timeout=60).status_code == 201
        asked = {"model": "m", "files": {"m.gguf": DIGEST}, "stream": False}
        assert httpx.post(f"{server.url}/api/create", json=asked, timeout=60).json() == {"status": "success"}
    assert assert_valid_store(models) == 1


def _written(server: RealServer, models: Path) -> int:
    partials = [*(server.state_dir / "partial").glob("*"), *(models / "blobs").glob("oprel-*")]
    return sum(path.stat().st_size for path in partials)
