"""Fetch a repository's large files into the store's partial files, checked against the hub's SHA-256."""

from __future__ import annotations

from oprel.errors import SourceError
from oprel.net.outside import OutsideClient
from oprel.sources.hub.access import HubAccess
from oprel.sources.hub.listing import HubFile, Listing, file_url, told
from oprel.sources.progress import PullProgress, Report
from oprel.sources.transfer import fetch_blob
from oprel.store import Digest, ResumableBlob, Store

__all__ = ["fetch_large", "required_digest"]


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


def required_digest(listing: Listing, file: HubFile) -> Digest:
    if file.sha256 is None:
        raise SourceError(
            f"The hub gives no SHA-256 for {file.name[:100]!r} of {listing.id!r}, so what it sends can't be checked."
        )
    return file.sha256
