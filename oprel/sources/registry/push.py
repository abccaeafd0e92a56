"""Push: each blob that the registry lacks, the config last, then the manifest, byte for byte.

A blob goes in parts of 64 MiB (`PATCH`), each to the address that the last answer gave; a part that is redirected goes
there by `PUT`, without the login. An upload that breaks is begun again: how much of it arrived can't be known.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from urllib.parse import urlencode

from oprel.errors import InvalidRequestError, ModelNotFoundError, OprelError, SourceError, StoreError
from oprel.net.outside import OutsideResponse, next_url
from oprel.sources.progress import PullProgress, Report
from oprel.sources.registry.reach import Reach
from oprel.sources.registry.session import MANIFEST_TYPE, RegistrySession
from oprel.store import BlobRef, ModelName
from oprel.store.manifests import Layer, Manifest, find_spelling, parse_manifest, read_small
from oprel.store.store import Store

__all__ = ["RegistryPush"]

PART_BYTES = 64 << 20
MAX_MANIFEST_BYTES = 4 << 20
_BLOCK_BYTES = 1 << 20

Completed = Callable[[int], None]


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
            await session.retried(lambda: self._put_manifest(session, data))

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

        if not await session.retried(lambda: self._is_there(session, blob)):
            path = blob.digest.blob_path(root)
            size = await asyncio.to_thread(_size_of, path)
            if size != blob.size_bytes:
                raise StoreError(f"The blob {blob.digest} of {str(session.name)!r} is damaged; pull it again.")
            await session.retried(lambda: _Upload(session, blob, path, completed).run(_mountable(layer, session.name)))
        completed(blob.size_bytes)

    async def _is_there(self, session: RegistrySession, blob: BlobRef) -> bool:
        async with session.send("HEAD", f"{session.base}/blobs/{blob.digest}", follow=True) as response:
            if response.status == 404:
                return False
            if response.status != 200:
                raise await session.failed(f"push {blob.digest.short}", response)
            return True

    async def _put_manifest(self, session: RegistrySession, data: bytes) -> None:
        url = f"{session.base}/manifests/{session.name.tag}"
        async with session.send("PUT", url, headers={"Content-Type": MANIFEST_TYPE}, content=data) as response:
            if not 200 <= response.status < 300:
                raise await session.failed("push model manifest", response)


class _Upload:
    """One try to bring one blob there."""

    def __init__(self, session: RegistrySession, blob: BlobRef, path: Path, completed: Completed) -> None:
        self._session = session
        self._blob = blob
        self._path = path
        self._completed = completed
        self._part_sums: list[bytes] = []

    async def run(self, mount_from: str | None) -> None:
        url = await self._begin(mount_from)
        if url is None:
            return
        self._completed(0)
        for first in range(0, self._blob.size_bytes, PART_BYTES):
            url = await self._part(url, first, min(first + PART_BYTES, self._blob.size_bytes))
        await self._end(url)

    async def _begin(self, mount_from: str | None) -> str | None:
        """Where the first part goes; None when the registry took the blob from another of its repositories."""
        url = f"{self._session.base}/blobs/uploads/"
        if mount_from is not None:
            url += "?" + urlencode({"mount": str(self._blob.digest), "from": mount_from})
        async with self._session.send("POST", url, content=b"") as response:
            if response.status == 201:
                return None
            if response.status != 202:
                raise await self._failed(response)
            return self._next(url, response)

    async def _part(self, url: str, first: int, end: int) -> str:
        headers = {
            "Content-Type": "application/octet-stream",
            "Content-Range": f"{first}-{end - 1}",
            "Content-Length": str(end - first),
            "X-Redirect-Uploads": "1",
        }
        async with self._session.send(
            "PATCH", url, headers=headers, content=lambda: self._read(first, end)
        ) as response:
            if response.status == 307 and "location" in response.headers:
                elsewhere = next_url(url, response.headers["location"])
                after = response.headers.get("docker-upload-location")
                url = url if after is None else next_url(url, after)
            elif 200 <= response.status < 300:
                return self._next(url, response)
            else:
                raise await self._failed(response)
        await self._put_elsewhere(elsewhere, first, end)
        return url

    async def _put_elsewhere(self, url: str, first: int, end: int) -> None:
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(end - first)}
        async with self._session.send("PUT", url, headers=headers, content=lambda: self._read(first, end)) as response:
            if not 200 <= response.status < 300:
                raise await self._failed(response)
        self._part_sums.append(await asyncio.to_thread(_md5, self._path, first, end))

    async def _end(self, url: str) -> None:
        query = {"digest": str(self._blob.digest)}
        if self._part_sums:  # parts that lie elsewhere are put together by their sums
            whole = hashlib.md5(b"".join(self._part_sums), usedforsecurity=False).hexdigest()
            query["etag"] = f"{whole}-{len(self._part_sums)}"
        joint = "&" if "?" in url else "?"
        headers = {"Content-Length": "0", "Content-Type": "application/octet-stream"}
        async with self._session.send(
            "PUT", f"{url}{joint}{urlencode(query)}", headers=headers, content=b""
        ) as response:
            if not 200 <= response.status < 300:
                raise await self._failed(response)

    async def _read(self, first: int, end: int) -> AsyncIterator[bytes]:
        with await asyncio.to_thread(self._path.open, "rb") as handle:
            handle.seek(first)
            while first < end:
                data = await asyncio.to_thread(handle.read, min(_BLOCK_BYTES, end - first))
                if not data:
                    raise StoreError(f"The blob {self._blob.digest} became shorter while it was sent.")
                yield data
                first += len(data)
                self._completed(first)

    async def _failed(self, response: OutsideResponse) -> SourceError:
        return await self._session.failed(f"push {self._blob.digest.short}", response)

    def _next(self, url: str, response: OutsideResponse) -> str:
        location = response.headers.get("docker-upload-location") or response.headers.get("location")
        if not location:
            raise SourceError(f"The registry {self._session.name.host} doesn't say where the upload goes on.")
        return next_url(url, location)


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


def _md5(path: Path, first: int, end: int) -> bytes:
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as handle:
        handle.seek(first)
        while first < end and (data := handle.read(min(_BLOCK_BYTES, end - first))):
            digest.update(data)
            first += len(data)
    return digest.digest()
