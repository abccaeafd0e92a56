"""A store beside the store, where a model is pulled before it is known to be the right one: nothing of it is visible.

It lies in the state folder and stays there when a pull is cut off, so that the next one may go on from it.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from pathlib import Path

from oprel.sources.progress import PullProgress
from oprel.sources.puller import Puller
from oprel.sources.wishes import PullWish
from oprel.store import Aliases, BlobRef, Catalog, Digest, Store, Trees
from oprel.store.disk import FileLock
from oprel.store.manifests import ManifestEntry, iter_manifests

__all__ = ["MakePuller", "Staging"]

MakePuller = Callable[[Catalog], Puller]


class Staging:
    """Of one process at a time; made by `opened`."""

    def __init__(self, store: Store, folder: Path, aliases: Aliases, make_puller: MakePuller) -> None:
        self.store = Store(folder / "models", state_dir=folder / "state", disk=store.disk)
        self.trees = Trees(folder / "trees", state_dir=folder / "state", disk=store.disk)
        self._home = store
        self._folder = folder
        self._catalog = Catalog(self.store, aliases=aliases, shelves=(self.trees,))
        self._puller = make_puller(self._catalog)

    @classmethod
    @contextlib.contextmanager
    def opened(cls, store: Store, aliases: Aliases, make_puller: MakePuller) -> Iterator[Staging]:
        """Raises StoreError when another process has it. What is in it goes when all went well."""
        lock = FileLock(store.state_dir / "staging.lock", limit_s=1.0)
        with lock.held():
            staging = cls(store, store.state_dir / "staging", aliases, make_puller)
            yield staging
            staging.clear()

    def clear(self) -> None:
        self.store.disk.remove_tree(self._folder)

    def seed(self, blobs: Sequence[BlobRef]) -> None:
        """Lend it what the store has already, by links: that isn't fetched again."""
        disk = self.store.disk
        disk.make_folder(self.store.models_dir / "blobs")
        for blob in blobs:
            source, target = (blob.digest.blob_path(store.models_dir) for store in (self._home, self.store))
            if self._home.has_blob(blob) and not target.exists():
                with contextlib.suppress(OSError):
                    disk.link(source, target)

    async def pull(self, source: str) -> AsyncGenerator[PullProgress, None]:
        """What the pinned version is was decided when it was pinned: low quality is no reason to refuse it."""
        wish = PullWish(allow_low_quality=True)
        async with contextlib.aclosing(self._puller.pull(source, wish=wish)) as lines:
            async for line in lines:
                if line.status != "success":  # the model isn't there yet
                    yield line

    def entry(self, digest: str) -> ManifestEntry | None:
        """The manifest of that digest among what was pulled."""
        for model in self._catalog.list(described=False):
            if model.digest == digest:
                for root in (self.store.models_dir, self.trees.trees_dir):
                    for entry in iter_manifests(root):
                        if str(entry.name) == model.name:
                            return entry
        return None

    def has_tree(self, digest: str) -> bool:
        return (self.trees.trees_dir / digest).is_dir()

    def blob_path(self, digest: Digest) -> Path:
        return digest.blob_path(self.store.models_dir)
