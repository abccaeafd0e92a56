"""Models that are folders (safetensors, EXL2): taken into `trees/`, where engines read them and nothing changes them.

    trees/<digest>/…                                 a model's files, under the names that they had
    trees/manifests/<host>/<namespace>/<model>/<tag>  its manifest, in the form that all models have

A manifest lists every file with its SHA-256, size and name, in order, so that the same files make the same manifest;
its own SHA-256 is the model's digest and the folder's name. A folder is made beside the others and renamed when it is
whole and durable, and a manifest is written after it: what is visible is complete, whatever is killed when.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from oprel.errors import InvalidNameError, InvalidRequestError, ModelDamagedError, OprelError, SourceError, StoreError
from oprel.schema import Model
from oprel.store.blobs import BlobWriter, hash_file, remove_partials
from oprel.store.disk import Disk, FileLock, translated
from oprel.store.folders import FolderFile, check_relative, read_facts, scan_folder
from oprel.store.manifests import (
    MANIFEST_TYPE,
    MAX_MANIFEST_BYTES,
    Layer,
    Manifest,
    ManifestEntry,
    changed_at,
    check_removable,
    find_spelling,
    is_taken,
    iter_manifests,
    parse_manifest,
    read_small,
)
from oprel.store.names import Digest, DigestPrefix, ModelName
from oprel.store.quarantine import put_aside
from oprel.store.records import damage_of_files
from oprel.store.references import file_source
from oprel.store.tree_records import TREE_FILE, TreeFile, build_tree_model, listed_files
from oprel.store.tree_staging import is_held, is_staging, staging_folder
from oprel.store.tree_texts import TreeTexts, is_text_file
from oprel.store.verified import Verified
from oprel.store.versions import Change, Retention, Version, Versions

__all__ = ["ImportedTree", "Trees"]

_CONFIG = "config.json"
# An import that isn't done holds a lock on its folder; this covers the moment before it does.
_STAGING_GRACE_S = 60.0

Progress = Callable[[int, int], None]
"""Called with the bytes done and the bytes in all; whatever it raises ends the work, which leaves nothing behind."""


class ImportedTree(Struct, frozen=True):
    """`left_out` names the files of the folder that no engine needs."""

    name: ModelName
    digest: Digest
    left_out: tuple[str, ...]


class _Record(Struct, frozen=True):
    stamp: tuple[int, int, int]
    model: Model


class Trees:
    """A shelf of the catalog, and the way into it. Sync; what touches the disk belongs in a thread."""

    def __init__(
        self, trees_dir: Path, *, state_dir: Path, disk: Disk | None = None, retention: Retention | None = None
    ) -> None:
        self.trees_dir = trees_dir.expanduser().absolute()
        self.disk = disk or Disk()
        self.versions = Versions(
            self.trees_dir,
            state_dir=state_dir.expanduser().absolute(),
            disk=self.disk,
            clock=time.time,
            retention=retention or Retention(),
            links=False,  # the folder of a version that is kept stays where it is
        )
        self._state_dir = state_dir.expanduser().absolute()
        self._lock = FileLock(self._state_dir / "trees.lock")
        self._verified = Verified(self._state_dir / "verified")  # which the store beside it has as well
        self._records: dict[Path, _Record] = {}

    def __repr__(self) -> str:
        return f"<Trees {self.trees_dir}>"

    # -- the shelf

    def find(self, name: str) -> Model | None:
        """A model by its name, without regard to case; a damaged one has `damage`."""
        try:
            parsed = ModelName.parse(name)
        except InvalidNameError:
            return None
        spelled = find_spelling(self.trees_dir, parsed)
        path = spelled.manifest_path(self.trees_dir)
        return self._model(ManifestEntry(spelled, path, self.trees_dir)) if is_taken(path) else None

    def list(self, *, described: bool = True) -> tuple[Model, ...]:
        return tuple(self._model(entry, described=described) for entry in iter_manifests(self.trees_dir))

    def has(self, name: ModelName) -> bool:
        return is_taken(find_spelling(self.trees_dir, name).manifest_path(self.trees_dir))

    def delete(self, name: str) -> bool:
        """Removes the name with its versions, and the folders that no other name has; False if it isn't here."""
        parsed = ModelName.parse(name)
        with self._lock.held():
            spelled = find_spelling(self.trees_dir, parsed)
            path = spelled.manifest_path(self.trees_dir)
            if not is_taken(path):
                return False
            check_removable(path)
            needed = self._needed()
            self.versions.before_change(spelled, self.versions.current(spelled) or "", Change("delete"))
            with translated(f"delete {name!r}"):
                self.disk.remove(path)
                self.disk.sync_folder(path.parent)
                self._remove_empty_folders(path.parent)
            self._forget(needed)
        return True

    def copy(self, source: ModelName, destination: ModelName) -> bool:
        """One more name for the same folder; False if the source isn't here."""
        with self._lock.held():
            spelled = find_spelling(self.trees_dir, source)
            path = spelled.manifest_path(self.trees_dir)
            if not path.is_file():
                return False
            data = read_small(path, MAX_MANIFEST_BYTES)
            origin = self.versions.history.origins(spelled).get(hashlib.sha256(data).hexdigest())
            change = Change("copy", origin.source if origin else "", origin.revision if origin else "")
            self._give(destination, data, change)
        return True

    def rollback(self, name: ModelName, wanted: DigestPrefix | None = None) -> Version:
        """As `Store.rollback`."""
        with self._lock.held():
            version = self.versions.choose(name, wanted)
            if not version.is_current:
                data = self.versions.kept_manifest(version.digest)
                if not _is_whole(self.trees_dir / version.digest, parse_manifest(data)):
                    raise StoreError(f"The version {version.digest[:12]} of {str(name)!r} is damaged.")
                self._give(name, data, Change("rollback", version.source, version.revision))
        return version

    def folder_of(self, model: Model) -> Path:
        """Where the model's files are."""
        return self.trees_dir / model.digest

    # -- the way in

    def add(
        self,
        folder: Path,
        name: ModelName | str,
        *,
        texts: TreeTexts | None = None,
        progress: Progress | None = None,
        change: Change | None = None,
    ) -> ImportedTree:
        """Make a model of a folder on this machine, which stays where it is. Blocking: call it in a thread.

        Files are read once. They share their blocks with the originals, or are hard links to them, where the file
        system can do that: the originals must not be changed in place afterwards. Raises InvalidRequestError for a
        folder that isn't a model or holds what isn't taken, NoSpaceError, StoreError.
        """
        parsed = ModelName.parse(name) if isinstance(name, str) else name
        source = folder.expanduser().absolute()
        if not source.is_dir():
            raise InvalidRequestError(f"{folder.name!r} isn't a folder that can be read.")
        files, left_out = scan_folder(source)
        files = tuple(file for file in files if not is_text_file(file.name))  # those of a model that it is made of
        _check_facts(source)
        self.sweep()
        with staging_folder(self.trees_dir, disk=self.disk) as staging:
            layers = self._fill(staging, source, files, progress)
            layers |= self._write_texts(staging, texts or TreeTexts())
            manifest = _encoded(layers)
            digest = Digest(hashlib.sha256(manifest).hexdigest())
            with self._lock.held():
                self._publish(staging, digest, parse_manifest(manifest))
                spelled = self._give(parsed, manifest, change or Change("import", file_source(source)))
        return ImportedTree(spelled, digest, left_out)

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """A folder beside the models, gone with the block (swept, where the process is killed)."""
        with staging_folder(self.trees_dir, disk=self.disk) as folder:
            yield folder

    def verify(self, name: str) -> str | None:
        """Reads every file of a model; a sentence about the first that isn't what the manifest says."""
        model = self.find(name)
        if model is None or model.damage is not None:
            return f"{name!r} isn't here" if model is None else model.damage
        for file in model.files:
            if hash_file(Path(file.path)).hex != file.digest:
                return f"{Path(file.path).name!r} isn't what it was when the model was imported"
        return None

    def listed(self) -> Iterator[tuple[ModelName, Digest, tuple[TreeFile, ...]]]:
        """Of each name its model's digest and all files that are to be in its folder; a manifest that can't be read is
        passed over."""
        for entry in iter_manifests(self.trees_dir):
            with contextlib.suppress(OprelError):
                data = read_small(entry.path, MAX_MANIFEST_BYTES)
                yield entry.name, Digest(hashlib.sha256(data).hexdigest()), listed_files(data, self.trees_dir)

    def put_back(self, file: TreeFile, copy: Path) -> None:
        """A file that is damaged or missing, from a good copy of it: shared, linked or copied, and read on the way.
        What is in its place is put aside; nothing else changes. Raises ModelDamagedError for a copy that isn't what
        the file is to be, InvalidRequestError for one that is no plain file, StoreError."""
        with self.scratch() as staging, BlobWriter.open(staging, self.trees_dir, disk=self.disk) as writer:
            writer.fill_from(copy)
            try:
                writer.finish(file.blob.digest)
            except SourceError as problem:
                raise ModelDamagedError(
                    f"The file {copy.name!r} isn't the one that is missing.", model="", digest=file.blob.digest.hex
                ) from problem
            with self._lock.held():
                if Digest(file.folder) not in self._needed():
                    raise StoreError(f"The model of {file.name!r} was removed meanwhile.")
                put_aside(file.path, self._state_dir, disk=self.disk)
                writer.move_to(file.path)
                self._verified.note(file.blob.digest, file.path)

    def sweep(self, *, min_age_s: float = _STAGING_GRACE_S) -> int:
        """Remove what imports that were killed have left; returns how many folders."""
        removed = 0
        with contextlib.suppress(OSError, StoreError), self._lock.held():
            oldest = time.time() - min_age_s
            needed = self._needed()
            remove_partials(self.trees_dir, disk=self.disk, min_age_s=min_age_s)  # manifests in the making
            for path in sorted(self.trees_dir.iterdir()):
                is_orphan = _is_digest(path.name) and Digest(path.name) not in needed
                if (is_staging(path) or is_orphan) and path.lstat().st_ctime <= oldest and not is_held(path):
                    self._remove_tree(path)
                    removed += 1
        return removed

    # -- steps

    def _fill(
        self, staging: Path, source: Path, files: tuple[FolderFile, ...], progress: Progress | None
    ) -> dict[str, Layer]:
        """The files by name, which are in `staging` then, durable and under their own names."""
        total = sum(file.size_bytes for file in files)
        done = 0
        layers: dict[str, Layer] = {}
        for file in files:
            before = done

            def report(count: int, before: int = before) -> None:
                if progress is not None:
                    progress(before + count, total)

            target = staging / check_relative(file.name)
            with BlobWriter.open(staging, self.trees_dir, disk=self.disk) as writer:
                writer.fill_from(source / file.name, progress=report)
                digest = writer.finish()
                writer.move_to(target)
            self._verified.note(digest, target)
            size = target.stat().st_size
            done += size
            layers[file.name] = Layer(TREE_FILE, str(digest), size, name=file.name)
        return layers

    def _write_texts(self, staging: Path, texts: TreeTexts) -> dict[str, Layer]:
        layers: dict[str, Layer] = {}
        for name, media_type, data in texts.files():
            with BlobWriter.open(staging, self.trees_dir, disk=self.disk, size_bytes=len(data)) as writer:
                writer.write(data)
                digest = writer.finish()
                writer.move_to(staging / name)
            layers[name] = Layer(media_type, str(digest), len(data), name=name)
        return layers

    def _publish(self, staging: Path, digest: Digest, manifest: Manifest) -> None:
        target = self.trees_dir / digest.hex
        if target.is_dir():
            if _is_whole(target, manifest):
                self._refresh(target, staging, manifest)
                return
            self._remove_tree(target)  # damaged, and this one is whole
        with translated("keep a model's folder"):
            self.disk.rename(staging, target)
            self.disk.sync_folder(self.trees_dir)

    def _refresh(self, target: Path, staging: Path, manifest: Manifest) -> None:
        """File by file, so that the model can be loaded meanwhile: those that were there have the right sizes, and
        these were read."""
        with translated("keep a model's files"):
            for layer in (manifest.config, *manifest.layers):
                self.disk.rename(staging / layer.name, target / layer.name)
                self.disk.sync_folder((target / layer.name).parent)

    def _give(self, name: ModelName, manifest: bytes, change: Change) -> ModelName:
        """A name to a folder that is there, under the lock."""
        spelled = find_spelling(self.trees_dir, name)
        needed = self._needed()
        self.versions.before_change(spelled, hashlib.sha256(manifest).hexdigest(), change)
        self._write_manifest(spelled.manifest_path(self.trees_dir), manifest)
        self._forget(needed)
        return spelled

    def _forget(self, needed: set[Digest]) -> None:
        """Old versions beyond what is kept go, and those folders among `needed` that nothing needs any more."""
        self.versions.prune()
        for digest in needed - self._needed():
            self.disk.remove_tree(self.trees_dir / digest.hex)

    def _write_manifest(self, path: Path, data: bytes) -> None:
        with BlobWriter.open(self.trees_dir, self.trees_dir, disk=self.disk, size_bytes=len(data)) as partial:
            partial.write(data)
            partial.finish()
            partial.move_to(path)

    def _needed(self) -> set[Digest]:
        named = {_digest_of(entry.path) for entry in iter_manifests(self.trees_dir)}
        kept = {Digest(hex) for hex in self.versions.kept() if _is_digest(hex)}
        return {digest for digest in named if digest is not None} | kept

    def _remove_tree(self, path: Path) -> None:
        self.disk.remove_tree(path)

    def _remove_empty_folders(self, folder: Path) -> None:
        top = self.trees_dir / "manifests"
        while folder != top and not any(folder.iterdir()):
            self.disk.remove_folder(folder)
            folder = folder.parent

    # -- records

    def _model(self, entry: ManifestEntry, *, described: bool = True) -> Model:
        try:
            status = entry.path.stat()
        except OSError:
            return build_tree_model(entry, modified_at=0.0)
        stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
        record = self._records.get(entry.path)
        if record is not None and record.stamp == stamp:
            damage = damage_of_files(record.model)
            return record.model if damage is None else replace(record.model, damage=damage)
        model = build_tree_model(entry, modified_at=changed_at(status), described=described)
        if described and model.damage is None:
            self._records[entry.path] = _Record(stamp, model)
        return model


def _encoded(layers: dict[str, Layer]) -> bytes:
    config = layers.pop(_CONFIG)
    ordered = tuple(layers[name] for name in sorted(layers))
    return msgspec.json.encode(Manifest(2, MANIFEST_TYPE, config, ordered)) + b"\n"


def _check_facts(source: Path) -> None:
    """Before anything is hashed: a folder that can't be read as a model."""
    try:
        read_facts(source)
    except InvalidRequestError as problem:
        raise InvalidRequestError(f"{source.name!r} can't be taken: {problem.message.rstrip('.')}.") from problem


def _is_whole(folder: Path, manifest: Manifest) -> bool:
    """By the sizes of its files."""
    for layer in (manifest.config, *manifest.layers):
        try:
            if (folder / check_relative(layer.name)).lstat().st_size != layer.size:
                return False
        except OSError:
            return False
    return True


def _digest_of(path: Path) -> Digest | None:
    try:
        return Digest(hashlib.sha256(read_small(path, MAX_MANIFEST_BYTES)).hexdigest())
    except StoreError:
        return None


def _is_digest(name: str) -> bool:
    try:
        Digest(name)
    except InvalidRequestError:
        return False
    return True
