"""The process is killed at every step that changes the disk: the store stays valid, and the next run succeeds."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.store_checks import assert_valid_store
from support.tiny_gguf import write_tiny_gguf

from oprel.store import ModelName, Store

# In a process of its own, since forking a test process that has threads isn't safe: one fork for each step to die at.
_SCRIPT = textwrap.dedent(
    """
    import os, sys
    from pathlib import Path
    from oprel.store import ModelName, Store
    from oprel.store import Catalog, Digest
    from oprel.store import store as store_module
    from oprel.store.creating import Base, Creating
    from oprel.store.recipes import GivenFile, GivenMessage, Recipe
    from oprel.store.disk import Disk

    CHANGES = ("make_folder", "create", "write", "sync", "sync_folder", "rename", "link", "remove", "remove_folder")

    class DyingDisk(Disk):
        steps = 0

    def dying(name):
        real = getattr(Disk, name)
        def step(self, *args, **kwargs):
            if name == "link" and links != "links":
                raise OSError(18, "not here")
            if DyingDisk.steps == LAST_STEP:
                if name == "write":  # half of it arrives
                    os.write(args[0], bytes(args[1])[: len(args[1]) // 2])
                os._exit(77)
            DyingDisk.steps += 1
            return real(self, *args, **kwargs)
        return step

    for name in CHANGES:
        setattr(DyingDisk, name, dying(name))
    store_module.GRACE_S = -1.0

    for line in sys.stdin:
        step, folder, action, links = line.split()
        LAST_STEP, folder = int(step), Path(folder)
        child = os.fork()
        if child:
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
            continue
        store = Store(folder / "models", state_dir=folder / "state", disk=DyingDisk())
        if action == "import":
            store.import_gguf(folder / "new.gguf", "m", licenses=["yours"])
        elif action == "upload":
            blob = store.add_file(folder / "new.gguf")
            recipe = Recipe(name=ModelName.parse("m"), files=(GivenFile("new.gguf", blob.digest),), system="S")
            Creating(store, recipe, lambda *told: None).run(None)
        elif action == "create":
            catalog = Catalog(store)
            base = Base("other:latest", *catalog.manifest_of(catalog.find("other")))
            recipe = Recipe(
                name=ModelName.parse("m"), base="other", system="S", template="T", licenses=("L",),
                parameters={"top_k": 3}, messages=(GivenMessage("user", "Hi"),),
            )
            Creating(store, recipe, lambda *told: None).run(base)
        else:
            store.delete(ModelName.parse("m"))
        os._exit(0)
    """
)
_MAX_STEPS = 200


@pytest.fixture(scope="module")
def run_until() -> Iterator[Callable[[int, Path, str, str], int]]:
    """Do an action in a child that dies at a step; its exit code, 77 if it came so far."""
    process = subprocess.Popen(
        [sys.executable, "-c", _SCRIPT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    assert process.stdin is not None
    assert process.stdout is not None

    def run(step: int, folder: Path, action: str, links: str) -> int:
        print(step, folder, action, links, file=process.stdin, flush=True)
        return int(process.stdout.readline())

    yield run
    process.stdin.close()
    process.stdout.close()
    assert process.wait(30) == 0


def prepared(folder: Path) -> Store:
    """A store with an older version of the model, and another model that shares nothing."""
    folder.mkdir()
    write_tiny_gguf(folder / "new.gguf", salt="new")
    store = Store(folder / "models", state_dir=folder / "state")
    store.import_gguf(write_tiny_gguf(folder / "old.gguf", salt="old"), "m")
    store.import_gguf(write_tiny_gguf(folder / "other.gguf", salt="other"), "other")
    return store


@pytest.mark.parametrize(
    ("action", "links"),
    [
        ("import", "links"), ("import", "copies"), ("delete", "links"), ("create", "links"), ("upload", "links"),
        ("upload", "copies"),
    ],
)  # fmt: skip
def test_a_kill_at_any_step_leaves_a_valid_store(
    tmp_path: Path, run_until: Callable[[int, Path, str, str], int], action: str, links: str
) -> None:
    manifest = ModelName.parse("m")
    for step in range(_MAX_STEPS):
        folder = tmp_path / str(step)
        store = prepared(folder)
        before = manifest.manifest_path(store.models_dir).read_bytes()

        code = run_until(step, folder, action, links)

        assert code in (0, 77)
        assert assert_valid_store(store.models_dir) >= 1
        path = manifest.manifest_path(store.models_dir)
        after = path.read_bytes() if path.exists() else None
        if action != "delete":
            assert after is not None
            assert code == 77 or after != before
            again = Store(store.models_dir, state_dir=store.state_dir)
            again.sweep(min_age_s=-1)
            again.import_gguf(folder / "new.gguf", "m", licenses=["yours"])
            assert path.read_bytes() != before
        else:
            assert after in (None, before)
            store.delete(manifest)
            assert not path.exists()
        assert assert_valid_store(store.models_dir) == (1 if action == "delete" else 2)
        assert not list((store.state_dir / "partial").iterdir())
        if code == 0:
            assert step >= 5, "the store went around the disk's methods"
            return
    raise AssertionError(f"it takes more than {_MAX_STEPS} steps")
