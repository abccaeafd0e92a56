"""Pull a repository of safetensors (EXL2, EXL3 and GPTQ as well) as a folder, for the drivers that take one.

Files are fetched into a folder of the pull's own beside the models', each checked before it gets its name, so that a
pull that is killed goes on with the file it was at; then the folder is imported like any of the user's. Taken and left
out is what `store.folders` says of a folder; pickles and programs are never fetched.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from oprel.errors import InvalidRequestError, SourceError
from oprel.net.outside import OutsideClient
from oprel.schema import Model
from oprel.sources.hub.access import HubAccess
from oprel.sources.hub.fetching import fetch_into
from oprel.sources.hub.listing import HubFile, Listing, read_file
from oprel.sources.progress import PullProgress, Report
from oprel.sources.threads import StopFlag, in_thread
from oprel.store import Catalog, HubReference, Trees
from oprel.store.folders import is_taken, why_never_taken
from oprel.store.versions import Change

__all__ = ["pull_folder"]

_WORK = ".hub"
_STALE_S = 7 * 24 * 3600.0
_MAX_INDEX_BYTES = 32 << 20
_INDEX = "model.safetensors.index.json"
_CONFIG = "config.json"
_WEIGHTS = ".safetensors"
# Modules of sentence-transformers lie in folders like this; other folders hold the same weights in another form.
_MODULE = re.compile(r"\d+_[A-Za-z]+/[^/]+")


class _Selection(Struct, frozen=True):
    files: tuple[HubFile, ...]
    left_out: tuple[str, ...]


async def pull_folder(
    client: OutsideClient,
    access: HubAccess,
    *,
    catalog: Catalog,
    trees: Trees,
    reference: HubReference,
    listing: Listing,
    report: Report,
) -> Model:
    """Raises SourceError, StoreError."""
    selected = await _select(client, access, listing)
    refused = [f"{name!r} is {why}" for name in selected.left_out if (why := why_never_taken(name)) is not None]
    if refused:
        report(PullProgress("pulling manifest", note=f"not taken: {_few(refused)}"))
    folder = trees.trees_dir / _WORK / hashlib.sha256(f"{listing.id}@{listing.commit}".encode()).hexdigest()[:32]
    with _working_in(folder, listing):
        for file in selected.files:
            await fetch_into(folder, client, access, listing, file, store=catalog.store, report=report)
        report(PullProgress("verifying sha256 digest"))
        name = reference.stored_name()
        change = Change("pull", str(replace(reference, revision=None)), listing.commit)

        def add(stop: StopFlag) -> Path:
            trees.add(folder, name, progress=lambda done, total: stop.check(), change=change)
            shutil.rmtree(folder)
            return folder

        report(PullProgress("writing manifest"))
        try:
            await in_thread(add)
        except InvalidRequestError as problem:
            raise SourceError(f"What {str(name)!r} holds can't be used: {problem.message}") from problem
    return await asyncio.to_thread(catalog.find, str(name))


async def _select(client: OutsideClient, access: HubAccess, listing: Listing) -> _Selection:
    by_name = {file.name: file for file in listing.files}
    if _CONFIG not in by_name:
        raise SourceError(f"{listing.id!r} isn't a model that can be run: it has no config.json, and no GGUF file.")
    config = await _json(client, access, listing, by_name[_CONFIG])
    if "auto_map" in config:
        raise SourceError(
            f"{listing.id!r} asks for code of its own to be run (auto_map in its config.json), which is never done; "
            "look for a GGUF of it."
        )
    index = await _json(client, access, listing, by_name[_INDEX]) if _INDEX in by_name else None
    shards = index.get("weight_map") if index is not None else None
    named = {shard for shard in shards.values() if isinstance(shard, str)} if isinstance(shards, dict) else None
    taken = tuple(file for file in listing.files if _is_wanted(file.name, named))
    missing = sorted((named or set()) - {file.name for file in taken})
    if missing or not any(file.name.lower().endswith(_WEIGHTS) for file in taken):
        what = f"{missing[0][:100]!r} of its index is missing" if missing else "it has no weights in safetensors"
        raise SourceError(f"{listing.id!r} isn't complete: {what}.")
    names = {file.name for file in taken}
    return _Selection(taken, tuple(file.name for file in listing.files if file.name not in names))


def _is_wanted(name: str, named: set[str] | None) -> bool:
    if not is_taken(name):
        return False
    if name.lower().endswith(_WEIGHTS):
        if "/" in name:
            return _MODULE.fullmatch(name) is not None
        return named is None or name in named
    return True


async def _json(client: OutsideClient, access: HubAccess, listing: Listing, file: HubFile) -> dict[str, object]:
    data = await read_file(client, access, listing, file, _MAX_INDEX_BYTES)
    try:
        value = await asyncio.to_thread(json.loads, data)
    except (ValueError, RecursionError) as problem:
        raise SourceError(f"{file.name!r} of {listing.id!r} can't be read.") from problem
    return value if isinstance(value, dict) else {}


def _few(texts: list[str]) -> str:
    return "; ".join(texts[:5]) + (f"; and {len(texts) - 5} more" if len(texts) > 5 else "")


@contextmanager
def _working_in(folder: Path, listing: Listing) -> Iterator[None]:
    """The folder, held against other processes; those of pulls that nobody took up again for a week go."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SourceError(f"{listing.id!r} is being pulled by another process; wait for that.") from None
        _remove_stale(folder)
        yield
    finally:
        os.close(descriptor)


def _remove_stale(current: Path) -> None:
    oldest = time.time() - _STALE_S
    for other in current.parent.iterdir():
        if other != current and other.stat().st_mtime < oldest:
            shutil.rmtree(other, ignore_errors=True)
