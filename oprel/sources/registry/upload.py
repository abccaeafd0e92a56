"""One blob on its way into a registry, in parts of 64 MiB (`PATCH`), each to the address that the last answer gave; a
part that is redirected goes there by `PUT`, without the login.

An upload that breaks goes on where it was, as far as that can be known: parts that lie elsewhere were confirmed one by
one; of others the registry is asked how much it has (`GET`, OCI distribution 1.1, "Pushing a blob in chunks"). Where it
doesn't say, the upload is begun again.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from urllib.parse import urlencode

from oprel.errors import SourceError, StoreError
from oprel.net.outside import OutsideResponse, TransientSourceError, next_url
from oprel.sources.registry.session import RegistrySession
from oprel.sources.retries import attempts
from oprel.store import BlobRef

__all__ = ["Upload"]

PART_BYTES = 64 << 20
_BLOCK_BYTES = 1 << 20
_ARRIVED = re.compile(r"(?:bytes=)?0-(\d{1,18})")

Completed = Callable[[int], None]


class Upload:
    """Of the blob in the file at `path`, whose size is right."""

    def __init__(self, session: RegistrySession, blob: BlobRef, path: Path, completed: Completed) -> None:
        self._session = session
        self._blob = blob
        self._path = path
        self._completed = completed
        self._url: str | None = None
        self._at = self._furthest = 0
        self._part_sums: list[bytes] = []
        self.fruitless = 0
        self._is_lost = False

    async def is_there(self) -> bool:
        """Whether the registry has the blob."""
        url = f"{self._session.base}/blobs/{self._blob.digest}"
        async with self._session.send("HEAD", url, follow=True) as response:
            if response.status == 404:
                return False
            if response.status != 200:
                raise await self._failed(response)
            return True

    async def run(self, mount_from: str | None) -> None:
        """Six tries in a row that bring no part there are enough. Raises SourceError, StoreError."""
        async for attempt in attempts(self):
            with attempt:
                await self._try(mount_from)

    async def _try(self, mount_from: str | None) -> None:
        self.fruitless += 1
        self._url = await (self._begin(mount_from) if self._url is None else self._resume(self._url, mount_from))
        if self._url is None:
            return
        self._completed(self._at)
        while self._at < self._blob.size_bytes:
            end = min(self._at + PART_BYTES, self._blob.size_bytes)
            self._url = await self._part(self._url, self._at, end)
            self._at = end
            if end > self._furthest:
                self._furthest, self.fruitless = end, 0
        await self._end(self._url)

    async def _resume(self, url: str, mount_from: str | None) -> str | None:
        found = None if self._is_lost else await self._found_again(url)
        if found is not None:
            return found
        # All of it may have arrived, and only the last answer didn't.
        return None if await self.is_there() else await self._begin(mount_from)

    async def _begin(self, mount_from: str | None) -> str | None:
        """Where the first part goes; None when the registry took the blob from another of its repositories."""
        self._at, self._part_sums, self._is_lost = 0, [], False
        url = f"{self._session.base}/blobs/uploads/"
        if mount_from is not None:
            url += "?" + urlencode({"mount": str(self._blob.digest), "from": mount_from})
        async with self._session.send("POST", url, content=b"") as response:
            if response.status == 201:
                return None
            if response.status != 202:
                raise await self._failed(response)
            return self._next(url, response)

    async def _found_again(self, url: str) -> str | None:
        """Where a broken upload goes on, from `_at`; None where that isn't known."""
        if self._part_sums:
            return url
        async with self._session.send("GET", url) as response:
            match = _ARRIVED.fullmatch(response.headers.get("range", ""))
            if response.status != 204 or match is None:
                return None
            arrived = int(match[1]) + 1
            # One byte may mean none: a range has no way to say so.
            if arrived == 1 or not self._at <= arrived <= min(self._at + PART_BYTES, self._blob.size_bytes):
                return None
            self._at = arrived
            return self._next(url, response) if "location" in response.headers else url

    async def _part(self, url: str, first: int, end: int) -> str:
        """Where the next one goes."""
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
            elif response.status == 404 and first > 0:
                raise self._lost()
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
            if response.status == 404:
                raise self._lost()
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

    def _lost(self) -> TransientSourceError:
        """The upload isn't known there any more: it has ended, or was forgotten."""
        self._is_lost = True
        return TransientSourceError(f"The registry {self._session.name.host} doesn't know the upload any more.")

    async def _failed(self, response: OutsideResponse) -> SourceError:
        return await self._session.failed(f"push {self._blob.digest.short}", response)

    def _next(self, url: str, response: OutsideResponse) -> str:
        location = response.headers.get("docker-upload-location") or response.headers.get("location")
        if not location:
            raise SourceError(f"The registry {self._session.name.host} doesn't say where the upload goes on.")
        return next_url(url, location)


def _md5(path: Path, first: int, end: int) -> bytes:
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as handle:
        handle.seek(first)
        while first < end and (data := handle.read(min(_BLOCK_BYTES, end - first))):
            digest.update(data)
            first += len(data)
    return digest.digest()
