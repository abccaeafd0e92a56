"""What is done to a store in processes that die: each takes the folder that the store is in, and the disk."""

from __future__ import annotations

from pathlib import Path

from oprel.store import Catalog, ModelName, Store
from oprel.store import store as store_module
from oprel.store.creating import Base, Creating
from oprel.store.disk import Disk
from oprel.store.manifests import ManifestEntry
from oprel.store.recipes import GivenFile, GivenMessage, Recipe
from support.crashing import UnsyncedDisk
from support.lock_actions import bring
from support.tiny_gguf import write_tiny_gguf

__all__ = [
    "collect",
    "copy",
    "create",
    "create_uploaded",
    "delete",
    "import_new",
    "opened",
    "prepared",
    "repair_aside",
    "rollback",
    "sync",
]


def opened(folder: Path, disk: Disk | None = None) -> Store:
    return Store(folder / "models", state_dir=folder / "state", disk=disk or UnsyncedDisk())


def prepared(folder: Path) -> Store:
    """A store with two versions of the model `m`, and another model that shares nothing."""
    folder.mkdir()
    write_tiny_gguf(folder / "new.gguf", salt="new")
    store = opened(folder)
    for salt, name in (("older", "m"), ("old", "m"), ("other", "other")):
        path = write_tiny_gguf(folder / f"{salt}.gguf", salt=salt)
        store.import_gguf(path, name)
        path.unlink()
    return store


def import_new(folder: Path, disk: Disk) -> None:
    opened(folder, disk).import_gguf(folder / "new.gguf", "m", licenses=["yours"])


def create(folder: Path, disk: Disk) -> None:
    """Of another model, with a layer of each kind."""
    store = opened(folder, disk)
    catalog = Catalog(store)
    found = catalog.manifest_of(catalog.find("other"))
    assert found is not None
    recipe = Recipe(
        name=ModelName.parse("m"),
        base="other",
        system="S",
        template="T",
        licenses=("L",),
        parameters={"top_k": 3},
        messages=(GivenMessage("user", "Hi"),),
    )
    Creating(store, recipe, lambda *told: None).run(Base("other:latest", *found))


def create_uploaded(folder: Path, disk: Disk) -> None:
    """Of a file that is uploaded first."""
    store = opened(folder, disk)
    blob = store.add_file(folder / "new.gguf")
    recipe = Recipe(name=ModelName.parse("m"), files=(GivenFile("new.gguf", blob.digest),), system="S")
    Creating(store, recipe, lambda *told: None).run(None)


def delete(folder: Path, disk: Disk) -> None:
    """With garbage collected at once."""
    store_module.GRACE_S = -1.0
    opened(folder, disk).delete(ModelName.parse("m"))


def collect(folder: Path, disk: Disk) -> None:
    store_module.GRACE_S = -1.0
    opened(folder, disk).collect_garbage()


def copy(folder: Path, disk: Disk) -> None:
    """Over another model."""
    opened(folder, disk).copy(ModelName.parse("m"), ModelName.parse("other"))


def rollback(folder: Path, disk: Disk) -> None:
    """After the blobs of the version before were removed as unused."""
    opened(folder, disk).rollback(ModelName.parse("m"))


def repair_aside(folder: Path, disk: Disk) -> None:
    """A model of another store taken in, as a repair, a copy and a sync do."""
    theirs = ModelName.parse("theirs")
    root = folder / "theirs" / "models"
    opened(folder, disk).adopt(ManifestEntry(theirs, theirs.manifest_path(root), root), ModelName.parse("m"))


def sync(folder: Path, disk: Disk) -> None:
    """`support.lock_actions` has the rest: a source to pull from."""
    bring(folder, opened(folder, disk))
