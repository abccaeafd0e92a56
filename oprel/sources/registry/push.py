"""Push: each blob that the registry lacks, the config last, then the manifest, byte for byte.

Blobs go by `sources.registry.upload`. Nothing is sent for one that the registry has, or takes from another of its
repositories.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from oprel.errors import InvalidRequestError, ModelNotFoundError, OprelError, StoreError
from oprel.sources.progress import PullProgress, Report
from oprel.sources.registry.reach import Reach
from oprel.sources.registry.session import MANIFEST_TYPE, RegistrySession
from oprel.sources.registry.upload import Upload
from oprel.sources.retries import retried
from oprel.store import ModelName
from oprel.store.manifests import Layer, Manifest, find_spelling, parse_manifest, read_small
from oprel.store.store import Store

__all__ = ["RegistryPush"]

MAX_MANIFEST_BYTES = 4 << 20


class RegistryPush:
    """Reads the store and writes nothing there."""

    def __init__(self, store: Store, roots: tuple[Path, ...], reach: Reach) -> None:
        self._store = store
        self._roots = roots
        self._reach = reach

    async def run(self, name: ModelName, report: Report) -> None:
        """Raises ModelNotFoundError, SourceError, StoreError."""
        report(PullProgress("retrieving manifest"))
        try:
            root, data, manifest = await asyncio.to_thread(self._local, name)
        except OprelError:
            report(PullProgress("couldn't retrieve manifest"))
            raise
        async with self._reach.client(name) as client:
            session = RegistrySession(client, name, self._reach)
            for layer in _each_once(manifest):
                await self._blob(session, root, layer, report)
            report(PullProgress("pushing manifest"))
            await retried(lambda: self._put_manifest(session, data))

    def _local(self, name: ModelName) -> tuple[Path, bytes, Manifest]:
        for root in self._roots:
            path = find_spelling(root, name).manifest_path(root)
            if not path.is_file():
                continue
            data = read_small(path, MAX_MANIFEST_BYTES)
            try:
                return root, data, parse_manifest(data)
            except InvalidRequestError as problem:
                raise StoreError(f"The manifest of {str(name)!r} is damaged: {problem.message}.") from problem
        raise ModelNotFoundError(f"Model {str(name)!r} isn't here.", model=str(name))

    async def _blob(self, session: RegistrySession, root: Path, layer: Layer, report: Report) -> None:
        blob = layer.blob

        def completed(done: int) -> None:
            report(PullProgress(f"pushing {blob.digest.short}", str(blob.digest), blob.size_bytes, done))

        path = blob.digest.blob_path(root)
        upload = Upload(session, blob, path, completed)
        if not await retried(upload.is_there):
            size = await asyncio.to_thread(_size_of, path)
            if size != blob.size_bytes:
                raise StoreError(f"The blob {blob.digest} of {str(session.name)!r} is damaged; pull it again.")
            await upload.run(_mountable(layer, session.name))
        completed(blob.size_bytes)

    async def _put_manifest(self, session: RegistrySession, data: bytes) -> None:
        url = f"{session.base}/manifests/{session.name.tag}"
        async with session.send("PUT", url, headers={"Content-Type": MANIFEST_TYPE}, content=data) as response:
            if not 200 <= response.status < 300:
                raise await session.failed("push model manifest", response)


def _each_once(manifest: Manifest) -> tuple[Layer, ...]:
    return tuple({layer.digest: layer for layer in (*manifest.layers, manifest.config)}.values())


def _mountable(layer: Layer, name: ModelName) -> str | None:
    """The repository of the same registry that the layer came from, as far as the manifest says."""
    try:
        origin = ModelName.parse(layer.origin)
    except InvalidRequestError:
        return None
    is_other = (origin.namespace, origin.model) != (name.namespace, name.model)
    return f"{origin.namespace}/{origin.model}" if origin.host == name.host and is_other else None


def _size_of(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1
