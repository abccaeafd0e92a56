"""The store that Oprel writes: Ollama's layout, one path for every write.

A blob is visible when it is complete, verified and durable; a manifest when all its blobs are. Any process may be
killed at any point: what was visible stays valid, what was not is swept later. Several processes may share a store.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path

from msgspec import Struct

from oprel.errors import InvalidRequestError, ModelDamagedError, OprelError, StoreError
from oprel.store.blobs import BlobRef, BlobWriter, Progress, hash_file, remove_partials
from oprel.store.disk import Disk, FileLock, translated
from oprel.store.gguf import GgufMetadata, parameter_size, read_gguf
from oprel.store.manifests import (
    MEDIA,
    Layer,
    Manifest,
    encode_config,
    encode_manifest,
    find_spelling,
    iter_manifests,
    parse_manifest,
    read_small,
)
from oprel.store.metadata_cache import MetadataCache
from oprel.store.names import Digest, ModelName
from oprel.store.resumable import ResumableBlob, remove_resumables

__all__ = ["Installed", "Store"]

GRACE_S = 3600.0  # an unreferenced blob younger than this may belong to a pull that isn't done (Ollama's figure)
PARTIAL_GRACE_S = 60.0


class Installed(Struct, frozen=True):
    """What an import made. `digest` is the manifest's."""

    name: ModelName
    digest: Digest
    weights: BlobRef
    metadata: GgufMetadata


class Store:
    """`models_dir` has Ollama's two folders and nothing else; locks, partial files and caches are in `state_dir`."""

    def __init__(self, models_dir: Path, *, state_dir: Path, disk: Disk | None = None) -> None:
        self.models_dir = models_dir.expanduser().absolute()
        self.state_dir = state_dir.expanduser().absolute()
        self.disk = disk or Disk()
        self.metadata_cache = MetadataCache(self.state_dir / "gguf")
        self._lock = FileLock(self.state_dir / "store.lock")
        self._is_swept = False

    def new_blob(self, *, size_bytes: int | None = None) -> BlobWriter:
        """A context manager; `size_bytes` where it is known beforehand. Raises NoSpaceError, StoreError."""
        if not self._is_swept:
            self._is_swept = True
            self.sweep()
        return BlobWriter.open(self.partial_dir(), self.models_dir, disk=self.disk, size_bytes=size_bytes)

    def resume_blob(self, key: str) -> ResumableBlob | None:
        """What an earlier process had of `key`, or its beginning; None while another one is at it. A context manager
        that keeps what is unfinished. Raises StoreError."""
        return ResumableBlob.resume(self.partial_dir(), self.models_dir, disk=self.disk, key=key)

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
            return self.install(blob, parsed, expected=expected, licenses=licenses)

    def install(
        self,
        blob: BlobWriter,
        name: ModelName,
        *,
        expected: Digest | None = None,
        licenses: Sequence[str] = (),
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
        spelled, manifest_digest = self.write_manifest(name, encode_manifest(config, tuple(layers)))
        return Installed(name=spelled, digest=manifest_digest, weights=weights, metadata=metadata)

    def write_manifest(self, name: ModelName, data: bytes) -> tuple[ModelName, Digest]:
        """Returns the name as it is spelled on disk. Raises StoreError when one of its blobs isn't there."""
        manifest = parse_manifest(data)
        with self._lock.held():
            for blob in manifest.blobs:
                if not self.has_blob(blob):
                    raise StoreError(f"The blob {blob.digest} of {str(name)!r} isn't in the store; pull it again.")
            spelled = find_spelling(self.models_dir, name)
            digest = self._publish_manifest(spelled.manifest_path(self.models_dir), data)
        return spelled, digest

    def has_blob(self, blob: BlobRef) -> bool:
        """By its size; `verify_blob` reads it."""
        try:
            return blob.digest.blob_path(self.models_dir).stat().st_size == blob.size_bytes
        except OSError:
            return False

    def verify_blob(self, digest: Digest, *, progress: Progress | None = None) -> bool:
        """Whether the file under that name holds what the name says. Reads it whole: call it in a thread."""
        path = digest.blob_path(self.models_dir)
        return path.is_file() and hash_file(path, progress=progress) == digest

    def delete(self, name: ModelName) -> bool:
        """Remove a model, and the blobs that no other needs; False if it isn't here.

        Blobs younger than an hour stay for the next time (another process may be about to use them), and all stay
        while any manifest can't be read, since it might need them.
        """
        with self._lock.held():
            path = find_spelling(self.models_dir, name).manifest_path(self.models_dir)
            if not path.is_file():
                return False
            with translated(f"delete {str(name)!r}"):
                self.disk.remove(path)
                self.disk.sync_folder(path.parent)
                self._remove_empty_folders(path.parent)
            self._collect_garbage()
        return True

    def sweep(self, *, min_age_s: float = PARTIAL_GRACE_S) -> int:
        """Remove partial files that a killed process left; returns how many. Downloads that can go on stay a week."""
        with self._lock.held(), contextlib.suppress(OSError):
            removed = 0
            for folder in (self._own_partial_dir, self.models_dir / "blobs"):
                removed += remove_partials(folder, disk=self.disk, min_age_s=min_age_s)
                removed += remove_resumables(folder, disk=self.disk)
            return removed
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

    def _collect_garbage(self) -> None:
        """Under the lock. Unreferenced blobs go when they are old enough."""
        needed: set[str] = set()
        for entry in iter_manifests(self.models_dir):
            try:
                needed.update(blob.digest.hex for blob in _read_manifest(entry.path).blobs)
            except OprelError:
                return
        oldest = time.time() - GRACE_S
        folder = self.models_dir / "blobs"
        with translated("delete unused files"):
            for path in sorted(folder.glob("sha256-*")):
                try:
                    digest = Digest.parse(path.name)
                except InvalidRequestError:
                    continue
                stat = path.lstat()
                if digest.hex not in needed and max(stat.st_mtime, stat.st_ctime) < oldest:
                    self.disk.remove(path)

    def _remove_empty_folders(self, folder: Path) -> None:
        top = self.models_dir / "manifests"
        while folder != top and not any(folder.iterdir()):
            self.disk.remove_folder(folder)
            folder = folder.parent


def _read_manifest(path: Path) -> Manifest:
    return parse_manifest(read_small(path, 4 << 20))
