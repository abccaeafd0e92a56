"""Pulls and pushes whose process is killed: at any step of the disk, and by SIGKILL in the middle of a blob."""

from __future__ import annotations

import asyncio
import hashlib
import random
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import AsyncGenerator, Callable, Iterator
from pathlib import Path

import pytest
from support.file_server import FileServer, running_files
from support.model_registry import ModelRegistry, running_registry
from support.store_checks import assert_valid_store
from support.tiny_gguf import write_tiny_gguf

from oprel.sources import Puller, PullProgress
from oprel.store import Catalog, ModelName, Store

NAME = "a/b:c"
LIMIT_BYTES = 16 << 20

# One fork for each step to die at, in a process that has no threads of its own yet.
_STEPS = textwrap.dedent(
    """
    import asyncio, os, sys
    from pathlib import Path
    from oprel.net import outside
    from oprel.sources import Puller, transfer
    import oprel.sources.registry, oprel.sources.package_index
    from oprel.store import Catalog, Store
    from oprel.store.disk import Disk

    CHANGES = ("make_folder", "create", "open_kept", "write", "write_at", "cut", "sync", "sync_folder", "rename",
               "link", "remove", "remove_folder")
    outside.getproxies = dict
    transfer.SYNC_BYTES = transfer.BLOCK_BYTES = 20_000
    transfer.RANGE_BYTES = 40_000
    transfer.CONNECTIONS = 1

    class DyingDisk(Disk):
        steps = 0

    def dying(name):
        real = getattr(Disk, name)
        def step(self, *args, **kwargs):
            if DyingDisk.steps == LAST_STEP:
                if name == "write":  # half of it arrives
                    os.write(args[0], bytes(args[1])[: len(args[1]) // 2])
                if name == "write_at":
                    os.pwrite(args[0], bytes(args[1])[: len(args[1]) // 2], args[2])
                os._exit(77)
            DyingDisk.steps += 1
            return real(self, *args, **kwargs)
        return step

    for name in CHANGES:
        setattr(DyingDisk, name, dying(name))

    async def run(steps):
        async for _ in steps:
            pass

    for line in sys.stdin:
        step, folder, action, model = line.split()
        LAST_STEP, folder = int(step), Path(folder)
        child = os.fork()
        if child:
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
            continue
        store = Store(folder / "models", state_dir=folder / "state", disk=DyingDisk())
        puller = Puller(Catalog(store))
        asyncio.run(run(getattr(puller, action)(model, insecure=True)))
        os._exit(0)
    """
)
_PULL = textwrap.dedent(
    """
    import asyncio, sys
    from pathlib import Path
    from oprel.net import outside
    from oprel.sources import Puller
    from oprel.store import Catalog, Store
    outside.getproxies = dict

    async def run():
        store = Store(Path(sys.argv[1]) / "models", state_dir=Path(sys.argv[1]) / "state")
        async for _ in Puller(Catalog(store)).pull(sys.argv[2], insecure=True):
            pass

    asyncio.run(run())
    """
)
_MAX_STEPS = 400


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("oprel.net.outside.getproxies", dict)


@pytest.fixture
def registry() -> Iterator[ModelRegistry]:
    with running_registry() as registry:
        yield registry


@pytest.fixture(scope="module")
def run_until() -> Iterator[Callable[[int, Path, str, str], int]]:
    """Do it in a child that dies at a step; its exit code, 77 if it came so far."""
    process = subprocess.Popen(
        [sys.executable, "-c", _STEPS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    assert process.stdin is not None
    assert process.stdout is not None

    def run(step: int, folder: Path, action: str, model: str) -> int:
        print(step, folder, action, model, file=process.stdin, flush=True)
        return int(process.stdout.readline())

    yield run
    process.stdin.close()
    process.stdout.close()
    assert process.wait(30) == 0


def weights_of(folder: Path, *, size: int, salt: str = "new") -> bytes:
    data = write_tiny_gguf(folder / f"{salt}.gguf", salt=salt).read_bytes()
    return data + random.Random(salt).randbytes(size)  # noqa: S311


def do(puller: Puller, action: str, name: str) -> list[PullProgress]:
    async def run(steps: AsyncGenerator[PullProgress, None]) -> list[PullProgress]:
        return [step async for step in steps]

    return asyncio.run(run(getattr(puller, action)(name, insecure=True)))


@pytest.mark.timeout(300)
def test_a_pull_killed_at_any_step_leaves_a_valid_store(
    tmp_path: Path, registry: ModelRegistry, run_until: Callable[[int, Path, str, str], int]
) -> None:
    """The old version or the new one; the next pull ends well, and nothing half done is left."""
    old, new = weights_of(tmp_path, size=0, salt="old"), weights_of(tmp_path, size=50_000)
    name = f"{registry.host}/{NAME}"
    first = Store(tmp_path / "first/models", state_dir=tmp_path / "first/state")
    before = registry.add(NAME, [(old, "model"), (b"short", "system")])
    do(Puller(Catalog(first)), "pull", name)
    for step in range(_MAX_STEPS):
        folder = tmp_path / str(step)
        shutil.copytree(tmp_path / "first", folder)
        store = Store(folder / "models", state_dir=folder / "state")
        path = ModelName.parse(name).manifest_path(store.models_dir)
        after = registry.add(NAME, [(new, "model"), (b"short", "system"), (b"yours", "license")])

        code = run_until(step, folder, "pull", name)

        assert code in (0, 77)
        assert assert_valid_store(store.models_dir) == 1
        assert path.read_bytes() in (before, after)
        again = Store(store.models_dir, state_dir=store.state_dir)
        again.sweep(min_age_s=-1)
        do(Puller(Catalog(again)), "pull", name)
        assert path.read_bytes() == after
        assert_valid_store(store.models_dir)
        assert not list((store.state_dir / "partial").iterdir())
        if code == 0:
            assert step >= 20, "the pull went around the disk's methods"
            return
    raise AssertionError(f"it takes more than {_MAX_STEPS} steps")


def test_a_push_changes_nothing_on_disk(
    tmp_path: Path, registry: ModelRegistry, run_until: Callable[[int, Path, str, str], int]
) -> None:
    """So no step of it can be one to die at: it would have died at the first."""
    store = Store(tmp_path / "models", state_dir=tmp_path / "state")
    name = f"{registry.host}/{NAME}"
    store.import_gguf(write_tiny_gguf(tmp_path / "m.gguf"), name)
    assert run_until(0, tmp_path, "push", name) == 0
    assert assert_valid_store(store.models_dir) == 1


@pytest.mark.parametrize("dies_at", range(6))
def test_a_push_that_dies_between_requests_is_run_again(tmp_path: Path, registry: ModelRegistry, dies_at: int) -> None:
    """The registry never shows a manifest whose blobs it lacks."""
    store = Store(tmp_path / "models", state_dir=tmp_path / "state")
    name = f"{registry.host}/{NAME}"
    store.import_gguf(write_tiny_gguf(tmp_path / "m.gguf"), name)
    process = subprocess.Popen([sys.executable, "-c", _PULL.replace(".pull(", ".push("), str(tmp_path), name])

    def die(handler: object) -> bool:
        if len(registry.server.requests) > dies_at and process.poll() is None:
            process.send_signal(signal.SIGKILL)
            process.wait(10)
        return False

    registry.server.specials.insert(0, die)
    process.wait(60)
    assert process.returncode in (-signal.SIGKILL, 0)
    registry.server.specials.pop(0)
    do(Puller(Catalog(store)), "push", name)
    assert (
        registry.server.files["/v2/a/b/manifests/c"]
        == ModelName.parse(name).manifest_path(store.models_dir).read_bytes()
    )
    assert assert_valid_store(store.models_dir) == 1


def test_one_kill_costs_less_than_16_mib(tmp_path: Path) -> None:
    with running_files() as server:
        _one_kill(server, tmp_path)


def _one_kill(server: FileServer, folder: Path) -> None:
    registry = ModelRegistry(server)
    data = weights_of(folder, size=40 << 20)
    registry.add(NAME, [(data, "model")])
    name = f"{registry.host}/{NAME}"
    process = subprocess.Popen([sys.executable, "-c", _PULL, str(folder), name])
    server.wait_sent(len(data) * 2 // 3)
    process.send_signal(signal.SIGKILL)
    process.wait(10)
    store = Store(folder / "models", state_dir=folder / "state")
    do(Puller(Catalog(store)), "pull", name)
    assert server.sent_bytes < len(data) + LIMIT_BYTES
    assert hashlib.sha256(data).hexdigest() in {
        path.name.removeprefix("sha256-") for path in (store.models_dir / "blobs").iterdir()
    }
