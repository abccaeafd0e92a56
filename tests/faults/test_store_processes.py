"""Two processes at once on one store, each importing, copying, going back, deleting and collecting garbage: every step
succeeds or is refused in a sentence, and the store is valid at any moment and at the end."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from support.store_checks import assert_ollamas_shape, assert_valid_store
from support.tiny_gguf import write_tiny_gguf

from oprel.errors import StoreError
from oprel.store import Catalog, ModelName, Store
from oprel.store.verification import verify

_SCRIPT = textwrap.dedent(
    """
    import random, sys
    from pathlib import Path
    from oprel.errors import InvalidRequestError, OprelError
    from oprel.store import ModelName, Store, store as store_module
    from support.crashing import UnsyncedDisk

    folder, seed, grace_s = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    store_module.GRACE_S = grace_s
    store = Store(folder / "models", state_dir=folder / "state", disk=UnsyncedDisk())
    choose = random.Random(seed)
    names = [ModelName.parse(text) for text in ("a", "b", "me/c")]
    files = sorted(folder.glob("*.gguf"))

    def put():
        with store.in_use():
            store.import_gguf(choose.choice(files), choose.choice(names))

    def copy():
        store.copy(choose.choice(names), choose.choice(names))

    def roll_back():
        try:
            store.rollback(choose.choice(names))
        except InvalidRequestError:
            pass  # there is nothing to go back to

    def delete():
        store.delete(choose.choice(names))

    def collect():
        store.collect_garbage()

    for _ in range(60):
        choose.choice([put, put, put, copy, roll_back, delete, collect])()
    """
)


def start(folder: Path, seed: int, grace_s: float) -> subprocess.Popen[bytes]:
    arguments = [sys.executable, "-c", _SCRIPT, str(folder), str(seed), str(grace_s)]
    environ = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    return subprocess.Popen(arguments, stderr=subprocess.PIPE, env=environ)


def test_two_processes_on_one_store(tmp_path: Path) -> None:
    """With no grace at all: only the locks keep one from taking away what the other is about to use."""
    for number in range(4):
        write_tiny_gguf(tmp_path / f"{number}.gguf", salt=str(number))
    processes = [start(tmp_path, seed, -1.0) for seed in (1, 2)]
    for process in processes:
        _, said = process.communicate(timeout=90)
        assert process.returncode == 0, said.decode()
    assert_valid_store(tmp_path / "models")
    assert_ollamas_shape(tmp_path / "models")
    store = Store(tmp_path / "models", state_dir=tmp_path / "state")
    assert verify(Catalog(store)).harmful == ()
    for event in store.versions.history:
        assert event.name in ("a:latest", "b:latest", "me/c:latest")


def test_one_is_killed_while_the_other_goes_on(tmp_path: Path) -> None:
    for number in range(4):
        write_tiny_gguf(tmp_path / f"{number}.gguf", salt=str(number))
    for seed in range(4):
        other, victim = start(tmp_path, 10 + seed, -1.0), start(tmp_path, 20 + seed, -1.0)
        time.sleep(0.4 + 0.1 * seed)
        victim.kill()
        victim.communicate(timeout=30)
        _, said = other.communicate(timeout=90)
        assert other.returncode == 0, said.decode()
        assert_valid_store(tmp_path / "models")
    store = Store(tmp_path / "models", state_dir=tmp_path / "state")
    store.sweep(min_age_s=-1)
    assert not list((tmp_path / "state" / "partial").iterdir())


def test_no_garbage_is_collected_while_a_pull_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("oprel.store.store.GRACE_S", -1.0)
    ours, theirs = (Store(tmp_path / "models", state_dir=tmp_path / "state") for _ in range(2))
    ours.import_gguf(write_tiny_gguf(tmp_path / "x.gguf"), "x")
    with theirs.in_use():
        with theirs.new_blob() as blob:
            blob.write(b"a layer")
            blob.finish()
            layer = blob.publish().digest.blob_path(theirs.models_dir)
        assert ours.delete(ModelName.parse("x"))
        assert ours.collect_garbage().excuse == "a model is being pulled or created"
        assert layer.exists()
    with ours.in_use():
        pass
    assert not list((ours.models_dir / "blobs").iterdir()), "what had to wait goes when the store is free"


def test_nothing_is_collected_while_a_manifest_cant_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("oprel.store.store.GRACE_S", -1.0)
    store = Store(tmp_path / "models", state_dir=tmp_path / "state")
    store.import_gguf(write_tiny_gguf(tmp_path / "x.gguf"), "x")
    path = ModelName.parse("x").manifest_path(store.models_dir)
    path.write_bytes(b"{}")
    garbage = store.collect_garbage()
    assert (garbage.blobs, garbage.excuse) == (0, "the manifest of 'x:latest' can't be read")
    with pytest.raises(StoreError):
        store.versions.kept_manifest("0" * 64)
