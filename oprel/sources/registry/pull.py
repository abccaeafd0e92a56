"""Pull: manifest → each blob that isn't here, in its order, the config last → manifest written, byte for byte.

Nothing of what the registry says is believed: digests are parsed before any of them becomes a path or a URL, sizes are
bounded and compared with the disk, every blob is hashed, whatever else has the same digest. Nor is a file in the store
that has the right name and size, unless it looks as it did when it was last found whole.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from oprel.errors import InvalidRequestError, ModelNotFoundError, SourceError
from oprel.sources.progress import Completed, PullProgress, Report
from oprel.sources.registry.bodies import read_body
from oprel.sources.registry.reach import Reach
from oprel.sources.registry.session import MANIFEST_TYPE, RegistrySession
from oprel.sources.registry.sharing import SharedDownloads
from oprel.sources.retries import retried
from oprel.sources.threads import StopFlag, in_thread
from oprel.sources.transfer import fetch_blob
from oprel.store import BlobRef, ModelName, Store
from oprel.store.blobs import require_space
from oprel.store.manifests import MAX_MANIFEST_BYTES, Manifest, parse_manifest
from oprel.store.resumable import reserve_bytes

__all__ = ["RegistryPull"]

MAX_CONFIG_BYTES = 1 << 20
_DOING = "pull model manifest"


class RegistryPull:
    def __init__(self, store: Store, shared: SharedDownloads, reach: Reach) -> None:
        self._store = store
        self._shared = shared
        self._reach = reach

    async def run(self, name: ModelName, report: Report) -> ModelName:
        """The name as it is spelled in the store. Cancelling it leaves whole blobs and partial files, no manifest.
        Raises SourceError, ModelNotFoundError, StoreError."""
        report(PullProgress("pulling manifest"))
        async with self._reach.client(name) as client:
            session = RegistrySession(client, name, self._reach)
            data = await retried(lambda: self._manifest(session))
        manifest = _checked(data)
        await asyncio.to_thread(self._require_space, manifest)
        for blob in manifest.blobs:
            await self._blob(session, blob, report)
        report(PullProgress("verifying sha256 digest"))
        report(PullProgress("writing manifest"))
        spelled, _ = await asyncio.to_thread(self._store.write_manifest, name, data)
        return spelled

    async def _manifest(self, session: RegistrySession) -> bytes:
        url = f"{session.base}/manifests/{session.name.tag}"
        async with session.send("GET", url, headers={"Accept": MANIFEST_TYPE}, follow=True) as response:
            if response.status == 404:
                raise ModelNotFoundError(f"{_DOING}: file does not exist", model=str(session.name))
            if response.status != 200:
                raise await session.failed(_DOING, response)
            return await read_body(response, MAX_MANIFEST_BYTES)

    def _require_space(self, manifest: Manifest) -> None:
        """Raises NoSpaceError when what isn't here wouldn't fit."""
        missing = {blob for blob in manifest.blobs if not self._store.has_blob(blob)}
        if missing:
            folder, disk = self._store.partial_dir(), self._store.disk
            require_space(disk, folder, sum(blob.size_bytes for blob in missing) + reserve_bytes(disk, folder))

    async def _blob(self, known: RegistrySession, blob: BlobRef, report: Report) -> None:
        def completed(done: int, total: int | None) -> None:
            report(PullProgress(f"pulling {blob.digest.short}", str(blob.digest), blob.size_bytes, done))

        if await self._is_here(blob, completed):
            completed(blob.size_bytes, None)
            return

        async def start(tell: Callable[[int, int | None], None]) -> None:
            # A client of its own: whoever began may leave before those who wait with it.
            async with self._reach.client(known.name) as client:
                session = RegistrySession(client, known.name, self._reach, known=known)
                with await fetch_blob(
                    client,
                    f"{session.base}/blobs/{blob.digest}",
                    self._store,
                    digest=blob.digest,
                    size_bytes=blob.size_bytes,
                    max_bytes=blob.size_bytes,
                    completed=tell,
                    headers=session.headers,
                    renew=session.renew,
                ) as fetched:
                    await asyncio.to_thread(fetched.publish)

        await self._shared.fetch(str(blob.digest), start, completed)

    async def _is_here(self, blob: BlobRef, completed: Completed) -> bool:
        """A blob that is damaged isn't: fetching it puts a good one in its place."""
        loop = asyncio.get_running_loop()

        def run(stop: StopFlag) -> bool:
            def progress(done: int) -> None:
                stop.check()
                loop.call_soon_threadsafe(completed, done, None)

            return self._store.has_whole_blob(blob, progress=progress)

        return await in_thread(run)


def _checked(data: bytes) -> Manifest:
    try:
        manifest = parse_manifest(data)
    except InvalidRequestError as problem:
        raise SourceError("invalid digest" if problem.param == "digest" else f"{_DOING}: {problem.message}") from None
    if manifest.config.size > MAX_CONFIG_BYTES:
        raise SourceError(f"{_DOING}: its config is larger than {MAX_CONFIG_BYTES >> 20} MiB")
    sizes: dict[str, int] = {}
    for layer in (manifest.config, *manifest.layers):
        if sizes.setdefault(layer.digest, layer.size) != layer.size:
            raise SourceError(f"{_DOING}: it gives two sizes for {layer.digest}")
    return manifest
