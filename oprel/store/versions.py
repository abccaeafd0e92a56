"""Versions of models: what a name stood for before, and the way back to it.

    <state>/versions/<key of the root>/history.jsonl       what happened (`history.py`)
    <state>/versions/<key of the root>/manifests/<hex>     a replaced manifest's bytes, named by their digest
    <state>/versions/<key of the root>/blobs/sha256-<hex>  hard links to its blobs

They lie outside of the store's own tree, in which Ollama removes at its start what no manifest refers to. A link costs
no space while the blob is in the store as well. How many are kept is bounded by number and by bytes; a model that is
deleted takes its versions along. What can't be linked (another file system) isn't kept, and the history says so.
"""

from __future__ import annotations

import errno
import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from msgspec import Struct

from oprel.errors import InvalidRequestError, NoSpaceError, OprelError, StoreError
from oprel.store.blobs import BlobRef, BlobWriter
from oprel.store.disk import Disk, translated
from oprel.store.history import Action, Event, History
from oprel.store.manifests import MAX_MANIFEST_BYTES, Manifest, find_spelling, parse_manifest, read_small
from oprel.store.names import Digest, DigestPrefix, ModelName

__all__ = ["Change", "Retention", "Version", "Versions"]

_log = logging.getLogger("oprel.store")

Clock = Callable[[], float]


class Retention(Struct, frozen=True):
    """`count` for each name, beside the version that it stands for; `max_bytes` for all names together, files that are
    in use not counted."""

    count: int = 3
    max_bytes: int = 20 << 30


class Change(Struct, frozen=True):
    """Why a manifest is written, and where it is from: see `Event`."""

    action: Action = "create"
    source: str = ""
    revision: str = ""


class Version(Struct, frozen=True):
    """One that a name has, or had. `is_kept`: its files are there, so that it can be gone back to; `note` says why
    not, where that is known."""

    digest: str
    at: float
    action: Action
    source: str = ""
    revision: str = ""
    size_bytes: int | None = None
    is_current: bool = False
    is_kept: bool = False
    note: str = ""


class Versions:
    """Of the models below `root`. All that writes is called under that root's lock. `links` False: for models whose
    files aren't blobs; who has them keeps what `kept` names."""

    def __init__(
        self, root: Path, *, state_dir: Path, disk: Disk, clock: Clock, retention: Retention, links: bool = True
    ) -> None:
        key = hashlib.sha256(str(root).encode()).hexdigest()[:16]
        self.folder = state_dir / "versions" / key
        self.history = History(self.folder / "history.jsonl", disk=disk)
        self.retention = retention
        self._root = root
        self._disk = disk
        self._clock = clock
        self._links = links

    # -- looking

    def of(self, name: ModelName) -> tuple[Version, ...]:
        """The current one first, then the others, newest first, each once."""
        current, kept, origins = self.current(name), self.kept(), self.history.origins(name)
        told: dict[str, Version] = {}
        note = ""  # of the change that came after the event
        for event in self.history.of(name):
            if event.action != "delete" and event.digest not in told:
                told[event.digest] = self._version(event, current, kept, origins.get(event.digest, event), note)
            note = event.not_kept
        if current is not None and current not in told:
            unknown = Event(0.0, "found", str(name), current)
            told = {current: self._version(unknown, current, kept, origins.get(current, unknown), "")} | told
        return tuple(sorted(told.values(), key=lambda version: not version.is_current))

    def current(self, name: ModelName) -> str | None:
        """The digest of the manifest that the name has now, whatever is wrong with it; of what is too large for one, of
        its beginning. Raises StoreError."""
        path = find_spelling(self._root, name).manifest_path(self._root)
        if not path.is_file():
            return None
        with translated(f"read the manifest of {str(name)!r}"), path.open("rb") as handle:
            return hashlib.sha256(handle.read(MAX_MANIFEST_BYTES + 1)).hexdigest()

    def choose(self, name: ModelName, wanted: DigestPrefix | None) -> Version:
        """The one whose digest starts so; None: the one before. Raises InvalidRequestError, StoreError."""
        versions = self.of(name)
        if wanted is None:
            before = [version for version in versions if version.is_kept and not version.is_current]
            if not before:
                raise InvalidRequestError(f"No version of {str(name)!r} before the one that it has is kept.")
            return before[0]
        found = [version for version in versions if wanted.starts(version.digest)]
        if len(found) != 1:
            known = ", ".join(version.digest[:12] for version in versions[:8]) or "none"
            problem = "several versions that start with" if found else "no version"
            raise InvalidRequestError(f"{str(name)!r} has {problem} {wanted}; known are: {known}.", param="digest")
        version = found[0]
        if not version.is_kept and not version.is_current:
            where = f"; pull it again: {version.source}" if version.source else ""
            raise StoreError(f"The files of {str(name)!r}, version {version.digest[:12]}, are no longer kept{where}.")
        return version

    def kept_manifest(self, digest: str) -> bytes:
        """Raises StoreError for one that isn't here or isn't what its name says."""
        data = read_small(self.folder / "manifests" / Digest(digest).hex, MAX_MANIFEST_BYTES)
        if hashlib.sha256(data).hexdigest() != digest:
            raise StoreError(f"the kept version {digest[:12]} is damaged")
        return data

    def kept(self) -> frozenset[str]:
        """The digests of all kept manifests."""
        folder = self.folder / "manifests"
        return frozenset(path.name for path in folder.iterdir()) if folder.is_dir() else frozenset()

    # -- changing

    def before_change(self, name: ModelName, digest: str, change: Change) -> None:
        """Keep what the name has now, and note that it gets `digest`; or, for a deletion, that it loses it."""
        path = name.manifest_path(self._root)
        note = ""
        current = self.current(name)
        if current is not None and current != digest and change.action != "delete":
            if not any(event.digest == current for event in self.history.of(name)):
                self.history.append(Event(path.stat().st_mtime, "found", str(name), current))
            note = self._keep(path)
        event = Event(self._clock(), change.action, str(name), digest, change.source, change.revision, note)
        try:
            self.history.append(event)
        except NoSpaceError:
            if change.action != "delete":  # which is what makes space
                raise
            _log.warning("the history of models doesn't tell that %s was deleted: the disk is full", name)

    def bring_back(self, manifest: Manifest, is_there: Callable[[BlobRef], bool]) -> None:
        """Link the blobs that aren't `is_there` into the store again."""
        for blob in manifest.blobs:
            if not is_there(blob):
                target = blob.digest.blob_path(self._root)
                with translated(f"bring back {target.name}"):
                    self._disk.make_folder(target.parent)
                    self._disk.remove(target)  # one of another size
                    self._disk.link(blob.digest.blob_path(self.folder), target)
                    self._disk.sync_folder(target.parent)

    def prune(self) -> int:
        """Remove what the retention doesn't keep; returns how many versions."""
        kept = self.kept()
        wanted = self._wanted(kept)
        gone = sorted(kept - wanted.keys())
        with translated("remove old versions"):
            for digest in gone:
                self._disk.remove(self.folder / "manifests" / digest)
            needed = {blob.digest for manifest in wanted.values() for blob in manifest.blobs}
            for path in self._blobs():
                if Digest.parse(path.name) not in needed:
                    self._disk.remove(path)
        return len(gone)

    # -- steps

    def _version(self, event: Event, current: str | None, kept: frozenset[str], origin: Event, note: str) -> Version:
        is_kept = event.digest in kept
        return Version(
            digest=event.digest,
            at=event.at,
            action=event.action,
            source=origin.source,
            revision=origin.revision,
            size_bytes=self._size(event.digest) if is_kept else None,
            is_current=event.digest == current,
            is_kept=is_kept,
            note="" if is_kept else note,
        )

    def _size(self, digest: str) -> int | None:
        try:
            return parse_manifest(self.kept_manifest(digest)).size_bytes
        except OprelError:
            return None

    def _keep(self, path: Path) -> str:
        """Returns why it can't be kept; empty when it is."""
        if self.retention.count == 0:
            return "no versions are kept (keep_versions is 0)"
        try:
            data = read_small(path, MAX_MANIFEST_BYTES)
            manifest = parse_manifest(data)
        except OprelError as problem:
            return problem.message
        if self._links and (problem_of := self._link_blobs(manifest)):
            return problem_of
        target = self.folder / "manifests" / hashlib.sha256(data).hexdigest()
        if not target.is_file():
            with BlobWriter.open(self.folder, self._root, disk=self._disk, size_bytes=len(data)) as partial:
                partial.write(data)
                partial.finish()
                partial.move_to(target)
        return ""

    def _link_blobs(self, manifest: Manifest) -> str:
        folder = self.folder / "blobs"
        with translated("keep a version of a model"):
            self._disk.make_folder(folder, mode=0o700)
            for blob in manifest.blobs:
                source, target = blob.digest.blob_path(self._root), blob.digest.blob_path(self.folder)
                if _size_of(target) == blob.size_bytes:
                    continue
                if _size_of(source) != blob.size_bytes:
                    return f"its file {source.name} isn't whole"
                self._disk.remove(target)
                try:
                    self._disk.link(source, target)
                except OSError as problem:
                    is_elsewhere = problem.errno == errno.EXDEV
                    return "other file system" if is_elsewhere else f"{problem.strerror or problem}"
            self._disk.sync_folder(folder)
        return ""

    def _wanted(self, kept: frozenset[str]) -> dict[str, Manifest]:
        """Newest first: so many for each name, and so many bytes for all."""
        wanted: dict[str, Manifest] = {}
        in_use: set[Digest] = set()
        counts: dict[str, int] = {}
        total = 0
        for name, digest in self._candidates(kept, in_use):
            try:
                manifest = parse_manifest(self.kept_manifest(digest))
            except OprelError:
                continue
            counts[name] = counts.get(name, 0) + 1
            if counts[name] > self.retention.count:
                continue
            fresh = [blob for blob in manifest.blobs if blob.digest not in in_use]
            total += sum(blob.size_bytes for blob in fresh)
            if total > self.retention.max_bytes:
                break
            in_use.update(blob.digest for blob in fresh)
            wanted[digest] = manifest
        return wanted

    def _candidates(self, kept: frozenset[str], in_use: set[Digest]) -> Sequence[tuple[str, str]]:
        """(name, digest) of the kept versions that a name had since it was last deleted, newest first. Fills `in_use`
        with the blobs of the versions that these names have now: those cost nothing to keep."""
        found: dict[tuple[str, str], None] = {}
        deleted: set[str] = set()
        currents: dict[str, str | None] = {}
        for event in reversed(tuple(self.history)):
            name = event.name.lower()
            if event.action == "delete":
                deleted.add(name)
            if name in deleted or event.digest not in kept:
                continue
            if name not in currents:
                currents[name] = self._note_current(event.name, in_use)
            if event.digest != currents[name]:
                found[name, event.digest] = None
        return tuple(found)

    def _note_current(self, text: str, in_use: set[Digest]) -> str | None:
        try:
            name = ModelName.parse(text)
            current = self.current(name)
            if current is not None:
                path = find_spelling(self._root, name).manifest_path(self._root)
                manifest = parse_manifest(read_small(path, MAX_MANIFEST_BYTES))
                in_use.update(blob.digest for blob in manifest.blobs)
        except OprelError:
            return None
        return current

    def _blobs(self) -> Iterator[Path]:
        for path in sorted((self.folder / "blobs").glob("sha256-*")):
            try:
                Digest.parse(path.name)
            except InvalidRequestError:
                continue
            yield path


def _size_of(path: Path) -> int | None:
    try:
        return path.lstat().st_size
    except OSError:
        return None
