"""Files of a folder's model, damaged in each way: those alone are fetched again, from where it was pulled; and where
there is nothing to fetch from, that is said."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.hub import HubServer, Repo, running_hub
from support.hub_place import HubPlace, files_of
from support.tree_folders import write_folder, write_safetensors

from oprel.store import ModelName
from oprel.store.creating_trees import CreatingTree
from oprel.store.recipes import Recipe
from oprel.store.verification import verify

REPO = "tiny-org/Tiny-1B"
NAME = f"hf.co/{REPO}:latest"
SECOND = "2_Dense/model.safetensors"


@pytest.fixture(scope="module")
def running() -> Iterator[HubServer]:
    with running_hub() as server:
        yield server


@pytest.fixture
def hub(running: HubServer) -> HubServer:
    running.forget()
    return running


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("oprel.sources.retries.wait_before_retry", lambda state: 0.0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = write_folder(tmp_path / "source")
    write_safetensors(folder / SECOND, {"dense": ("F32", (8, 8))})
    return folder


@pytest.fixture
def repo(hub: HubServer, folder: Path) -> Repo:
    return hub.add(REPO, files_of(folder))


@pytest.fixture
def place(tmp_path: Path, hub: HubServer, repo: Repo) -> HubPlace:
    place = HubPlace(tmp_path / "here", hub)
    place.pull(REPO)
    place.take_fetched()
    return place


def flip(path: Path) -> None:
    """Another file with other content, so that no other link of it changes."""
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def link_away(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/null")


DAMAGES: dict[str, Callable[[Path], None]] = {
    "missing": Path.unlink, "cut": cut, "altered": flip, "a folder": make_folder, "a link": link_away,
}  # fmt: skip


def looks(folder: Path) -> dict[str, tuple[int, int]]:
    found = {str(path.relative_to(folder)): path.lstat() for path in folder.rglob("*") if path.is_file()}
    return {name: (status.st_ino, status.st_mtime_ns) for name, status in found.items()}


ONE_FILE = [*((name, "model.safetensors") for name in DAMAGES), ("altered", "config.json"), ("missing", SECOND)]


@pytest.mark.parametrize(("damaged", "name"), ONE_FILE)
def test_one_file_is_fetched_again_and_no_other_is_touched(place: HubPlace, damaged: str, name: str) -> None:
    damage = DAMAGES[damaged]
    path = place.file(NAME, name)
    root = place.trees.folder_of(place.catalog.find(NAME))
    before = looks(root)
    damage(path)
    (mended,) = place.repair()
    assert (mended.how, mended.problem) == (f"fetched again from hf.co/{REPO}", "")
    assert place.take_fetched() == [name]
    assert verify(place.catalog).findings == ()
    assert place.catalog.find(NAME).damage is None
    after = looks(root)
    assert {each for each in before if before[each] != after[each]} <= {name}
    assert after.keys() == before.keys()
    aside = place.store.state_dir / "quarantine"
    assert aside.exists() == (damage is not Path.unlink), "what was there is put aside"
    assert [path.name for path in place.trees.trees_dir.iterdir() if path.name.startswith((".oprel", "oprel-"))] == []


def test_a_folder_that_is_gone_is_fetched_whole(place: HubPlace) -> None:
    shutil.rmtree(place.trees.folder_of(place.catalog.find(NAME)))
    results = place.repair()
    assert len(results) == len(place.take_fetched()) == 5
    assert all(mended.how for mended in results)
    assert verify(place.catalog).findings == ()


def test_the_commit_that_was_pulled_is_asked_for(place: HubPlace, repo: Repo) -> None:
    repo.move_on(repo.files | {"model.safetensors": b"other"})
    place.file(NAME, "model.safetensors").unlink()
    (mended,) = place.repair()
    assert mended.how
    assert verify(place.catalog).findings == ()


def test_a_rewritten_repository_that_still_has_the_file_will_do(place: HubPlace, repo: Repo) -> None:
    repo.files["README.md"] = b"another commit, and the old one is gone"
    place.file(NAME, "model.safetensors").unlink()
    (mended,) = place.repair()
    assert mended.how
    assert place.take_fetched() == ["model.safetensors"]


def test_a_source_that_moved_on_is_told_and_nothing_is_fetched(place: HubPlace, repo: Repo, folder: Path) -> None:
    write_safetensors(folder / "model.safetensors", {"other": ("BF16", (32, 64))})
    repo.files["model.safetensors"] = (folder / "model.safetensors").read_bytes()
    repo.files["tokenizer.json"] = b"[]"
    flip(place.file(NAME, "model.safetensors"))
    flip(place.file(NAME, "tokenizer.json"))
    results = place.repair()
    assert {(mended.how, mended.problem) for mended in results} == {("", "its source has another version now")}
    assert place.hub.cdn.requests == []
    assert len(verify(place.catalog).harmful) == 2, "what is there stays"


def test_what_the_source_sends_is_checked_before_it_is_visible(place: HubPlace, repo: Repo) -> None:
    """Its listing says the right digest, and it sends something else."""
    path = place.file(NAME, "model.safetensors")
    right = repo.files["model.safetensors"]
    assert isinstance(right, bytes)
    wrong = bytes(len(right))
    place.hub.special[place.hub.resolve_path(repo, "model.safetensors")] = lambda handler: handler.answer(200, wrong)
    path.unlink()
    (mended,) = place.repair()
    assert (mended.how, "digest" in mended.problem) == ("", True)
    assert not path.exists()


def test_a_source_that_cant_be_reached_is_told(place: HubPlace, repo: Repo) -> None:
    del place.hub.repos[REPO]
    place.file(NAME, "model.safetensors").unlink()
    (mended,) = place.repair()
    assert (mended.how, "isn't on the hub" in mended.problem) == ("", True)


def create(place: HubPlace, name: str) -> None:
    """Of the model that was pulled, with a system text."""
    recipe = Recipe(name=ModelName.parse(name), base=NAME, system="S")
    CreatingTree(place.store, place.trees, recipe, lambda *told: None).run(place.catalog.find(NAME))


def test_a_file_that_another_model_has_isnt_fetched(place: HubPlace) -> None:
    create(place, "mine")
    path = place.file(NAME, "model.safetensors")
    flip(path)
    (mended,) = place.repair()
    assert mended.how == f"taken from {place.file('mine', 'model.safetensors').parent}"
    assert place.take_fetched() == []
    assert verify(place.catalog).findings == ()


def test_a_file_that_two_models_share_is_fetched_once_for_both(place: HubPlace) -> None:
    """It is one file with two names where blocks can't be shared, and so both are damaged."""
    create(place, "mine")
    for model in (NAME, "mine"):
        flip(place.file(model, "model.safetensors"))
    assert [mended.how for mended in place.repair()] == [f"fetched again from hf.co/{REPO}"] * 2
    assert place.take_fetched() == ["model.safetensors"]
    assert verify(place.catalog).findings == ()


def test_a_text_that_was_given_here_has_no_source(place: HubPlace) -> None:
    create(place, "mine")
    flip(place.file("mine", "oprel.system.txt"))
    (mended,) = place.repair()
    assert mended.problem == (
        "it was made on this machine, and there is nowhere to fetch it from: make the model again"
    )
    assert place.take_fetched() == []


class TestImported:
    @pytest.fixture
    def imported(self, tmp_path: Path, hub: HubServer, folder: Path) -> HubPlace:
        place = HubPlace(tmp_path / "there", hub)
        place.trees.add(folder, "m")
        return place

    def test_from_the_folder_that_it_was_made_of(self, imported: HubPlace, folder: Path) -> None:
        imported.file("m", SECOND).unlink()
        (mended,) = imported.repair()
        assert mended.how == f"taken from {(folder / SECOND).parent}"
        assert verify(imported.catalog).findings == ()

    @pytest.mark.parametrize("is_gone", [True, False], ids=["gone", "changed"])
    def test_a_folder_that_hasnt_got_it_is_told(self, imported: HubPlace, folder: Path, is_gone: bool) -> None:
        flip(folder / "model.safetensors")
        if is_gone:
            shutil.rmtree(folder)
        imported.file("m", "model.safetensors").unlink()
        (mended,) = imported.repair()
        assert mended.problem == f"it was imported from {folder}, which hasn't got it any more: import the folder again"
        assert imported.hub.requests == []

    def test_importing_it_again_mends_what_only_reading_finds(self, imported: HubPlace, tmp_path: Path) -> None:
        flip(imported.file("m", "model.safetensors"))
        again = write_folder(tmp_path / "again")
        write_safetensors(again / SECOND, {"dense": ("F32", (8, 8))})
        imported.trees.add(again, "m")
        assert verify(imported.catalog).findings == ()
