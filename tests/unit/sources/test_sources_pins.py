"""A project's models, pinned by digest: locked, brought back the same to the byte, or not at all; and what is damaged
fetched again."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from support.lock_actions import FilePuller
from support.place import Place
from support.store_checks import assert_valid_store
from support.tiny_gguf import write_tiny_gguf

from oprel.errors import ConfigError, ModelNotFoundError, SourceError, StoreError
from oprel.sources.lockfile import read_lock, write_lock
from oprel.sources.repair import Repair
from oprel.sources.staging import Staging
from oprel.store import BlobRef, Catalog, Digest, ModelName, Store
from oprel.store.disk import FileLock
from oprel.store.verification import verify
from oprel.store.versions import Change

NAME = "from/source:1"


class FilePlace(Place):
    """A store, and a source that has one file for whatever is asked."""

    def __init__(self, folder: Path, file: Path) -> None:
        folder.mkdir()
        self.store = Store(folder / "models", state_dir=folder / "state")
        self.file = file
        self.pullers: list[FilePuller] = []
        super().__init__(Catalog(self.store))

    def make_puller(self, catalog: Catalog) -> FilePuller:
        self.pullers.append(FilePuller(catalog, self.file))
        return self.pullers[-1]

    @property
    def asked(self) -> list[str]:
        return [name for puller in self.pullers for name in puller.asked]

    def pull(self, source: str = "pypi:some-model==1.0") -> None:
        """Isn't among what was asked."""
        super().pull(source)
        self.pullers.pop()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_tiny_gguf(tmp_path / "v1.gguf", salt="v1")


@pytest.fixture
def here(tmp_path: Path, file: Path) -> FilePlace:
    place = FilePlace(tmp_path / "here", file)
    place.pull()
    return place


@pytest.fixture
def there(tmp_path: Path, file: Path) -> FilePlace:
    return FilePlace(tmp_path / "there", file)


def test_a_lock_has_digest_source_and_files(here: FilePlace, tmp_path: Path) -> None:
    locked = here.pins.lock("From/Source:1")
    model = here.catalog.find(NAME)
    assert (locked.name, locked.digest, locked.source) == (NAME, f"sha256:{model.digest}", "pypi:some-model==1.0")
    assert [file.media_type.rpartition(".")[2] for file in locked.files] == ["model", "v1+json"]
    assert locked.files[0].digest == f"sha256:{model.weights.digest}"
    write_lock(tmp_path / "oprel.lock", [locked])
    assert read_lock(tmp_path / "oprel.lock") == (locked,)


def test_it_is_brought_back_elsewhere_and_then_nothing_is_done(here: FilePlace, there: FilePlace) -> None:
    locked = here.pins.lock(NAME)
    assert there.pins.state(locked).state == "missing"
    assert there.sync(locked) == ["pulling manifest", "success"]
    assert there.asked == ["pypi:some-model==1.0"]
    assert there.catalog.find(NAME).digest == here.catalog.find(NAME).digest
    assert there.store.versions.of(locked.parsed)[0].source == "pypi:some-model==1.0"
    assert there.pins.state(locked).state == "here"
    assert there.sync(locked) == []
    assert len(there.asked) == 1
    assert not (there.store.state_dir / "staging").exists()


def test_what_differs_is_refused_and_never_visible(here: FilePlace, there: FilePlace, tmp_path: Path) -> None:
    locked = here.pins.lock(NAME)
    there.file = write_tiny_gguf(tmp_path / "v2.gguf", salt="v2")
    with pytest.raises(SourceError, match="has something else now than 'from/source:1' was locked with"):
        there.sync(locked)
    assert assert_valid_store(there.store.models_dir) == 0
    assert there.catalog.list() == ()
    assert not (there.store.state_dir / "staging").exists()


def test_a_name_with_another_version_gets_the_locked_one(here: FilePlace, there: FilePlace, tmp_path: Path) -> None:
    locked = here.pins.lock(NAME)
    there.file = write_tiny_gguf(tmp_path / "v2.gguf", salt="v2")
    there.pull()
    newer = there.catalog.find(NAME).digest
    state = there.pins.state(locked)
    assert (state.state, state.note) == ("differs", f"it is sha256:{newer[:12]} here")
    there.file = here.file
    there.sync(locked)
    assert there.catalog.find(NAME).digest == here.catalog.find(NAME).digest
    assert there.store.versions.kept() == {newer}


def test_a_version_that_is_kept_needs_no_network(here: FilePlace, tmp_path: Path) -> None:
    locked = here.pins.lock(NAME)
    here.file = write_tiny_gguf(tmp_path / "v2.gguf", salt="v2")
    here.pull()
    assert here.pins.state(locked).state == "kept"
    assert here.sync(locked) == ["success"]
    assert here.asked == []
    assert here.pins.state(locked).state == "here"


def test_another_name_with_the_same_version_needs_none_either(here: FilePlace) -> None:
    here.catalog.copy(here.catalog.find(NAME), ModelName.parse("mine"))
    locked = here.pins.lock("mine")
    assert locked.source == "pypi:some-model==1.0"
    here.catalog.delete("mine")
    assert here.sync(locked) == ["success"]
    assert here.asked == []


def test_a_damaged_one_is_brought_again(here: FilePlace) -> None:
    locked = here.pins.lock(NAME)
    Path(here.catalog.find(NAME).weights.path).unlink()
    assert here.pins.state(locked).state == "damaged"
    with pytest.raises(SourceError, match="can't be locked"):
        here.pins.lock(NAME)
    here.sync(locked)
    assert here.pins.state(locked).state == "here"


@pytest.mark.parametrize(
    "change", [Change("create"), Change("rollback"), Change("import", "file:/x.gguf")], ids=lambda change: change.action
)
def test_what_was_made_here_cant_be_locked(here: FilePlace, change: Change) -> None:
    data = here.catalog.manifest(here.catalog.find(NAME))
    here.store.versions.history.path.unlink()
    here.store.write_manifest(ModelName.parse("own"), data, change)
    with pytest.raises(SourceError, match="was made on this machine"):
        here.pins.lock("own")


def test_what_another_program_pulled_is_locked_by_its_name(here: FilePlace) -> None:
    here.store.versions.history.path.unlink()
    """With its host: what has an owner and no host is a repository of the hub."""
    assert here.pins.lock(NAME).source == f"registry.ollama.ai/{NAME}"


def test_a_model_that_isnt_here_cant_be_locked(here: FilePlace) -> None:
    with pytest.raises(ModelNotFoundError):
        here.pins.lock("absent")


def test_one_sync_at_a_time(here: FilePlace, there: FilePlace) -> None:
    with (
        FileLock(there.store.state_dir / "staging.lock").held(),
        pytest.raises(StoreError, match="locked by another process"),
    ):
        there.sync(here.pins.lock(NAME))


GOOD = 'version = 1\n[[model]]\nname = "a"\ndigest = "sha256:{d}"\nsource = "pypi:x"\nfiles = []\n'.replace(
    "{d}", "a" * 64
)
BAD = {
    "no TOML": "version = ",
    "another form": GOOD.replace("version = 1", "version = 2"),
    "no version": GOOD.replace("version = 1\n", ""),
    "a bad name": GOOD.replace('"a"', '"../../x"'),
    "a bad digest": GOOD.replace("sha256:a", "sha256:A"),
    "a bad source": GOOD.replace("pypi:x", "pypi:../x"),
    "a bad revision": GOOD.replace("pypi:x", "hf.co/o/r").replace("files", 'revision = "../x"\nfiles'),
    "a path": GOOD.replace("pypi:x", "file:/etc/passwd"),
    "an unknown key": GOOD + 'run = "sh"\n',
    "a bad file": GOOD.replace("files = []", 'files = [{digest = "sha256:../x", size = 1, type = "t"}]'),
    "a size that is none": GOOD.replace("files = []", 'files = [{digest = "x", size = "1", type = "t"}]'),
    "a name twice": GOOD + GOOD.replace("version = 1\n", "").replace('"a"', '"A:latest"'),
}


@pytest.mark.parametrize("text", BAD.values(), ids=BAD.keys())
def test_a_lock_from_elsewhere_is_read_strictly(tmp_path: Path, text: str) -> None:
    path = tmp_path / "oprel.lock"
    path.write_text(GOOD)
    assert [model.name for model in read_lock(path)] == ["a"]
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"oprel\.lock"):
        read_lock(path)


def test_no_lock_is_told_with_what_makes_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="oprel lock MODEL"):
        read_lock(tmp_path / "oprel.lock")


class TestRepair:
    def damage(self, place: FilePlace) -> Path:
        path = Path(place.catalog.find(NAME).weights.path)
        data = path.read_bytes()
        path.unlink()
        path.write_bytes(data[:-1] + b"?")
        return path

    def test_from_the_source_that_is_known(self, here: FilePlace) -> None:
        path = self.damage(here)
        (mended,) = here.repair()
        assert (mended.how, here.asked) == ("fetched again for from/source:1", ["pypi:some-model==1.0"])
        assert verify(here.catalog).findings == ()
        (aside,) = (here.store.state_dir / "quarantine").iterdir()
        assert aside.name.startswith(path.name)
        assert aside.read_bytes().endswith(b"?")

    def test_a_missing_small_file_too(self, here: FilePlace) -> None:
        for path in (here.store.models_dir / "blobs").iterdir():
            path.unlink()
        assert [bool(mended.how) for mended in here.repair()] == [True, True]
        assert verify(here.catalog).findings == ()

    def test_a_source_that_has_something_else_mends_nothing(self, here: FilePlace, tmp_path: Path) -> None:
        self.damage(here)
        here.file = write_tiny_gguf(tmp_path / "v2.gguf", salt="v2")
        (mended,) = here.repair()
        assert (mended.how, mended.problem) == ("", "its source has another version now")
        assert [finding.kind for finding in verify(here.catalog).harmful] == ["missing"]
        assert len(here.catalog.list()) == 1

    def test_from_another_store_on_this_machine(self, here: FilePlace, there: FilePlace) -> None:
        there.pull()
        self.damage(here)
        both = Catalog(here.store, extra_dirs=[there.store.models_dir])
        repair = Repair(both, here.make_puller)

        async def run() -> None:
            async for _ in repair.run(verify(both).harmful):
                pass

        asyncio.run(run())
        assert [mended.how for mended in repair.results] == [f"taken from {there.store.models_dir}"]
        assert here.asked == []
        assert verify(here.catalog).findings == ()

    def test_a_damaged_copy_in_another_store_is_not_taken(self, here: FilePlace, there: FilePlace) -> None:
        there.pull()
        self.damage(here)
        self.damage(there)
        both = Catalog(here.store, extra_dirs=[there.store.models_dir])
        repair = Repair(both, here.make_puller)

        async def run() -> None:
            async for _ in repair.run(verify(both).harmful):
                pass

        asyncio.run(run())
        assert [mended.how for mended in repair.results] == ["fetched again for from/source:1"]

    def test_what_has_no_source_is_told(self, here: FilePlace) -> None:
        data = here.catalog.manifest(here.catalog.find(NAME))
        here.store.versions.history.path.unlink()
        here.store.write_manifest(ModelName.parse(NAME), data, Change("create"))
        self.damage(here)
        (mended,) = here.repair()
        assert "was made on this machine" in mended.problem

    def test_a_manifest_that_cant_be_read_is_told_with_what_to_do(self, here: FilePlace) -> None:
        ModelName.parse(NAME).manifest_path(here.store.models_dir).write_bytes(b"")
        (mended,) = here.repair()
        assert mended.problem == "pull it again, or remove it: oprel rm from/source:1"


def test_a_staged_store_is_seeded_with_what_is_here(here: FilePlace) -> None:
    """Only what is missing has to be fetched."""
    blobs = [Digest.parse(path.name) for path in (here.store.models_dir / "blobs").iterdir()]
    files = here.pins.lock(NAME).files
    with Staging.opened(here.store, here.catalog.aliases, here.make_puller) as staging:
        staging.seed([BlobRef(Digest.parse(file.digest), file.size) for file in files])
        assert all(staging.blob_path(digest).is_file() for digest in blobs)
