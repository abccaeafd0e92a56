"""Everything in the store held against its name: what is damaged, missing, unreadable, unused or left over."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

from msgspec import Struct

from oprel.errors import InvalidRequestError, OprelError, StoreError
from oprel.schema import Model
from oprel.store.catalog import Catalog
from oprel.store.garbage import unreferenced
from oprel.store.manifests import MAX_MANIFEST_BYTES, ManifestEntry, iter_manifests, parse_manifest, read_small
from oprel.store.names import Digest
from oprel.store.tree_records import listed_files

__all__ = ["Finding", "FindingKind", "Verification", "verify"]

THREADS = 4  # hashing lets go of the interpreter's lock

FindingKind = Literal["damaged", "missing", "unreadable", "unreferenced", "leftover"]
"""`unreadable`: a manifest, or a blob that this user may not read. `leftover`: of a write that was cut off, or no file
of a store at all."""

Progress = Callable[[int, int], None]
"""Bytes read, and bytes in all; called from several threads, one at a time. What it raises ends the work."""


class Finding(Struct, frozen=True):
    """`models` need the file. `is_harmful`: a model can't be used; the rest only takes space."""

    kind: FindingKind
    path: Path
    sentence: str
    models: tuple[str, ...] = ()
    digest: Digest | None = None

    @property
    def is_harmful(self) -> bool:
        return self.kind in ("damaged", "missing", "unreadable")


class Verification(Struct, frozen=True):
    """`files` and `size_bytes` were read."""

    findings: tuple[Finding, ...]
    models: int
    files: int
    size_bytes: int

    @property
    def harmful(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.is_harmful)


class _File(Struct):
    """One to read, and the models that need it."""

    digest: Digest
    path: Path
    size_bytes: int | None
    models: list[str]


def verify(catalog: Catalog, model: str | None = None, *, progress: Progress | None = None) -> Verification:
    """Read all that the store and the folders hold, or what one model needs. Blocking, for as long as that takes.
    Stores of other programs, which are only read, aren't looked at. Raises ModelNotFoundError, InvalidNameError."""
    named = None if model is None else catalog.find(model)
    files, findings, models = _wanted(catalog, named)
    findings += _read(catalog, files, progress)
    if named is None:
        findings += _surplus(catalog)
    size_bytes = sum(file.size_bytes or 0 for file in files)
    order = ("unreadable", "missing", "damaged", "unreferenced", "leftover")
    findings.sort(key=lambda finding: (order.index(finding.kind), str(finding.path)))
    return Verification(tuple(findings), models, len(files), size_bytes)


def _wanted(catalog: Catalog, named: Model | None) -> tuple[list[_File], list[Finding], int]:
    """The files that manifests name, each once; and the manifests that can't be read."""
    files: dict[Path, _File] = {}
    findings: list[Finding] = []
    models = 0
    for entry, is_tree in _entries(catalog):
        name = str(entry.name)
        if named is not None and name != named.name.partition("@")[0]:
            continue
        models += 1
        try:
            found = list(_files_of(entry, is_tree))
        except OprelError as problem:
            sentence = f"the manifest of {name!r} can't be used: {problem.message.rstrip('.')}"
            findings.append(Finding("unreadable", entry.path, sentence, (name,)))
            continue
        for digest, path, size_bytes in found:
            files.setdefault(path, _File(digest, path, size_bytes, [])).models.append(name)
    return list(files.values()), findings, models


def _entries(catalog: Catalog) -> Iterator[tuple[ManifestEntry, bool]]:
    for entry in iter_manifests(catalog.store.models_dir):
        yield entry, False
    for trees in catalog.trees:
        for entry in iter_manifests(trees.trees_dir):
            yield entry, True


def _files_of(entry: ManifestEntry, is_tree: bool) -> Iterator[tuple[Digest, Path, int]]:
    data = read_small(entry.path, MAX_MANIFEST_BYTES)
    manifest = parse_manifest(data)
    if not is_tree:
        for blob in manifest.blobs:
            yield blob.digest, blob.digest.blob_path(entry.root), blob.size_bytes
        return
    for file in listed_files(data, entry.root):
        yield file.blob.digest, file.path, file.blob.size_bytes


def _read(catalog: Catalog, files: list[_File], progress: Progress | None) -> list[Finding]:
    counter = _Counter(sum(file.size_bytes or 0 for file in files), progress)
    with ThreadPoolExecutor(THREADS, "oprel-verify") as pool:
        try:
            found = [finding for finding in pool.map(lambda file: _look(catalog, file, counter), files) if finding]
        except BaseException:
            counter.stop()
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return found


def _look(catalog: Catalog, file: _File, counter: _Counter) -> Finding | None:
    name, models = file.path.name, tuple(file.models)
    try:
        size = file.path.stat().st_size
    except OSError:
        return Finding("missing", file.path, f"{name} is missing", models, file.digest)
    if size != file.size_bytes:
        sentence = f"{name} has {size} bytes instead of {file.size_bytes}"
        return Finding("damaged", file.path, sentence, models, file.digest)
    try:
        is_good = catalog.store.verified.read(file.digest, file.path, progress=counter.of_one_file())
    except StoreError as problem:
        return Finding("unreadable", file.path, problem.message.rstrip("."), models, file.digest)
    if is_good:
        return None
    return Finding("damaged", file.path, f"{name} doesn't hold what its name says", models, file.digest)


def _surplus(catalog: Catalog) -> Iterator[Finding]:
    """What takes space and is of no use. Another program's partial downloads, which it may go on with, aren't told."""
    root = catalog.store.models_dir
    try:
        for path, _ in unreferenced(root):
            sentence = f"{path.name}: no model needs it"
            yield Finding("unreferenced", path, sentence, digest=Digest.parse(path.name))
    except OprelError:
        pass  # a manifest can't be read, which was told: then nobody knows what is needed
    for path in sorted((root / "blobs").glob("*")):
        if not _is_stores_own(path):
            yield Finding("leftover", path, f"{path.name} is no file of a store")
    known = {entry.path for entry in iter_manifests(root)}
    for path in sorted((root / "manifests").rglob("*")):
        if path.is_file() and path not in known:
            yield Finding("leftover", path, f"{path.relative_to(root)} isn't where a manifest can be")


def _is_stores_own(path: Path) -> bool:
    """A digest's name, with what Ollama puts after it; or a partial file, which the sweep looks after."""
    if path.name.startswith("oprel-"):
        return True
    try:
        Digest.parse(path.name[: len("sha256-") + 64])
    except InvalidRequestError:
        return False
    return True


class _Counter:
    """Adds up what several threads read."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self._total = total
        self._progress = progress
        self._done = 0
        self._is_stopped = False
        self._lock = threading.Lock()

    def stop(self) -> None:
        self._is_stopped = True

    def of_one_file(self) -> Callable[[int], None]:
        before = 0

        def report(done: int) -> None:
            nonlocal before
            with self._lock:
                if self._is_stopped:
                    raise StoreError("the verification was ended")
                self._done += done - before
                before = done
                if self._progress is not None:
                    self._progress(self._done, self._total)

        return report
