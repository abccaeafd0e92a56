"""Fetch single files of a repository again, as a model's manifest has them; nothing else of it is fetched."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from oprel.net.outside import NotThereError, OutsideClient
from oprel.sources.hub.access import HubAccess
from oprel.sources.hub.fetching import fetch_into
from oprel.sources.hub.listing import HubFile, Listing, list_repo
from oprel.sources.progress import Report
from oprel.sources.wishes import Take, WantedFile
from oprel.store import HubReference, Store, hash_file

__all__ = ["fetch_single_files"]


async def fetch_single_files(
    client: OutsideClient,
    access: HubAccess,
    *,
    store: Store,
    reference: HubReference,
    revisions: Sequence[str],
    wanted: Sequence[WantedFile],
    folder: Path,
    take: Take,
    report: Report,
) -> None:
    """From the first of `revisions` (commits, branches) that there still is. A file that the repository has otherwise
    is passed over. Raises SourceError, StoreError."""
    listing = await _listing(client, access, reference, revisions)
    there = {file.name: file for file in listing.files}
    for each in wanted:
        file = there.get(each.name)
        if file is None or not _can_be(file, each):
            continue
        path = await fetch_into(folder, client, access, listing, file, store=store, report=report)
        if await asyncio.to_thread(hash_file, path) == each.blob.digest:
            await asyncio.to_thread(take, each, path)


async def _listing(
    client: OutsideClient, access: HubAccess, reference: HubReference, revisions: Sequence[str]
) -> Listing:
    for revision in revisions[:-1]:
        try:
            return await list_repo(client, access, reference, revision)
        except NotThereError:  # rewritten since; a later state may have the same files
            continue
    return await list_repo(client, access, reference, revisions[-1])


def _can_be(file: HubFile, wanted: WantedFile) -> bool:
    """As far as the listing tells, so that nothing is fetched in vain."""
    return file.size_bytes == wanted.blob.size_bytes and file.sha256 in (None, wanted.blob.digest)
