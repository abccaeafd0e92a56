"""The hub as a source: from `hf.co/OWNER/REPO[:QUANT][@COMMIT]` to a model in the store."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

from oprel.errors import SourceError
from oprel.hardware import detect_hardware
from oprel.net.outside import NotThereError, OutsideClient
from oprel.schema import Hardware, Model
from oprel.sources.hub.access import HubAccess, read_hub_access
from oprel.sources.hub.choice import Budget, Choice, choose_weights
from oprel.sources.hub.files import RepoFiles, sort_files
from oprel.sources.hub.folder_repo import pull_folder
from oprel.sources.hub.gguf_repo import pull_gguf
from oprel.sources.hub.listing import Listing, SearchHit, list_repo, search
from oprel.sources.hub.single_files import fetch_single_files
from oprel.sources.progress import PullProgress, Report
from oprel.sources.wishes import PullWish, Take, WantedFile
from oprel.store import Catalog, HubReference, Trees

__all__ = ["Hub"]

_MAIN = "main"


class Hub:
    """`read_access` says where the hub is, `hardware` what models have to fit; both are asked in a thread."""

    def __init__(
        self,
        catalog: Catalog,
        *,
        trees: Trees | None = None,
        read_access: Callable[[], HubAccess] = read_hub_access,
        hardware: Callable[[], Hardware] = detect_hardware,
    ) -> None:
        self._catalog = catalog
        self._trees = trees
        self._read_access = read_access
        self._hardware = hardware

    async def pull(self, reference: HubReference, *, wish: PullWish, report: Report) -> Model:
        """Fetch and install; the model as it is in the catalog. Raises InvalidRequestError for a quantization that
        isn't there or isn't allowed, InsufficientMemoryError, SourceError, StoreError."""
        report(PullProgress("pulling manifest"))
        access = await asyncio.to_thread(self._access)
        async with access.client() as client:
            listing = await self._listing(client, access, reference)
            files = sort_files(listing)
            if not files.weights:
                return await self._pull_folder(client, access, reference, listing, report)
            choice = await self._choose(reference, listing, files, wish)
            report(PullProgress("pulling manifest", note=choice.reason))
            return await pull_gguf(
                client,
                access,
                catalog=self._catalog,
                reference=reference,
                listing=listing,
                files=files,
                choice=choice,
                report=report,
            )

    async def fetch_files(
        self,
        reference: HubReference,
        revision: str,
        wanted: Sequence[WantedFile],
        *,
        folder: Path,
        take: Take,
        report: Report,
    ) -> None:
        """Single files of a repository that is a folder, as they were at the commit `revision` (empty: it isn't
        known), by way of `folder`. Those that it has otherwise are passed over. Raises SourceError, StoreError."""
        access = await asyncio.to_thread(self._access)
        branch = reference.quantization or _MAIN
        async with access.client() as client:
            await fetch_single_files(
                client,
                access,
                store=self._catalog.store,
                reference=reference,
                revisions=(revision, branch) if revision else (branch,),
                wanted=wanted,
                folder=folder,
                take=take,
                report=report,
            )

    async def search(self, query: str, *, limit: int) -> tuple[SearchHit, ...]:
        """Repositories with GGUF files, the most downloaded first. Raises SourceError."""
        access = await asyncio.to_thread(self._read_access)
        async with access.client() as client:
            return await search(client, access, query, limit=limit)

    def _access(self) -> HubAccess:
        import huggingface_hub.hf_api  # noqa: F401  # half a second of imports, which belong in this thread

        return self._read_access()

    async def _choose(self, reference: HubReference, listing: Listing, files: RepoFiles, wish: PullWish) -> Choice:
        budget = Budget.of(await asyncio.to_thread(self._hardware), max_memory_bytes=wish.max_memory_bytes)
        return choose_weights(
            files.weights,
            repo=listing.id,
            budget=budget,
            asked=reference.quantization,
            allow_low_quality=wish.allow_low_quality,
            parameters=listing.parameters,
            beside_bytes=files.projector.size_bytes if files.projector is not None else 0,
        )

    async def _pull_folder(
        self,
        client: OutsideClient,
        access: HubAccess,
        reference: HubReference,
        listing: Listing,
        report: Report,
    ) -> Model:
        """Without GGUF files, what follows the colon is a branch, where EXL2 and EXL3 have their sizes; a commit that
        is named is that branch's."""
        if reference.quantization is not None and reference.revision is None:
            listing = await self._branch(client, access, reference, reference.quantization)
        if not sort_files(listing).safetensors:
            raise SourceError(
                f"{listing.id!r} holds no weights that can be used: neither GGUF nor safetensors. If they are in a "
                f"branch, name it: hf.co/{listing.id}:BRANCH"
            )
        if self._trees is None:
            raise SourceError("Models that are folders can't be pulled here: there is no place for them.")
        return await pull_folder(
            client,
            access,
            catalog=self._catalog,
            trees=self._trees,
            reference=reference,
            listing=listing,
            report=report,
        )

    async def _listing(self, client: OutsideClient, access: HubAccess, reference: HubReference) -> Listing:
        if reference.revision is None:
            return await list_repo(client, access, reference, _MAIN)
        try:
            listing = await list_repo(client, access, reference, reference.revision)
        except NotThereError as problem:
            raise SourceError(
                f"'{reference.owner}/{reference.repo}' isn't on the hub, or has no commit {reference.revision}."
            ) from problem
        if listing.commit != reference.revision:
            raise SourceError(f"The hub shows the commit {listing.commit} of {listing.id!r} for {reference.revision}.")
        return listing

    async def _branch(self, client: OutsideClient, access: HubAccess, reference: HubReference, branch: str) -> Listing:
        try:
            return await list_repo(client, access, reference, branch)
        except NotThereError as problem:
            raise SourceError(
                f"'{reference.owner}/{reference.repo}' has no GGUF files, and no branch {branch!r}."
            ) from problem
