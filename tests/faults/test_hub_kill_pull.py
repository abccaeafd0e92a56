"""The process is killed in the middle of a pull from the hub: the next one goes on, and the model is whole."""

from __future__ import annotations

import asyncio
import hashlib
import os
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

from support.hub import HubServer, running_hub
from support.store_checks import assert_valid_store
from support.tiny_gguf import gguf_bytes

from oprel.schema import Hardware
from oprel.sources import Puller
from oprel.store import Catalog, Store

REPO = "tiny-org/Tiny-GGUF"
SIZE = 48 << 20
AGAIN_AT_MOST = 16 << 20
_SCRIPT = textwrap.dedent(
    """
    import asyncio, sys
    from pathlib import Path
    from oprel.sources import Puller
    from oprel.store import Catalog, Store

    async def pull():
        folder = Path(sys.argv[1])
        catalog = Catalog(Store(folder / "models", state_dir=folder / "state"))
        async for line in Puller(catalog).pull("hf.co/tiny-org/Tiny-GGUF"):
            pass

    asyncio.run(pull())
    """
)


def test_a_pull_that_is_killed_goes_on_where_it_was(tmp_path: Path) -> None:
    data = gguf_bytes() + os.urandom(SIZE)
    with running_hub() as hub:
        hub.add(REPO, {"tiny-Q4_K_M.gguf": data})
        _kill_half_way(hub, tmp_path)
        sent_before = hub.cdn.sent_bytes
        store = Store(tmp_path / "models", state_dir=tmp_path / "state")
        assert not store.models_dir.exists() or assert_valid_store(store.models_dir) == 0

        asyncio.run(_pull(Catalog(store), hub))

        assert hub.cdn.sent_bytes - len(data) < AGAIN_AT_MOST
        assert hub.cdn.sent_bytes - sent_before < len(data)
        assert assert_valid_store(store.models_dir) == 1
        model = Catalog(store).find(REPO)
        assert model.weights.digest == hashlib.sha256(data).hexdigest()


def _kill_half_way(hub: HubServer, folder: Path) -> None:
    """The CDN stops sending at half of the file, so that the process is there to be killed."""
    released = threading.Event()

    def hold() -> None:
        if hub.cdn.sent_bytes >= SIZE // 2:
            released.wait(30)

    hub.cdn.per_block = hold
    environ = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "hf")}
    process = subprocess.Popen([sys.executable, "-c", _SCRIPT, str(folder)], env=environ)
    try:
        deadline = time.monotonic() + 60
        while hub.cdn.sent_bytes < SIZE // 2:
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(0.2)  # what was sent has arrived
    finally:
        process.kill()
        process.wait(30)
        hub.cdn.per_block = lambda: None
        released.set()


async def _pull(catalog: Catalog, hub: HubServer) -> None:
    hardware = Hardware("Linux", "x86_64", 2, 2, 16 << 30, 16 << 30)
    async with asyncio.timeout(100):
        async for _ in Puller(catalog, read_access=hub.access, hardware=lambda: hardware).pull(f"hf.co/{REPO}"):
            pass
