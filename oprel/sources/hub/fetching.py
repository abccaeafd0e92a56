"""Fetch a repository's files, each checked against the digest that the hub's listing has: large ones by way of the
store's partial files, so that a fetch which is cut off goes on later."""

from __future__ import annotations

import asyncio
from pathlib import Path

from oprel.errors import SourceError
from oprel.net.outside import OutsideClient
from oprel.sources.hub.access import HubAccess
from oprel.sources.hub.listing import HubFile, Listing, file_url, is_whole, read_file, told
from oprel.sources.progress import PullProgress, Report
from oprel.sources.threads import StopFlag, in_thread
from oprel.sources.transfer import fetch_blob
from oprel.store import BlobWriter, Digest, ResumableBlob, Store, hash_file
from oprel.store.folders import check_relative

__all__ = ["fetch_into", "fetch_large", "required_digest"]

_MAX_SMALL_BYTES = 64 << 20


async def fetch_large(
    client: OutsideClient, access: HubAccess, listing: Listing, file: HubFile, *, store: Store, report: Report
) -> ResumableBlob:
    """A finished writer, which the caller publishes, discards (it is kept for another try) or forgets. Raises
    SourceError, StoreError."""
    digest = required_digest(listing, file)
    status = f"pulling {digest.short}"

    def completed(done: int, total: int | None) -> None:
        report(PullProgress(status, str(digest), file.size_bytes, done))

    with told(access, listing.id, is_listed=True):
        return await fetch_blob(
            client,
            file_url(access, listing, file),
            store,
            digest=digest,
            size_bytes=file.size_bytes,
            max_bytes=file.size_bytes,
            completed=completed,
            headers=access.headers,
        )


async def fetch_into(
    folder: Path,
    client: OutsideClient,
    access: HubAccess,
    listing: Listing,
    file: HubFile,
    *,
    store: Store,
    report: Report,
) -> Path:
    """One file under its own name below `folder`, unless it is there, whole, from an earlier try. Raises SourceError,
    StoreError, InvalidRequestError for a name that could lead elsewhere."""
    target = folder / check_relative(file.name)
    if await in_thread(lambda stop: _is_kept(file, target, stop)):
        return target
    if file.sha256 is not None:
        writer = await fetch_large(client, access, listing, file, store=store, report=report)
        await asyncio.to_thread(_place, writer, target)
        return target
    data = await read_file(client, access, listing, file, _MAX_SMALL_BYTES)

    def write() -> None:
        writer = store.new_blob(size_bytes=len(data))
        writer.write(data)
        writer.finish()
        _place(writer, target)

    await asyncio.to_thread(write)
    return target


def required_digest(listing: Listing, file: HubFile) -> Digest:
    if file.sha256 is None:
        raise SourceError(
            f"The hub gives no SHA-256 for {file.name[:100]!r} of {listing.id!r}, so what it sends can't be checked."
        )
    return file.sha256


def _place(writer: BlobWriter, target: Path) -> None:
    with writer:
        writer.move_to(target)


def _is_kept(file: HubFile, target: Path, stop: StopFlag) -> bool:
    if not target.is_file() or target.stat().st_size != file.size_bytes:
        return False
    if file.sha256 is not None:
        return hash_file(target, progress=lambda _: stop.check()) == file.sha256
    return is_whole(file, target.read_bytes())
