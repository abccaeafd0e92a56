"""The store that Oprel writes: Ollama's layout, one path for every write.

A blob is visible when it is complete, verified and durable; a manifest when all its blobs are. Any process may be
killed at any point: what was visible stays valid, what was not is swept later. Several processes may share a store.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path

from msgspec import Struct

from oprel.errors import InvalidRequestError, ModelDamagedError, OprelError, SourceError, StoreError
from oprel.store.blobs import BlobRef, BlobWriter, Progress, remove_partials, require_space
from oprel.store.disk import Disk, FileLock, translated
from oprel.store.garbage import Garbage, InUse, remove_garbage
from oprel.store.gguf import GgufMetadata, parameter_size, read_gguf
from oprel.store.manifests import (
    MAX_MANIFEST_BYTES,
    MEDIA,
    Layer,
    Manifest,
    ManifestEntry,
    check_removable,
    encode_config,
    encode_manifest,
    find_spelling,
    is_taken,
    parse_manifest,
    read_small,
)
from oprel.store.metadata_cache import MetadataCache
from oprel.store.names import Digest, DigestPrefix, ModelName
from oprel.store.quarantine import put_aside
from oprel.store.references import file_source
from oprel.store.resumable import ResumableBlob, remove_resumables
from oprel.store.verified import Verified
from oprel.store.versions import Change, Retention, Version, Versions

__all__ = ["Installed", "Store"]

GRACE_S = 3600.0  # an unreferenced blob younger than this may belong to a pull that isn't done (Ollama's figure)
PARTIAL_GRACE_S = 60.0

_noted: ContextVar[Change] = ContextVar("noted", default=Change("create"))  # noqa: B039  # it is frozen


class Installed(Struct, frozen=True):
    """What an import made. `digest` is the manifest's."""

    name: ModelName
    digest: Digest
    weights: BlobRef
    metadata: GgufMetadata


class Store:
    """`models_dir` has Ollama's two folders and nothing else; locks, partial files, caches and old versions are in
    `state_dir`."""

    def __init__(
        self, models_dir: Path, *, state_dir: Path, disk: Disk | None = None, retention: Retention | None = None
    ) -> None:
        self.models_dir = models_dir.expanduser().absolute()
        self.state_dir = state_dir.expanduser().absolute()
        self.disk = disk or Disk()
        self.metadata_cache = MetadataCache(self.state_dir / "gguf")
        self.verified = Verified(self.state_dir / "verified")
        self.versions = Versions(
            self.models_dir,
            state_dir=self.state_dir,
            disk=self.disk,
            clock=time.time,
            retention=retention or Retention(),
        )
        self._lock = FileLock(self.state_dir / "store.lock")
        self._in_use = InUse(self.state_dir / "in-use.lock")
        self._is_swept = False
        self._has_garbage = False

    @contextlib.contextmanager
    def noting(self, change: Change) -> Iterator[None]:
        """What manifests that are written in the block, by this task and the threads that it waits for, are noted
        with, where they say nothing else."""
        token = _noted.set(change)
        try:
            yield
        finally:
            _noted.reset(token)

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """For the time of a pull or a creation: no blob is taken away as unused, in whatever process. What had to wait
        for that is removed at the end."""
        with self._in_use.held():
            yield
        if self._has_garbage:
            self.collect_garbage()

    def new_blob(self, *, size_bytes: int | None = None) -> BlobWriter:
        """A context manager; `size_bytes` where it is known beforehand. Raises NoSpaceError, StoreError."""
        if not self._is_swept:
            self._is_swept = True
            self.sweep()
        return BlobWriter.open(
            self.partial_dir(),
            self.models_dir,
            disk=self.disk,
            size_bytes=size_bytes,
            published=self.verified.note,
        )

    def resume_blob(self, key: str) -> ResumableBlob | None:
        """What an earlier process had of `key`, or its beginning; None while another one is at it. A context manager
        that keeps what is unfinished. Raises StoreError."""
        return ResumableBlob.resume(
            self.partial_dir(), self.models_dir, disk=self.disk, key=key, published=self.verified.note
        )

    def import_gguf(
        self,
        path: Path,
        name: ModelName | str,
        *,
        licenses: Sequence[str] = (),
        expected: Digest | None = None,
        progress: Progress | None = None,
    ) -> Installed:
        """Make a model of a GGUF file on this machine, which stays where it is. Blocking: call it in a thread.

        The blob shares the file's blocks or is a hard link to it where the file system can do that, so the file must
        not be changed in place afterwards. Raises InvalidRequestError for a file that isn't a whole GGUF model.
        """
        parsed = ModelName.parse(name) if isinstance(name, str) else name
        source = path.expanduser().absolute()
        if not source.is_file():
            raise InvalidRequestError(f"{path.name!r} isn't a file that can be read.")
        self._check_header(source)
        with self.new_blob() as blob:
            blob.fill_from(source, progress=progress)
            change = Change("import", file_source(source))
            return self.install(blob, parsed, expected=expected, licenses=licenses, change=change)

    def install(
        self,
        blob: BlobWriter,
        name: ModelName,
        *,
        expected: Digest | None = None,
        licenses: Sequence[str] = (),
        change: Change | None = None,
    ) -> Installed:
        """Make a model of a GGUF file that was written to `blob`. The last step makes it visible."""
        digest = blob.finish(expected)
        metadata = self._check_header(blob.path)
        weights = blob.publish()
        self.metadata_cache.keep(digest, metadata)
        layers = [Layer(MEDIA["model"], str(weights.digest), weights.size_bytes)]
        layers += [self._text_layer("license", text) for text in licenses]
        config = self._small_blob(
            encode_config(
                family=metadata.architecture,
                parameter_size=parameter_size(metadata.parameter_count),
                quantization=metadata.quantization,
                layers=tuple(layers),
            )
        )
        spelled, manifest_digest = self.write_manifest(name, encode_manifest(config, tuple(layers)), change)
        return Installed(name=spelled, digest=manifest_digest, weights=weights, metadata=metadata)

    def write_manifest(self, name: ModelName, data: bytes, change: Change | None = None) -> tuple[ModelName, Digest]:
        """The one place that makes a model visible; the version that the name had is kept, and `change` is noted.
        Returns the name as it is spelled on disk. Raises StoreError when one of its blobs isn't there."""
        manifest = parse_manifest(data)
        with self._lock.held():
            return self._publish(name, manifest, data, change or _noted.get())

    def copy(self, source: ModelName, destination: ModelName) -> bool:
        """One more manifest for the same blobs; False if the source isn't here. Raises ModelDamagedError for one that
        can't be used."""
        with self._lock.held():
            path = find_spelling(self.models_dir, source).manifest_path(self.models_dir)
            if not is_taken(path):
                return False
            data, manifest = self._read_manifest(source, path)
            origin = self.versions.history.origins(source).get(hashlib.sha256(data).hexdigest())
            change = Change("copy", origin.source if origin else "", origin.revision if origin else "")
            self._publish(destination, manifest, data, change)
        return True

    def adopt(self, entry: ManifestEntry, name: ModelName, change: Change | None = None) -> tuple[ModelName, Digest]:
        """A model of another store, as `name`: its blobs are linked or copied into this one, and read on the way.
        Raises ModelDamagedError for one whose blobs aren't what their names say."""
        data, manifest = self._read_manifest(entry.name, entry.path)
        with self.in_use():
            for blob in manifest.blobs:
                if not self.has_blob(blob):
                    self.adopt_blob(blob, blob.digest.blob_path(entry.root), model=str(entry.name))
            return self.write_manifest(name, data, change or Change("copy"))

    def adopt_blob(self, blob: BlobRef, path: Path, *, model: str = "") -> None:
        """A blob of another store. Raises ModelDamagedError for one that isn't there, or isn't what its name says."""
        if not path.is_file():
            raise ModelDamagedError(f"The file {path.name} is missing.", model=model, digest=blob.digest.hex)
        with self.new_blob() as writer:
            writer.fill_from(path)
            try:
                writer.finish(blob.digest)
            except SourceError as problem:
                raise ModelDamagedError(
                    f"The file {path.name} doesn't hold what its name says.", model=model, digest=blob.digest.hex
                ) from problem
            writer.publish()

    def rollback(self, name: ModelName, wanted: DigestPrefix | None = None) -> Version:
        """Give the name a version that it had, by default the one before; what it has now is kept in its turn. Returns
        the version. Raises InvalidRequestError for one that isn't known, StoreError for one that isn't kept, or isn't
        what it was."""
        with self._lock.held():
            version = self.versions.choose(name, wanted)
            if version.is_current:
                return version
            data = self.versions.kept_manifest(version.digest)
            manifest = parse_manifest(data)
            for blob in manifest.blobs:
                kept = blob.digest.blob_path(self.versions.folder)
                if not self.has_blob(blob) and not (kept.is_file() and self.verified.check(blob.digest, kept)):
                    raise StoreError(f"The version {version.digest[:12]} of {str(name)!r} is damaged: {blob.digest}.")
            self.versions.bring_back(manifest, self.has_blob)
            self._publish(name, manifest, data, Change("rollback", version.source, version.revision))
        return version

    def has_blob(self, blob: BlobRef) -> bool:
        """By its size; `has_whole_blob` reads it where it must."""
        try:
            return blob.digest.blob_path(self.models_dir).stat().st_size == blob.size_bytes
        except OSError:
            return False

    def has_whole_blob(self, blob: BlobRef, *, progress: Progress | None = None) -> bool:
        """Whether it holds what its name says: read unless it looks as it did when it was found whole. False for one
        that can't be read. Blocking."""
        path = blob.digest.blob_path(self.models_dir)
        try:
            return self.has_blob(blob) and self.verified.check(blob.digest, path, progress=progress)
        except StoreError:
            return False

    def add_file(self, path: Path) -> BlobRef:
        """A user's file as a blob: linked, sharing its blocks, or copied, and read once. Blocking."""
        with self.new_blob() as blob:
            blob.fill_from(path)
            blob.finish()
            return blob.publish()

    def add_small_blob(self, data: bytes) -> tuple[BlobRef, bool]:
        """A text as a blob, and whether it wasn't there before."""
        ref = BlobRef(Digest(hashlib.sha256(data).hexdigest()), len(data))
        if self.refresh_blob(ref.digest) and self.has_blob(ref):
            return ref, False
        return self._small_blob(data), True

    def refresh_blob(self, digest: Digest) -> bool:
        """Whether a blob of that name is here. If so it counts as young from now on, so that it isn't removed before
        the model that somebody is about to make of it is there."""
        path = digest.blob_path(self.models_dir)
        try:
            path.chmod(path.stat().st_mode & 0o7777)  # sets ctime and nothing else
        except FileNotFoundError:
            return False
        except OSError:  # another user's: it can be used all the same
            return path.is_file()
        return True

    def require_space(self, size_bytes: int) -> None:
        """Raises NoSpaceError where the disk has less left."""
        require_space(self.disk, self.partial_dir(), size_bytes)

    def read_header(self, path: Path) -> GgufMetadata:
        """Of a GGUF file that holds a model. Raises InvalidRequestError for any other."""
        return self._check_header(path)

    def verify_blob(self, digest: Digest, *, progress: Progress | None = None) -> bool:
        """Whether the file under that name holds what the name says. Reads it whole: call it in a thread."""
        path = digest.blob_path(self.models_dir)
        return path.is_file() and self.verified.read(digest, path, progress=progress)

    def quarantine(self, digest: Digest) -> Path | None:
        """Put a blob that isn't what its name says aside, outside of the store's tree. None if it isn't here, or if
        that is another file system: then it stays until a good one takes its place."""
        with self._lock.held():
            return put_aside(digest.blob_path(self.models_dir), self.state_dir, disk=self.disk)

    def delete(self, name: ModelName) -> bool:
        """Remove a model, its versions, and the blobs that no other needs; False if it isn't here.

        Blobs younger than an hour stay for the next time (another process may be about to use them), and all stay
        while a pull or creation runs, or while any manifest can't be read, since it might need them. Raises
        InvalidRequestError for a folder in a manifest's place.
        """
        with self._lock.held():
            spelled = find_spelling(self.models_dir, name)
            path = spelled.manifest_path(self.models_dir)
            if not is_taken(path):
                return False
            check_removable(path)
            self.versions.before_change(spelled, self.versions.current(spelled) or "", Change("delete"))
            with translated(f"delete {str(name)!r}"):
                self.disk.remove(path)
                self.disk.sync_folder(path.parent)
                self._remove_empty_folders(path.parent)
            self.versions.prune()
            self._collect_garbage()
        return True

    def collect_garbage(self) -> Garbage:
        """Remove the blobs that nothing needs, old versions beyond what is kept included."""
        with self._lock.held():
            self.versions.prune()
            return self._collect_garbage()

    def sweep(self, *, min_age_s: float = PARTIAL_GRACE_S) -> int:
        """Remove partial files that a killed process left; returns how many. Downloads that can go on stay a week."""
        places = (self._own_partial_dir, self.models_dir / "blobs", self.versions.folder)
        with self._lock.held(), contextlib.suppress(OSError):
            removed = sum(remove_partials(place, disk=self.disk, min_age_s=min_age_s) for place in places)
            return removed + sum(remove_resumables(place, disk=self.disk) for place in places[:2])
        return 0

    def partial_dir(self) -> Path:
        """In the state folder where a rename reaches the store from there, else beside the blobs."""
        with translated(f"write in {self.models_dir}"):
            self.disk.make_folder(self.models_dir / "blobs")
            self.disk.make_folder(self._own_partial_dir, mode=0o700)
        own = self._own_partial_dir
        same = own.stat().st_dev == (self.models_dir / "blobs").stat().st_dev
        return own if same else self.models_dir / "blobs"

    @property
    def _own_partial_dir(self) -> Path:
        return self.state_dir / "partial"

    def _check_header(self, path: Path) -> GgufMetadata:
        try:
            metadata = read_gguf(path)
        except ModelDamagedError as problem:
            raise InvalidRequestError(f"This isn't a GGUF model that can be used: {problem.message}") from problem
        if not metadata.tensors or not metadata.architecture:
            raise InvalidRequestError(f"{path.name!r} is a GGUF file without a model: no architecture or no tensors.")
        if metadata.kind in ("adapter", "mmproj", "imatrix"):
            raise InvalidRequestError(f"{path.name!r} is a GGUF file of the kind {metadata.kind!r}, not a model.")
        return metadata

    def _text_layer(self, kind: str, text: str) -> Layer:
        ref = self._small_blob(text.encode("utf-8", errors="replace"))
        return Layer(MEDIA[kind], str(ref.digest), ref.size_bytes)

    def _small_blob(self, data: bytes) -> BlobRef:
        with self.new_blob(size_bytes=len(data)) as blob:
            blob.write(data)
            blob.finish()
            return blob.publish()

    def _publish_manifest(self, path: Path, data: bytes) -> Digest:
        folder = self.partial_dir()
        with BlobWriter.open(folder, self.models_dir, disk=self.disk, size_bytes=len(data)) as partial:
            partial.write(data)
            digest = partial.finish()
            partial.move_to(path)
        return digest

    def _publish(self, name: ModelName, manifest: Manifest, data: bytes, change: Change) -> tuple[ModelName, Digest]:
        """Under the lock."""
        for blob in manifest.blobs:
            if not self.has_blob(blob):
                raise StoreError(f"The blob {blob.digest} of {str(name)!r} isn't in the store; pull it again.")
        spelled = find_spelling(self.models_dir, name)
        path = spelled.manifest_path(self.models_dir)
        self._has_garbage |= path.exists()
        self.versions.before_change(spelled, hashlib.sha256(data).hexdigest(), change)
        digest = self._publish_manifest(path, data)
        self.versions.prune()
        return spelled, digest

    def _read_manifest(self, name: ModelName, path: Path) -> tuple[bytes, Manifest]:
        try:
            data = read_small(path, MAX_MANIFEST_BYTES)
            return data, parse_manifest(data)
        except OprelError as problem:
            reason = problem.message.rstrip(".")
            raise ModelDamagedError(f"Model {str(name)!r} is damaged: {reason}.", model=str(name)) from problem

    def _collect_garbage(self) -> Garbage:
        """Under the lock."""
        with self._in_use.free() as is_free:
            self._has_garbage = not is_free
            if not is_free:
                return Garbage(excuse="a model is being pulled or created")
            return remove_garbage(self.models_dir, disk=self.disk, grace_s=GRACE_S)

    def _remove_empty_folders(self, folder: Path) -> None:
        top = self.models_dir / "manifests"
        while folder != top and not any(folder.iterdir()):
            self.disk.remove_folder(folder)
            folder = folder.parent
