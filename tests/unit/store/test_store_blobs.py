"""Writing: complete, verified, durable, then visible; and nothing left of what wasn't."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from support.tiny_gguf import CHAT_VALUES, gguf_bytes, write_tiny_gguf

from oprel.errors import InvalidNameError, InvalidRequestError, NoSpaceError, SourceError, StoreError
from oprel.store import Digest, ModelName, Store
from oprel.store.disk import Disk, FileLock
from oprel.store.manifests import parse_manifest


class RecordingDisk(Disk):
    """Notes each step, in order; `fail` may raise instead of a step."""

    def __init__(self, fail: Callable[[str], None] = lambda step: None) -> None:
        self.steps: list[str] = []
        self._fail = fail

    def _note(self, step: str) -> None:
        self.steps.append(step)
        self._fail(step)

    def write(self, descriptor: int, data: bytes | memoryview) -> None:
        self._note("write")
        super().write(descriptor, data)

    def sync(self, descriptor: int) -> None:
        self._note("sync")
        super().sync(descriptor)

    def sync_folder(self, path: Path) -> None:
        self._note(f"sync folder {path.name}")
        super().sync_folder(path)

    def rename(self, source: Path, target: Path) -> None:
        self._note(f"rename to {target.name}")
        super().rename(source, target)

    def link(self, source: Path, target: Path) -> None:
        self._note("link")
        super().link(source, target)


def make_store(folder: Path, disk: Disk | None = None) -> Store:
    return Store(folder / "models", state_dir=folder / "state", disk=disk)


def files_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def no_links(step: str) -> None:
    if step == "link":
        raise OSError(errno.EXDEV, "another file system")


@pytest.mark.parametrize("disk", [None, RecordingDisk(no_links)], ids=["linked", "copied"])
def test_an_import_makes_ollamas_layout(tmp_path: Path, disk: Disk | None) -> None:
    store = make_store(tmp_path, disk)
    source = write_tiny_gguf(tmp_path / "tiny.gguf")
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    done: list[int] = []

    installed = store.import_gguf(source, "Tiny:1b", licenses=["Do as you like."], progress=done.append)

    manifest_path = store.models_dir / "manifests/registry.ollama.ai/library/Tiny/1b"
    data = manifest_path.read_bytes()
    manifest = parse_manifest(data)
    assert data.endswith(b"\n")
    assert installed.name == ModelName.parse("Tiny:1b")
    assert installed.digest.hex == hashlib.sha256(data).hexdigest()
    assert installed.weights.digest.hex == digest
    assert [layer.kind for layer in manifest.layers] == ["model", "license"]
    assert done[-1] == source.stat().st_size
    for blob in manifest.blobs:
        content = blob.digest.blob_path(store.models_dir).read_bytes()
        assert hashlib.sha256(content).hexdigest() == blob.digest.hex
        assert len(content) == blob.size_bytes
    assert files_below(store.models_dir) == {
        "manifests/registry.ollama.ai/library/Tiny/1b",
        *(f"blobs/sha256-{blob.digest.hex}" for blob in manifest.blobs),
    }
    assert not list((store.state_dir / "partial").iterdir())


def test_the_config_says_what_ollama_reads(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    store.import_gguf(write_tiny_gguf(tmp_path / "tiny.gguf"), "tiny")
    manifest = parse_manifest((store.models_dir / "manifests/registry.ollama.ai/library/tiny/latest").read_bytes())
    config = manifest.config.blob.digest.blob_path(store.models_dir).read_bytes()
    assert config.startswith(
        b'{"model_format":"gguf","model_family":"llama","model_families":["llama"],"model_type":"192",'
        b'"file_type":"Q4_1","architecture":"amd64","os":"linux","rootfs":'
    )


def test_a_file_is_shared_where_it_can_be_and_stays_where_it_was(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    source = write_tiny_gguf(tmp_path / "tiny.gguf")
    before = source.read_bytes()
    blob = store.import_gguf(source, "tiny").weights.digest.blob_path(store.models_dir)
    assert source.read_bytes() == before
    assert blob.samefile(source) or blob.read_bytes() == before  # a link here; shared blocks on btrfs and xfs
    store.import_gguf(source, "again")
    assert blob.read_bytes() == before
    assert not list((store.state_dir / "partial").iterdir())


def test_a_file_behind_a_symbolic_link_is_taken_itself(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    write_tiny_gguf(tmp_path / "real.gguf")
    (tmp_path / "link.gguf").symlink_to("real.gguf")
    blob = store.import_gguf(tmp_path / "link.gguf", "tiny").weights.digest.blob_path(store.models_dir)
    assert not blob.is_symlink()
    assert blob.is_file()


def test_the_order_of_steps_survives_power_loss(tmp_path: Path) -> None:
    """Content is durable before it gets its name, the name before anything refers to it."""
    disk = RecordingDisk(no_links)
    store = make_store(tmp_path, disk)
    installed = store.import_gguf(write_tiny_gguf(tmp_path / "tiny.gguf"), "tiny")
    weights, manifest = f"rename to sha256-{installed.weights.digest.hex}", "rename to latest"
    renames = [at for at, step in enumerate(disk.steps) if step.startswith("rename to")]
    assert disk.steps[renames[0]] == weights
    assert disk.steps[renames[-1]] == manifest
    for at in renames:
        before, after = disk.steps[:at], disk.steps[at + 1 :]
        assert before[max(i for i, step in enumerate(before) if step == "write") :].count("sync") == 1
        assert after[0].startswith("sync folder")


def test_the_same_name_in_other_letters_is_the_same_model(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    store.import_gguf(write_tiny_gguf(tmp_path / "a.gguf", salt="a"), "Tiny:Big")
    spelled = store.import_gguf(write_tiny_gguf(tmp_path / "b.gguf", salt="b"), "tiny:big").name
    assert str(spelled) == "Tiny:Big"
    assert len(list((store.models_dir / "manifests").rglob("*ig"))) == 1


BROKEN = {
    "not gguf": b"hello",
    "cut short": gguf_bytes()[:-1],
    "no tensors": gguf_bytes(CHAT_VALUES, []),
    "no architecture": gguf_bytes({}),
    "an adapter": gguf_bytes({**CHAT_VALUES, "general.type": "adapter"}),
    "a projector": gguf_bytes({"general.architecture": "clip"}),
}


@pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN.keys())
def test_a_file_that_is_no_model_is_refused_and_leaves_nothing(tmp_path: Path, data: bytes) -> None:
    store = make_store(tmp_path)
    (tmp_path / "x.gguf").write_bytes(data)
    with pytest.raises(InvalidRequestError) as failure:
        store.import_gguf(tmp_path / "x.gguf", "x")
    assert "\n" not in failure.value.message
    assert not files_below(store.models_dir)


@pytest.mark.parametrize("path", ["missing.gguf", "."])
def test_what_is_not_a_file_is_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(InvalidRequestError, match="isn't a file"):
        make_store(tmp_path).import_gguf(tmp_path / path, "x")


def test_a_bad_name_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(InvalidNameError):
        make_store(tmp_path).import_gguf(write_tiny_gguf(tmp_path / "x.gguf"), "../x")
    assert not (tmp_path / "models").exists()


def test_another_digest_than_expected_is_refused(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    with pytest.raises(SourceError, match="digest mismatch"):
        store.import_gguf(write_tiny_gguf(tmp_path / "x.gguf"), "x", expected=Digest("0" * 64))
    assert not files_below(store.models_dir)
    assert not list((store.state_dir / "partial").iterdir())


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    store = make_store(tmp_path, RecordingDisk(no_links))
    source = write_tiny_gguf(tmp_path / "x.gguf")

    def change(done: int) -> None:
        os.utime(source, (1, 1))

    with pytest.raises(InvalidRequestError, match="changed"):
        store.import_gguf(source, "x", progress=change)
    assert not files_below(store.models_dir)


def test_progress_may_end_an_import(tmp_path: Path) -> None:
    store = make_store(tmp_path)

    def stop(done: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.import_gguf(write_tiny_gguf(tmp_path / "x.gguf"), "x", progress=stop)
    assert not files_below(store.models_dir)
    assert not list((store.state_dir / "partial").iterdir())


def test_a_manifest_needs_its_blobs(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    installed = store.import_gguf(write_tiny_gguf(tmp_path / "x.gguf"), "x")
    data = (store.models_dir / "manifests/registry.ollama.ai/library/x/latest").read_bytes()
    weights = installed.weights.digest.blob_path(store.models_dir)
    weights.unlink()
    with pytest.raises(StoreError, match="isn't in the store"):
        store.write_manifest(ModelName.parse("y"), data)
    assert not (store.models_dir / "manifests/registry.ollama.ai/library/y").exists()


def test_importing_again_repairs_a_damaged_blob(tmp_path: Path) -> None:
    store = make_store(tmp_path, RecordingDisk(no_links))
    source = write_tiny_gguf(tmp_path / "x.gguf")
    installed = store.import_gguf(source, "x")
    blob = installed.weights.digest.blob_path(store.models_dir)
    blob.write_bytes(bytes(blob.stat().st_size))
    assert not store.verify_blob(installed.weights.digest)
    store.import_gguf(source, "x")
    assert store.verify_blob(installed.weights.digest)


@pytest.mark.parametrize("after", range(12))
def test_a_full_disk_is_told_and_leaves_the_store_valid(tmp_path: Path, after: int) -> None:
    """Whichever write, sync or rename runs out of space."""
    count = 0

    def fill(step: str) -> None:
        nonlocal count
        no_links(step)
        count += 1
        if count > after and step in ("write", "sync"):
            raise OSError(errno.ENOSPC, "No space left on device")

    store = make_store(tmp_path, RecordingDisk(fill))
    try:
        store.import_gguf(write_tiny_gguf(tmp_path / "x.gguf"), "x")
    except NoSpaceError as failure:
        assert "space" in failure.message
        assert not list((store.models_dir / "manifests").rglob("latest"))
    else:
        assert after > 8
    assert not list((store.state_dir / "partial").iterdir())
    for blob in (store.models_dir / "blobs").iterdir():
        assert hashlib.sha256(blob.read_bytes()).hexdigest() == blob.name.removeprefix("sha256-")


def test_space_is_looked_at_before_writing(tmp_path: Path) -> None:
    with pytest.raises(NoSpaceError, match="are needed"):
        make_store(tmp_path).new_blob(size_bytes=1 << 60)
    assert not list((tmp_path / "state/partial").iterdir())


def test_other_failures_of_the_system_are_store_errors(tmp_path: Path) -> None:
    (tmp_path / "models").write_text("a file where the folder should be")
    with pytest.raises(StoreError):
        make_store(tmp_path).import_gguf(write_tiny_gguf(tmp_path / "x.gguf"), "x")


def test_a_partial_file_moves_between_file_systems(tmp_path: Path) -> None:
    refused = []

    def refuse_once(step: str) -> None:
        no_links(step)
        if step.startswith("rename to sha256") and not refused:
            refused.append(step)
            raise OSError(errno.EXDEV, "another file system")

    store = make_store(tmp_path, RecordingDisk(refuse_once))
    installed = store.import_gguf(write_tiny_gguf(tmp_path / "x.gguf"), "x")
    assert refused
    assert store.verify_blob(installed.weights.digest)
    assert not [path for path in (store.models_dir / "blobs").iterdir() if not path.name.startswith("sha256-")]


def test_the_sweep_takes_only_what_nobody_holds(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    with store.new_blob() as held:
        orphan = held.path.with_name("oprel-1-dead.partial")
        orphan.write_bytes(b"half")
        beside = store.models_dir / "blobs" / "oprel-2-dead.partial"
        beside.write_bytes(b"half")
        ollamas = store.models_dir / "blobs" / f"sha256-{'a' * 64}-partial"
        ollamas.write_bytes(b"another program's")
        assert store.sweep() == 0  # too young to say
        assert store.sweep(min_age_s=-1) == 2
        assert held.path.exists()
        assert ollamas.exists()
        assert not orphan.exists()
        assert not beside.exists()


def age(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make everything look two hours old."""
    import time

    now = time.time()
    monkeypatch.setattr("oprel.store.store.time.time", lambda: now + 7200)


def test_deleting_keeps_what_others_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make_store(tmp_path)
    source = write_tiny_gguf(tmp_path / "x.gguf")
    shared = store.import_gguf(source, "one").weights.digest.blob_path(store.models_dir)
    store.import_gguf(source, "me/two")
    age(tmp_path, monkeypatch)
    assert store.delete(ModelName.parse("ONE"))
    assert shared.exists()
    assert not (store.models_dir / "manifests/registry.ollama.ai/library").exists()
    assert store.delete(ModelName.parse("me/two"))
    assert not files_below(store.models_dir)
    assert not store.delete(ModelName.parse("me/two"))
    assert source.exists()


def test_deleting_spares_young_blobs(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    blob = store.import_gguf(write_tiny_gguf(tmp_path / "x.gguf"), "x").weights.digest.blob_path(store.models_dir)
    assert store.delete(ModelName.parse("x"))
    assert blob.exists()


def test_deleting_removes_no_blob_while_a_manifest_is_unreadable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store(tmp_path)
    blob = store.import_gguf(write_tiny_gguf(tmp_path / "x.gguf"), "x").weights.digest.blob_path(store.models_dir)
    broken = ModelName.parse("broken").manifest_path(store.models_dir)
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"")
    age(tmp_path, monkeypatch)
    assert store.delete(ModelName.parse("x"))
    assert blob.exists()


def test_two_writers_take_turns(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    files = [write_tiny_gguf(tmp_path / f"{number}.gguf", salt=str(number)) for number in range(8)]
    threads = [
        threading.Thread(target=store.import_gguf, args=(file, f"m{number % 2}")) for number, file in enumerate(files)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for name in ("m0", "m1"):
        path = ModelName.parse(name).manifest_path(store.models_dir)
        assert all(store.has_blob(blob) for blob in parse_manifest(path.read_bytes()).blobs)


def test_a_lock_that_stays_taken_is_told(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with (
        FileLock(path).held(),
        pytest.raises(StoreError, match="locked by another process"),
        FileLock(path, limit_s=0.05).held(),
    ):
        pass
