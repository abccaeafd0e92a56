"""Pull one quantization out of a repository of GGUF files: all its parts, the projector, the licence."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from pathlib import Path

from msgspec.structs import replace

from oprel.errors import InvalidNameError, InvalidRequestError, SourceError
from oprel.net.outside import OutsideClient
from oprel.schema import Model
from oprel.sources.hub.access import HubAccess
from oprel.sources.hub.choice import Choice
from oprel.sources.hub.fetching import fetch_large, required_digest
from oprel.sources.hub.files import RepoFiles
from oprel.sources.hub.listing import HubFile, Listing, read_file
from oprel.sources.progress import PullProgress, Report
from oprel.sources.threads import in_thread
from oprel.store import BlobRef, Catalog, HubReference, ResumableBlob, hash_file, parse_reference
from oprel.store.assembling import Finished, install_parts
from oprel.store.blobs import require_space
from oprel.store.names import as_name_part
from oprel.store.versions import Change

__all__ = ["pull_gguf"]

_MAX_LICENSE_BYTES = 1 << 20


async def pull_gguf(
    client: OutsideClient,
    access: HubAccess,
    *,
    catalog: Catalog,
    reference: HubReference,
    listing: Listing,
    files: RepoFiles,
    choice: Choice,
    report: Report,
) -> Model:
    """What is here already, whole, isn't fetched again. Cancelling it, or a failure, leaves what was installed before.
    Raises SourceError, StoreError."""
    store = catalog.store
    wanted = [*choice.weights.parts, *([files.projector] if files.projector is not None else [])]
    refs = [BlobRef(required_digest(listing, file), file.size_bytes) for file in wanted]
    missing = sum(ref.size_bytes for ref in dict.fromkeys(refs) if not store.has_blob(ref))
    with ExitStack() as stack:
        await asyncio.to_thread(lambda: require_space(store.disk, store.partial_dir(), missing))
        finished: list[Finished] = []
        for file, ref in zip(wanted, refs, strict=True):
            if await _is_here(catalog, ref, report):
                finished.append(ref)
                continue
            writer = await fetch_large(client, access, listing, file, store=store, report=report)
            stack.callback(writer.discard)
            finished.append(writer)
        licenses = await _licenses(client, access, listing, files)
        report(PullProgress("verifying sha256 digest"))
        count = len(choice.weights.parts)
        name = reference.stored_name(_tag(reference, choice))
        report(PullProgress("writing manifest"))
        try:
            installed = await in_thread(
                lambda stop: install_parts(
                    store,
                    name,
                    finished[:count],
                    projector=finished[count] if files.projector is not None else None,
                    licenses=licenses,
                    change=Change("pull", _source(reference, choice), listing.commit),
                )
            )
        except InvalidRequestError as problem:
            for part in finished:  # of no use to another try
                if isinstance(part, ResumableBlob):
                    await asyncio.to_thread(part.forget)
            raise SourceError(f"What {str(name)!r} holds can't be used: {problem.message}") from problem
    return await asyncio.to_thread(catalog.find, str(installed.name))


async def _is_here(catalog: Catalog, ref: BlobRef, report: Report) -> bool:
    """Read through: a blob that was damaged is fetched again."""
    store = catalog.store
    if not await asyncio.to_thread(store.has_blob, ref):
        return False
    path: Path = ref.digest.blob_path(store.models_dir)
    if await in_thread(lambda stop: hash_file(path, progress=lambda _: stop.check())) != ref.digest:
        return False
    report(PullProgress(f"pulling {ref.digest.short}", str(ref.digest), ref.size_bytes, ref.size_bytes))
    return True


async def _licenses(client: OutsideClient, access: HubAccess, listing: Listing, files: RepoFiles) -> tuple[str, ...]:
    """The repository's own files, else what its card names."""
    texts = [await _text(client, access, listing, file) for file in files.licenses]
    found = tuple(text for text in texts if text.strip())
    if found or listing.license in (None, "other", "unknown"):
        return found
    return (f"{listing.license} (as the card of {listing.id} says)",)


async def _text(client: OutsideClient, access: HubAccess, listing: Listing, file: HubFile) -> str:
    data = await read_file(client, access, listing, file, _MAX_LICENSE_BYTES)
    return data.decode("utf-8", errors="replace")


def _tag(reference: HubReference, choice: Choice) -> str:
    """The quantization's own name, or what was asked for where that is another (a file's name)."""
    asked = reference.quantization
    if asked is None or asked.lower() == choice.weights.tag.lower():
        return choice.weights.tag
    return as_name_part(asked)


def _source(reference: HubReference, choice: Choice) -> str:
    """What chooses the same again on any machine; as it was asked for where the files' names can't be written so."""
    named = reference.quantization or choice.weights.label or choice.weights.stem
    exact = HubReference(reference.owner, reference.repo, named)
    try:
        return str(exact if parse_reference(str(exact)) == exact else replace(reference, revision=None))
    except InvalidNameError:
        return str(replace(reference, revision=None))
