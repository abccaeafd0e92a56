"""Where a version of a model came from, as its history says, or what the hub's pulls note by the manifest's digest."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from oprel.store import Catalog, Digest, ModelName, Origins
from oprel.store.versions import Versions

__all__ = ["imported_from", "pulled_from"]

_FILE = "file:"


def pulled_from(catalog: Catalog, versions: Versions, name: ModelName, digest: Digest) -> tuple[str, str] | None:
    """What a pull was asked for, and the revision, empty where it isn't known; None where nothing says that it was
    pulled. Raises StoreError."""
    event = versions.history.origins(name).get(digest.hex)
    if event is not None and not event.source.startswith(_FILE):
        return event.source, event.revision
    noted = Origins(catalog.store.state_dir).of(digest)
    return None if noted is None else (noted.source, noted.revision)


def imported_from(versions: Versions, digest: Digest) -> Iterator[Path]:
    """The files or folders of this machine that the version was made of, under any name, the last one first; whether
    they are still there isn't looked at. Raises StoreError."""
    told = (event.source for event in reversed(tuple(versions.history)) if event.digest == digest.hex)
    for source in dict.fromkeys(told):
        if source.startswith(_FILE):
            yield Path(source.removeprefix(_FILE))
