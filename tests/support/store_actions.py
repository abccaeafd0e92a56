"""What is done to a store in processes that die: each takes the folder that the store is in, and the disk."""

from __future__ import annotations

from pathlib import Path

from oprel.store import ModelName, Store
from oprel.store import store as store_module
from oprel.store.disk import Disk
from support.tiny_gguf import write_tiny_gguf

__all__ = ["delete", "import_new", "opened", "prepared"]


def opened(folder: Path, disk: Disk | None = None) -> Store:
    return Store(folder / "models", state_dir=folder / "state", disk=disk)


def prepared(folder: Path) -> Store:
    """A store with an older version of the model `m`, and another model that shares nothing."""
    folder.mkdir()
    write_tiny_gguf(folder / "new.gguf", salt="new")
    store = opened(folder)
    store.import_gguf(write_tiny_gguf(folder / "old.gguf", salt="old"), "m")
    store.import_gguf(write_tiny_gguf(folder / "other.gguf", salt="other"), "other")
    return store


def import_new(folder: Path, disk: Disk) -> None:
    opened(folder, disk).import_gguf(folder / "new.gguf", "m", licenses=["yours"])


def delete(folder: Path, disk: Disk) -> None:
    """With garbage collected at once."""
    store_module.GRACE_S = -1.0
    opened(folder, disk).delete(ModelName.parse("m"))
