"""What a name stood for before: noted, kept outside of Ollama's tree within bounds, and brought back."""

from __future__ import annotations

import errno
import hashlib
from pathlib import Path

import pytest
from support.crashing import DyingDisk
from support.store_checks import assert_valid_store
from support.tiny_gguf import write_tiny_gguf
from support.tree_folders import write_folder

from oprel.errors import (
    InvalidNameError,
    InvalidRequestError,
    ModelDamagedError,
    ModelNotFoundError,
    NoSpaceError,
    StoreError,
)
from oprel.store import Catalog, ModelName, Store, Trees
from oprel.store.disk import Disk
from oprel.store.history import Event, History
from oprel.store.names import DigestPrefix, split_version
from oprel.store.versions import Change, Retention

M = ModelName.parse("m")


def make_store(folder: Path, disk: Disk | None = None, **retention: int) -> Store:
    return Store(folder / "models", state_dir=folder / "state", disk=disk, retention=Retention(**retention))


def put(store: Store, version: str, name: str = "m") -> str:
    """Another version of the model; its digest."""
    folder = store.models_dir.parent
    path = write_tiny_gguf(folder / f"{version}.gguf", salt=version)
    return store.import_gguf(path, name).digest.hex


def digests(store: Store, name: ModelName = M) -> list[tuple[str, bool, bool]]:
    return [(each.digest, each.is_current, each.is_kept) for each in store.versions.of(name)]


def current(store: Store, name: ModelName = M) -> str | None:
    return store.versions.current(name)


def drop_unused_blobs(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """What Ollama does at its start."""
    monkeypatch.setattr("oprel.store.store.GRACE_S", -1.0)
    store.collect_garbage()


def test_each_change_is_noted_with_its_source(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    first = put(store, "one")
    second = put(store, "two")
    store.copy(M, ModelName.parse("me/c"))
    store.rollback(M)
    store.delete(M)
    told = [(event.action, event.name, event.digest) for event in store.versions.history]
    assert told == [
        ("import", "m:latest", first),
        ("import", "m:latest", second),
        ("copy", "me/c:latest", second),
        ("rollback", "m:latest", first),
        ("delete", "m:latest", first),
    ]
    sources = [event.source for event in store.versions.history]
    one, two = f"file:{tmp_path / 'one.gguf'}", f"file:{tmp_path / 'two.gguf'}"
    assert sources == [one, two, two, one, ""]


def test_the_version_before_comes_back_after_ollama_has_pruned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make_store(tmp_path)
    first, second = put(store, "one"), put(store, "two")
    (tmp_path / "one.gguf").unlink()
    drop_unused_blobs(store, monkeypatch)
    assert len(list((store.models_dir / "blobs").iterdir())) == 2
    assert digests(store) == [(second, True, False), (first, False, True)]

    assert store.rollback(M).digest == first

    assert digests(store) == [(first, True, False), (second, False, True)]
    assert assert_valid_store(store.models_dir) == 1
    assert Catalog(store).find("m").damage is None
    assert store.rollback(M).digest == second
    assert store.rollback(M, DigestPrefix(first[:12])).digest == first
    assert assert_valid_store(store.models_dir) == 1


def test_old_versions_cost_no_space_while_the_store_has_their_files(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    put(store, "one")
    put(store, "two")
    kept = sorted((store.versions.folder / "blobs").iterdir())
    assert len(kept) == 2
    assert all(path.samefile(store.models_dir / "blobs" / path.name) for path in kept)


def test_so_many_are_kept_for_each_name(tmp_path: Path) -> None:
    store = make_store(tmp_path, count=2)
    made = [put(store, str(number)) for number in range(5)]
    put(store, "other", "n")
    assert digests(store) == [
        (made[4], True, False), (made[3], False, True), (made[2], False, True), (made[1], False, False),
        (made[0], False, False),
    ]  # fmt: skip
    with pytest.raises(StoreError, match=r"no longer kept; pull it again: file:"):
        store.rollback(M, DigestPrefix(made[0]))
    assert store.versions.kept() == {made[3], made[2]}
    assert len(list((store.versions.folder / "blobs").iterdir())) == 4  # weights and config of two


def test_so_many_bytes_are_kept_for_all(tmp_path: Path) -> None:
    store = make_store(tmp_path, max_bytes=3000)
    size = write_tiny_gguf(tmp_path / "x.gguf").stat().st_size
    store.versions.retention = Retention(max_bytes=2 * size)
    made = [put(store, str(number)) for number in range(4)]
    assert store.versions.kept() == {made[2]}


def test_none_are_kept_where_none_are_wanted(tmp_path: Path) -> None:
    store = make_store(tmp_path, count=0)
    first = put(store, "one")
    put(store, "two")
    assert store.versions.kept() == set()
    assert store.versions.of(M)[1].note == "no versions are kept (keep_versions is 0)"
    with pytest.raises(InvalidRequestError, match="No version"):
        store.rollback(M)
    with pytest.raises(StoreError, match="no longer kept"):
        store.rollback(M, DigestPrefix(first))


def test_what_cant_be_linked_is_not_copied_and_says_so(tmp_path: Path) -> None:
    store = make_store(tmp_path, DyingDisk(10_000, links=False))
    put(store, "one")
    put(store, "two")
    assert [(each.is_kept, each.note) for each in store.versions.of(M)] == [(False, ""), (False, "other file system")]
    assert not list((store.versions.folder / "blobs").iterdir())


def test_a_deleted_model_takes_its_versions_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make_store(tmp_path)
    put(store, "one")
    put(store, "two")
    for path in tmp_path.glob("*.gguf"):
        path.unlink()
    monkeypatch.setattr("oprel.store.store.GRACE_S", -1.0)
    store.delete(M)
    assert not list((store.models_dir / "blobs").iterdir())
    assert not list((store.versions.folder / "blobs").iterdir())
    assert store.versions.kept() == set()
    with pytest.raises(ModelNotFoundError):
        Catalog(store).rollback("m")


def test_a_version_of_another_name_stays_when_one_is_deleted(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    first = put(store, "one")
    put(store, "one", "n")
    put(store, "two")
    put(store, "two", "n")
    store.delete(M)
    assert store.versions.kept() == {first}
    assert store.rollback(ModelName.parse("n")).digest == first


def test_what_another_program_pulled_is_found_when_it_is_replaced(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    first = put(store, "one")
    store.versions.history.path.unlink()  # as if it was Ollama
    second = put(store, "two")
    assert digests(store) == [(second, True, False), (first, False, True)]
    assert store.versions.of(M)[1].action == "found"
    assert store.rollback(M).digest == first


def test_a_version_whose_name_ollama_removed_can_be_brought_back(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    first = put(store, "one")
    put(store, "two")
    M.manifest_path(store.models_dir).unlink()
    assert Catalog(store).rollback("m").digest == first
    assert assert_valid_store(store.models_dir) == 1


def test_a_damaged_version_is_not_brought_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make_store(tmp_path)
    first, second = put(store, "one"), put(store, "two")
    (tmp_path / "one.gguf").unlink()
    drop_unused_blobs(store, monkeypatch)
    weights = max((store.versions.folder / "blobs").iterdir(), key=lambda path: path.stat().st_size)
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(StoreError, match=f"The version {first[:12]} of 'm:latest' is damaged: {weights.name[:6]}"):
        store.rollback(M)
    assert current(store) == second
    assert_valid_store(store.models_dir)


@pytest.mark.parametrize("wanted", ["0" * 12, "f" * 64])
def test_an_unknown_version_is_told_with_those_that_are_known(tmp_path: Path, wanted: str) -> None:
    store = make_store(tmp_path)
    first = put(store, "one")
    with pytest.raises(InvalidRequestError, match=f"known are: {first[:12]}"):
        store.rollback(M, DigestPrefix(wanted))


def test_the_version_that_a_name_has_is_no_change(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    first = put(store, "one")
    assert store.rollback(M, DigestPrefix(first)).is_current
    assert len(tuple(store.versions.history)) == 1


class TestNames:
    @pytest.mark.parametrize("length", [12, 40, 64])
    def test_a_version_is_a_name_and_a_digest(self, length: int) -> None:
        name, version = split_version(f"hf.co/a/b:Q4@sha256:{'a' * length}")
        assert (name, version) == ("hf.co/a/b:Q4", DigestPrefix("a" * length))

    def test_a_name_is_a_name(self) -> None:
        assert split_version("a/b:c") == ("a/b:c", None)

    @pytest.mark.parametrize(
        "text",
        [
            "m@", "@sha256:" + "a" * 12, "m@sha256:" + "a" * 11, "m@sha256:" + "a" * 65, "m@sha256:" + "A" * 12,
            "m@sha512:" + "a" * 12, "m@" + "a" * 12, "m@x@sha256:" + "a" * 12, "m@sha256:" + "a" * 12 + "\n",
            "m@sha256-" + "a" * 12, "m@sha256:../../../../etc", "m@sha256:" + "a" * 12 + "\0",
        ],
    )  # fmt: skip
    def test_nothing_else_with_an_at_is(self, text: str) -> None:
        with pytest.raises(InvalidNameError):
            split_version(text)


class TestCatalog:
    def test_a_version_is_found_by_its_digest(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        store = make_store(tmp_path)
        first, second = put(store, "one"), put(store, "two")
        drop_unused_blobs(store, monkeypatch)
        catalog = Catalog(store)
        old = catalog.find(f"M@sha256:{first[:12]}")
        assert (old.name, old.digest, old.damage) == (f"m:latest@sha256:{first}", first, None)
        assert Path(old.weights.path).read_bytes() == (tmp_path / "one.gguf").read_bytes()
        assert catalog.find(f"m@sha256:{second}").digest == second == catalog.find("m").digest
        catalog.check_files(old)

    def test_what_was_never_there_is_refused(self, tmp_path: Path) -> None:
        store = make_store(tmp_path)
        put(store, "one")
        with pytest.raises(InvalidRequestError, match="no version"):
            Catalog(store).find(f"m@sha256:{'0' * 12}")
        with pytest.raises(ModelNotFoundError):
            Catalog(store).find(f"absent@sha256:{'0' * 12}")


class TestTrees:
    def make(self, folder: Path, **retention: int) -> Trees:
        return Trees(folder / "trees", state_dir=folder / "state", retention=Retention(**retention))

    def test_a_folder_of_an_old_version_stays_and_comes_back(self, tmp_path: Path) -> None:
        trees = self.make(tmp_path)
        first = trees.add(write_folder(tmp_path / "one", hidden_size=64), "m").digest.hex
        second = trees.add(write_folder(tmp_path / "two", hidden_size=128), "m").digest.hex
        assert trees.sweep(min_age_s=-1) == 0
        assert trees.rollback(M).digest == first
        assert (trees.find("m").digest, trees.find("m").damage) == (first, None)  # type: ignore[union-attr]
        store = Store(tmp_path / "models", state_dir=tmp_path / "state")
        old = Catalog(store, shelves=(trees,)).find(f"m@sha256:{second}")
        assert (old.digest, old.damage, old.format) == (second, None, "safetensors")

    def test_folders_beyond_what_is_kept_go(self, tmp_path: Path) -> None:
        trees = self.make(tmp_path, count=1)
        made = [
            trees.add(write_folder(tmp_path / str(size), hidden_size=size), "m").digest.hex for size in (64, 128, 256)
        ]
        left = {path.name for path in trees.trees_dir.iterdir() if path.name != "manifests"}
        assert left == {made[1], made[2]}
        trees.delete("m")
        assert {path.name for path in trees.trees_dir.iterdir()} == {"manifests"}

    def test_a_copy_shares_the_folder(self, tmp_path: Path) -> None:
        trees = self.make(tmp_path)
        digest = trees.add(write_folder(tmp_path / "one"), "m").digest.hex
        store = Store(tmp_path / "models", state_dir=tmp_path / "state")
        catalog = Catalog(store, shelves=(trees,))
        catalog.copy(catalog.find("m"), ModelName.parse("n"))
        trees.delete("m")
        assert catalog.find("n").damage is None
        trees.delete("n")
        assert not (trees.trees_dir / digest).exists()


class TestCopy:
    def test_one_more_manifest_for_the_same_blobs(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        store = make_store(tmp_path)
        digest = put(store, "one")
        (tmp_path / "one.gguf").unlink()
        monkeypatch.setattr("oprel.store.store.GRACE_S", -1.0)
        catalog = Catalog(store)
        catalog.copy(catalog.find("m"), ModelName.parse("me/c:2"))
        assert current(store, ModelName.parse("me/c:2")) == digest
        assert len(list((store.models_dir / "blobs").iterdir())) == 2
        catalog.delete("m")
        assert assert_valid_store(store.models_dir) == 1
        catalog.delete("me/c:2")
        assert not list((store.models_dir / "blobs").iterdir())

    def test_what_the_destination_was_is_kept(self, tmp_path: Path) -> None:
        store = make_store(tmp_path)
        put(store, "one")
        old = put(store, "two", "n")
        store.copy(M, ModelName.parse("N"))
        assert store.versions.kept() == {old}
        assert [each.name for each in store.versions.history][-1] == "n:latest"

    def test_from_a_store_that_is_only_read(self, tmp_path: Path) -> None:
        theirs = make_store(tmp_path / "theirs")
        (tmp_path / "theirs").mkdir(exist_ok=True)
        digest = put(theirs, "one")
        ours = make_store(tmp_path)
        catalog = Catalog(ours, extra_dirs=[theirs.models_dir])
        catalog.copy(catalog.find("m"), ModelName.parse("mine"))
        assert current(ours, ModelName.parse("mine")) == digest
        assert assert_valid_store(ours.models_dir) == 1

    def test_a_damaged_file_of_another_store_is_not_taken(self, tmp_path: Path) -> None:
        theirs = make_store(tmp_path / "theirs")
        (tmp_path / "theirs").mkdir(exist_ok=True)
        put(theirs, "one")
        blob = max((theirs.models_dir / "blobs").iterdir(), key=lambda path: path.stat().st_size)
        blob.write_bytes(blob.read_bytes()[:-1] + b"?")
        catalog = Catalog(make_store(tmp_path), extra_dirs=[theirs.models_dir])
        with pytest.raises(ModelDamagedError, match=blob.name):
            catalog.copy(catalog.find("m"), ModelName.parse("mine"))
        assert assert_valid_store(tmp_path / "models") == 0

    def test_an_unreadable_manifest_is_not_copied(self, tmp_path: Path) -> None:
        store = make_store(tmp_path)
        put(store, "one")
        M.manifest_path(store.models_dir).write_bytes(b"{")
        with pytest.raises(ModelDamagedError, match="damaged"):
            store.copy(M, ModelName.parse("n"))

    def test_a_name_means_one_kind_of_model(self, tmp_path: Path) -> None:
        store = make_store(tmp_path)
        put(store, "one")
        trees = Trees(tmp_path / "trees", state_dir=tmp_path / "state")
        trees.add(write_folder(tmp_path / "folder"), "tree")
        catalog = Catalog(store, shelves=(trees,))
        for source, destination in (("m", "tree"), ("tree", "m")):
            with pytest.raises(InvalidRequestError, match="another kind"):
                catalog.copy(catalog.find(source), ModelName.parse(destination))


class TestHistory:
    def event(self, digest: str) -> Event:
        return Event(1.0, "pull", "m:latest", digest)

    def test_a_line_that_a_kill_has_cut_is_passed_over(self, tmp_path: Path) -> None:
        history = History(tmp_path / "h" / "history.jsonl", disk=Disk())
        history.append(self.event("a"))
        with history.path.open("ab") as handle:
            handle.write(b'{"at":1.0,"action":"pu')
        history.append(self.event("b"))
        assert [event.digest for event in history] == ["a", "b"]

    def test_it_is_bounded_and_keeps_the_newest(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("oprel.store.history.MAX_BYTES", 500)
        monkeypatch.setattr("oprel.store.history.KEPT_LINES", 3)
        history = History(tmp_path / "history.jsonl", disk=Disk())
        for number in range(50):
            history.append(self.event(str(number)))
        told = [event.digest for event in history]
        assert told[-4:] == ["46", "47", "48", "49"]
        assert len(told) < 15
        assert history.path.stat().st_size < 1000

    def test_one_that_cant_be_read_is_no_empty_one(self, tmp_path: Path) -> None:
        """What it says must be kept: nothing may be removed without it."""
        (tmp_path / "history.jsonl").mkdir()
        with pytest.raises(StoreError, match="history"):
            tuple(History(tmp_path / "history.jsonl", disk=Disk()))


def test_unreadable_blobs_are_told_by_their_problem(tmp_path: Path) -> None:
    """A link may be refused for another reason than the file system: the reason is told."""

    class Refusing(Disk):
        def link(self, source: Path, target: Path) -> None:
            raise OSError(errno.EPERM, "Operation not permitted")

    store = make_store(tmp_path, Refusing())
    put(store, "one")
    put(store, "two")
    assert store.versions.of(M)[1].note == "Operation not permitted"


class FullDisk(Disk):
    def write(self, descriptor: int, data: bytes | memoryview) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_model_can_be_deleted_from_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(make_store(tmp_path), "one")
    full = make_store(tmp_path, FullDisk())
    monkeypatch.setattr("oprel.store.store.GRACE_S", -1.0)
    assert full.delete(M)
    assert not list((full.models_dir / "blobs").iterdir())


def test_a_full_disk_changes_nothing_else(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    put(store, "one")
    second = put(store, "two")
    full = make_store(tmp_path, FullDisk())
    with pytest.raises(NoSpaceError):
        full.rollback(M)
    with pytest.raises(NoSpaceError):
        full.copy(M, ModelName.parse("n"))
    assert current(store) == second
    assert assert_valid_store(store.models_dir) == 1


def test_a_change_may_say_where_it_is_from(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    digest = put(store, "one")
    data = M.manifest_path(store.models_dir).read_bytes()
    store.write_manifest(ModelName.parse("n"), data, Change("pull", "hf.co/o/r:Q4", "abc"))
    version = store.versions.of(ModelName.parse("n"))[0]
    assert (version.source, version.revision, version.digest) == ("hf.co/o/r:Q4", "abc", digest)
    assert hashlib.sha256(data).hexdigest() == digest
