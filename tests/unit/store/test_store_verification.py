"""Every file held against its name: found, told, put aside; and a model that isn't whole is not loaded."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from support.tiny_gguf import write_tiny_gguf
from support.tree_folders import write_folder

from oprel.errors import ModelDamagedError, ModelNotFoundError
from oprel.store import Catalog, Digest, ModelName, Store, Trees
from oprel.store.running_mark import RunningMark
from oprel.store.verification import Verification, verify
from oprel.store.verified import Verified

M = ModelName.parse("m")


def filled(folder: Path) -> Catalog:
    """Two models of their own, one of them in folders."""
    store = Store(folder / "models", state_dir=folder / "state")
    for name in ("m", "n"):
        path = write_tiny_gguf(folder / f"{name}.gguf", salt=name)
        store.import_gguf(path, name, licenses=["ours"])
        path.unlink()
    trees = Trees(folder / "trees", state_dir=folder / "state")
    trees.add(write_folder(folder / "folder"), "tree")
    return Catalog(store, shelves=(trees,))


def told(found: Verification) -> list[tuple[str, str, tuple[str, ...]]]:
    return [(finding.kind, finding.path.name, finding.models) for finding in found.findings]


def weights_of(catalog: Catalog, name: str) -> Path:
    return Path(catalog.find(name).weights.path)


def flip(path: Path, at: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_a_whole_store_has_no_findings(tmp_path: Path) -> None:
    catalog = filled(tmp_path)
    seen: list[tuple[int, int]] = []
    found = verify(catalog, progress=lambda done, total: seen.append((done, total)))
    assert (found.findings, found.models) == ((), 3)
    assert seen[-1] == (found.size_bytes, found.size_bytes)


def test_a_flipped_bit_is_found_wherever_it_is(tmp_path: Path) -> None:
    catalog = filled(tmp_path)
    path = weights_of(catalog, "m")
    whole = path.read_bytes()
    for at in range(0, len(whole), max(1, len(whole) // 40)):
        flip(path, at)
        assert told(verify(catalog, "m")) == [("damaged", path.name, ("m:latest",))], at
        path.write_bytes(whole)


def missing(catalog: Catalog) -> Path:
    path = weights_of(catalog, "m")
    path.unlink()
    return path


def cut(catalog: Catalog) -> Path:
    path = weights_of(catalog, "m")
    path.write_bytes(path.read_bytes()[:-1])
    return path


def empty_manifest(catalog: Catalog) -> Path:
    path = M.manifest_path(catalog.store.models_dir)
    path.write_bytes(b"")
    return path


def foreign_manifest(catalog: Catalog) -> Path:
    path = M.manifest_path(catalog.store.models_dir)
    path.write_text('{"schemaVersion": 1, "fsLayers": []}')
    return path


def unreferenced(catalog: Catalog) -> Path:
    path = Digest("a" * 64).blob_path(catalog.store.models_dir)
    path.write_bytes(b"")
    return path


def stray(catalog: Catalog) -> Path:
    path = catalog.store.models_dir / "blobs" / "notes.txt"
    path.write_text("mine")
    return path


def misplaced(catalog: Catalog) -> Path:
    path = catalog.store.models_dir / "manifests" / "stray"
    path.write_text("{}")
    return path


def tree_file(catalog: Catalog) -> Path:
    path = Path(next(file.path for file in catalog.find("tree").files if file.role == "weights"))
    path.unlink()
    path.write_bytes(b"\0" * catalog.find("tree").weights.size_bytes)
    return path


CASES: dict[str, tuple[Callable[[Catalog], Path], str, tuple[str, ...], bool]] = {
    "missing": (missing, "missing", ("m:latest",), True),
    "cut short": (cut, "damaged", ("m:latest",), True),
    "an empty manifest": (empty_manifest, "unreadable", ("m:latest",), True),
    "a foreign manifest": (foreign_manifest, "unreadable", ("m:latest",), True),
    "unreferenced": (unreferenced, "unreferenced", (), False),
    "a stray file": (stray, "leftover", (), False),
    "a file where no manifest can be": (misplaced, "leftover", (), False),
    "a file of a folder": (tree_file, "damaged", ("tree:latest",), True),
}


@pytest.mark.parametrize(("damage", "kind", "models", "is_harmful"), CASES.values(), ids=CASES.keys())
def test_what_is_found(
    tmp_path: Path, damage: Callable[[Catalog], Path], kind: str, models: tuple[str, ...], is_harmful: bool
) -> None:
    catalog = filled(tmp_path)
    path = damage(catalog)
    found = verify(catalog)
    assert told(found) == [(kind, path.name, models)]
    assert bool(found.harmful) == is_harmful
    others = {"m", "n", "tree"} - {name.partition(":")[0] for name in models}
    assert all(catalog.find(name).damage is None for name in others), "it harms no other"


def test_one_model_alone_is_looked_at(tmp_path: Path) -> None:
    catalog = filled(tmp_path)
    flip(weights_of(catalog, "n"))
    assert verify(catalog, "m").findings == ()
    assert len(verify(catalog, "n").findings) == 1
    with pytest.raises(ModelNotFoundError):
        verify(catalog, "absent")


def test_what_progress_raises_ends_it(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        verify(filled(tmp_path), progress=stop)


def test_a_partial_download_of_ollamas_is_left_to_it(tmp_path: Path) -> None:
    catalog = filled(tmp_path)
    for suffix in ("-partial", "-partial-0", ".tmp"):
        (catalog.store.models_dir / "blobs" / f"sha256-{'b' * 64}{suffix}").write_bytes(b"half")
    assert told(verify(catalog)) == []


def test_a_damaged_file_is_put_aside_and_not_deleted(tmp_path: Path) -> None:
    catalog = filled(tmp_path)
    path = weights_of(catalog, "m")
    flip(path)
    data = path.read_bytes()
    target = catalog.store.quarantine(Digest.parse(path.name))
    assert target is not None
    assert target.read_bytes() == data
    assert not target.is_relative_to(catalog.store.models_dir)
    assert not path.exists()
    assert catalog.store.quarantine(Digest.parse(path.name)) is None


class TestLoading:
    def test_a_file_is_read_once_and_again_when_it_looks_otherwise(self, tmp_path: Path) -> None:
        catalog = filled(tmp_path)
        model = catalog.find("m")
        assert catalog.are_files_known(model), "it was hashed while it was written"
        path = weights_of(catalog, "m")
        os.utime(path, (1, 1))
        assert not catalog.are_files_known(model)
        read: list[int] = []
        catalog.check_files(model, progress=read.append)
        assert read
        read.clear()
        catalog.check_files(model, progress=read.append)
        assert read == []

    def test_a_damaged_file_is_refused_with_its_digest(self, tmp_path: Path) -> None:
        catalog = filled(tmp_path)
        path = weights_of(catalog, "m")
        flip(path)
        with pytest.raises(ModelDamagedError, match=f"{path.name} doesn't hold what its name says") as failure:
            catalog.check_files(catalog.find("m"))
        assert failure.value.digest == path.name.removeprefix("sha256-")
        assert "oprel verify m:latest --repair" in failure.value.message

    def test_after_an_unclean_end_every_file_is_read_again(self, tmp_path: Path) -> None:
        catalog = filled(tmp_path)
        catalog.store.verified.forget_all()
        again = Catalog(Store(tmp_path / "models", state_dir=tmp_path / "state"))
        assert not again.are_files_known(again.find("m"))
        again.check_files(again.find("m"))
        assert again.are_files_known(again.find("m"))

    def test_a_stamp_outlives_the_process(self, tmp_path: Path) -> None:
        filled(tmp_path)
        again = Catalog(Store(tmp_path / "models", state_dir=tmp_path / "state"))
        assert again.are_files_known(again.find("m"))

    def test_a_file_is_read_by_one_thread_for_all(self, tmp_path: Path) -> None:
        path = tmp_path / "x"
        path.write_bytes(bytes(5 << 20))
        verified = Verified(tmp_path / "verified")
        digest = Digest("c036cbb7553a909f8b8877d4461924307f27ecb66cff928eeeafd569c3887e29")
        reads: list[int] = []
        threads = [
            threading.Thread(target=verified.check, args=(digest, path), kwargs={"progress": reads.append})
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert reads == [number << 20 for number in range(1, 6)]

    @pytest.mark.parametrize("text", ["", "[", "[[1,2]]", '{"a": 1}', "[[1,2,3,4,5]]"])
    def test_a_stamp_that_cant_be_read_costs_a_read(self, tmp_path: Path, text: str) -> None:
        path = tmp_path / "x"
        path.write_bytes(b"x")
        (tmp_path / "verified").mkdir()
        (tmp_path / "verified" / ("a" * 64)).write_text(text)
        assert not Verified(tmp_path / "verified").holds(Digest("a" * 64), path)


class TestMark:
    def test_a_clean_end_leaves_nothing(self, tmp_path: Path) -> None:
        for _ in range(2):
            mark = RunningMark(tmp_path)
            assert not mark.begin()
            mark.end()
        assert not list(tmp_path.iterdir())

    def test_two_servers_at_once_are_no_unclean_end(self, tmp_path: Path) -> None:
        first, second = RunningMark(tmp_path), RunningMark(tmp_path)
        assert not first.begin()
        assert not second.begin()
        first.end()
        second.end()

    def test_a_mark_that_nobody_holds_is_told_once(self, tmp_path: Path) -> None:
        script = (
            "import os, sys; from pathlib import Path; from oprel.store.running_mark import RunningMark; "
            "RunningMark(Path(sys.argv[1])).begin(); os._exit(9)"
        )
        assert subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False).returncode == 9
        mark = RunningMark(tmp_path)
        assert mark.begin()
        assert not RunningMark(tmp_path).begin()
        mark.end()
