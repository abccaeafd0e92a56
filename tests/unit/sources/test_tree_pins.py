"""A model that is a folder, pinned by its digest and brought back elsewhere from the hub, the same to the byte or not
at all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace
from support.hub import HubServer, Repo, running_hub
from support.hub_place import HubPlace, files_of
from support.tree_folders import write_folder

from oprel.errors import SourceError
from oprel.sources.lockfile import LockedModel, read_lock, write_lock
from oprel.store import ModelName
from oprel.store.verification import verify

REPO = "tiny-org/Tiny-1B"
NAME = f"hf.co/{REPO}:latest"


@pytest.fixture(scope="module")
def running() -> Iterator[HubServer]:
    with running_hub() as server:
        yield server


@pytest.fixture
def hub(running: HubServer) -> HubServer:
    running.forget()
    return running


@pytest.fixture
def repo(hub: HubServer, tmp_path: Path) -> Repo:
    return hub.add(REPO, files_of(write_folder(tmp_path / "source")))


@pytest.fixture
def here(tmp_path: Path, hub: HubServer, repo: Repo) -> HubPlace:
    place = HubPlace(tmp_path / "here", hub)
    place.pull(REPO)
    place.take_fetched()
    return place


@pytest.fixture
def there(tmp_path: Path, hub: HubServer) -> HubPlace:
    return HubPlace(tmp_path / "there", hub)


def without_revision(model: LockedModel) -> LockedModel:
    """As locked by who doesn't know the commit: then the branch is asked."""
    return replace(model, revision="")


def test_the_lock_has_the_digest_and_every_file(here: HubPlace, tmp_path: Path) -> None:
    locked = here.pins.lock(REPO)
    model = here.catalog.find(REPO)
    assert (locked.name, locked.digest, locked.source) == (NAME, f"sha256:{model.digest}", f"hf.co/{REPO}")
    assert {file.name for file in locked.files} == {
        "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    assert {file.digest for file in locked.files} == {f"sha256:{file.digest}" for file in model.files}
    write_lock(tmp_path / "oprel.lock", [locked])
    assert read_lock(tmp_path / "oprel.lock") == (locked,)


def test_it_is_brought_back_elsewhere(here: HubPlace, there: HubPlace) -> None:
    locked = here.pins.lock(REPO)
    assert there.pins.state(locked).state == "missing"
    assert there.sync(locked)[-1] == "success"
    assert there.catalog.find(REPO).digest == here.catalog.find(REPO).digest
    assert verify(there.catalog).findings == ()
    assert there.pins.state(locked).state == "here"
    there.take_fetched()
    assert (there.sync(locked), there.take_fetched()) == ([], [])
    assert there.pins.lock(REPO).digest == locked.digest, "it can be locked there in its turn"
    assert not (there.store.state_dir / "staging").exists()


def test_a_source_that_moved_on_is_refused_and_nothing_is_visible(
    here: HubPlace, there: HubPlace, repo: Repo, tmp_path: Path
) -> None:
    locked = without_revision(here.pins.lock(REPO))
    repo.files |= files_of(write_folder(tmp_path / "newer", hidden_size=128))
    with pytest.raises(SourceError) as refused:
        there.sync(locked)
    assert refused.value.message == (
        f"hf.co/{REPO} has something else now than '{NAME}' was locked with ({locked.digest[:19]}): "
        "nothing was changed."
    )
    assert there.catalog.list() == ()
    assert not [path for path in there.trees.trees_dir.glob("*") if path.is_dir()]
    assert not (there.store.state_dir / "staging").exists()


def test_what_is_there_stays_when_the_source_moved_on(
    here: HubPlace, there: HubPlace, repo: Repo, tmp_path: Path
) -> None:
    locked = without_revision(here.pins.lock(REPO))
    repo.files |= files_of(write_folder(tmp_path / "newer", hidden_size=128))
    there.pull(REPO)
    newer = there.catalog.find(REPO).digest
    assert there.pins.state(locked).state == "differs"
    with pytest.raises(SourceError, match="has something else now"):
        there.sync(locked)
    assert there.catalog.find(REPO).digest == newer
    assert verify(there.catalog).findings == ()


def test_a_version_that_is_kept_needs_no_network(here: HubPlace, repo: Repo, tmp_path: Path) -> None:
    locked = here.pins.lock(REPO)
    repo.move_on(files_of(write_folder(tmp_path / "newer", hidden_size=128)))
    here.pull(REPO)
    here.take_fetched()
    assert here.pins.state(locked).state == "kept"
    assert (here.sync(locked), here.take_fetched()) == (["success"], [])
    assert here.catalog.find(REPO).digest == locked.hex


def test_another_name_with_the_same_version_needs_none_either(here: HubPlace) -> None:
    here.catalog.copy(here.catalog.find(REPO), ModelName.parse("mine"))
    locked = here.pins.lock("mine")
    assert locked.source == f"hf.co/{REPO}"
    here.catalog.delete("mine")
    assert (here.sync(locked), here.take_fetched()) == (["success"], [])
    assert here.pins.state(locked).state == "here"


@pytest.mark.parametrize("is_gone", [True, False], ids=["a file gone", "a file cut"])
def test_a_damaged_one_is_brought_again(here: HubPlace, is_gone: bool) -> None:
    locked = here.pins.lock(REPO)
    path = here.file(REPO, "model.safetensors")
    path.unlink() if is_gone else path.write_bytes(b"")
    assert here.pins.state(locked).state == "damaged"
    assert here.sync(locked)[-1] == "success"
    assert verify(here.catalog).findings == ()


def test_what_was_imported_cant_be_locked(there: HubPlace, tmp_path: Path, hub: HubServer) -> None:
    there.trees.add(write_folder(tmp_path / "mine"), "m")
    with pytest.raises(SourceError, match="was made on this machine, so that it can't be fetched"):
        there.pins.lock("m")
