"""Where a version of a model came from, as its history says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from oprel.store import Digest, ModelName
from oprel.store.references import source_path
from oprel.store.versions import Versions

__all__ = ["imported_from", "pulled_from"]


def pulled_from(versions: Versions, name: ModelName, digest: Digest) -> tuple[str, str] | None:
    """What a pull was asked for, and the revision, empty where it isn't known; None where nothing says that it was
    pulled. Raises StoreError."""
    event = versions.history.origins(name).get(digest.hex)
    return None if event is None or source_path(event.source) is not None else (event.source, event.revision)


def imported_from(versions: Versions, digest: Digest) -> Iterator[Path]:
    """The files or folders of this machine that the version was made of, under any name, the last one first; whether
    they are still there isn't looked at. Raises StoreError."""
    told = (event.source for event in reversed(tuple(versions.history)) if event.digest == digest.hex)
    for source in dict.fromkeys(told):
        if (path := source_path(source)) is not None:
            yield path
