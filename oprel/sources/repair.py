"""What a verification found, mended: from another copy on this machine, else from where the model was pulled. Blobs
here; the files of models that are folders in `tree_repair`."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path

from msgspec import Struct

from oprel.errors import ModelDamagedError, OprelError
from oprel.sources.pins import pullable
from oprel.sources.progress import PullProgress
from oprel.sources.staging import MakePuller, Staging
from oprel.sources.tree_repair import TreeRepair
from oprel.store import BlobRef, Catalog, Digest, Trees
from oprel.store.manifests import MAX_MANIFEST_BYTES, parse_manifest, read_small
from oprel.store.names import ModelName
from oprel.store.verification import Finding

__all__ = ["Mended", "Repair"]


class Mended(Struct, frozen=True):
    """`how` says what was done; empty: nothing could be, and `problem` says why."""

    finding: Finding
    how: str = ""
    problem: str = ""


class Repair:
    """Damaged files are put aside, in the state folder, never deleted."""

    def __init__(self, catalog: Catalog, make_puller: MakePuller) -> None:
        self._catalog = catalog
        self._make_puller = make_puller
        self.results: list[Mended] = []

    async def run(self, findings: tuple[Finding, ...]) -> AsyncGenerator[PullProgress, None]:
        """Yields how far it has got; `results` has a line for each finding that harms a model, in the end."""
        left: list[Finding] = []
        in_trees: list[Finding] = []
        for finding in findings:
            if finding.kind in ("damaged", "missing") and not self._is_blob(finding):
                in_trees.append(finding)
            elif finding.kind in ("damaged", "missing"):
                if finding.kind == "damaged":
                    await asyncio.to_thread(self._catalog.store.quarantine, _digest(finding))
                if (how := await asyncio.to_thread(self._from_here, finding)) is not None:
                    self.results.append(Mended(finding, how))
                else:
                    left.append(finding)
            elif finding.is_harmful:
                self.results.append(Mended(finding, problem=_advice(finding)))
        if left:
            async with contextlib.aclosing(self._from_sources(left)) as lines:
                async for line in lines:
                    yield line
        for trees in self._catalog.trees:
            async with contextlib.aclosing(self._in_trees(trees, in_trees)) as lines:
                async for line in lines:
                    yield line

    async def _in_trees(self, trees: Trees, findings: list[Finding]) -> AsyncGenerator[PullProgress, None]:
        own = [finding for finding in findings if finding.path.is_relative_to(trees.trees_dir)]
        if not own:
            return
        repair = TreeRepair(self._catalog, trees, self._make_puller(self._catalog), own)
        async with contextlib.aclosing(repair.run()) as lines:
            async for line in lines:
                yield line
        self.results += [
            Mended(finding, repair.how.get(finding, ""), repair.problems.get(finding, "")) for finding in own
        ]

    def _is_blob(self, finding: Finding) -> bool:
        return finding.path.parent == self._catalog.store.models_dir / "blobs"

    def _from_here(self, finding: Finding) -> str | None:
        """Another store's copy, or one that an old version has."""
        for path in self._copies(_digest(finding)):
            with contextlib.suppress(ModelDamagedError):
                self._catalog.store.adopt_blob(BlobRef(_digest(finding), path.stat().st_size), path)
                return f"taken from {path.parent.parent}"
        return None

    def _copies(self, digest: Digest) -> Iterator[Path]:
        store = self._catalog.store
        for root in (*self._catalog.read_dirs, store.versions.folder):
            if (path := digest.blob_path(root)).is_file():
                yield path

    async def _from_sources(self, findings: list[Finding]) -> AsyncGenerator[PullProgress, None]:
        """Each source once; what it has of what is missing is taken."""
        wanted = {finding.digest: finding for finding in findings}
        problems: dict[Digest | None, str] = {}
        for name in dict.fromkeys(model for finding in findings for model in finding.models):
            missing = [digest for digest, finding in wanted.items() if name in finding.models]
            if not missing:
                continue
            try:
                async with contextlib.aclosing(self._pull(name, missing)) as lines:
                    async for line in lines:
                        yield line
            except OprelError as problem:
                problems |= dict.fromkeys(missing, problem.message)
            for digest in missing:
                if digest is not None and self._is_there(digest):
                    self.results.append(Mended(wanted.pop(digest), f"fetched again for {name}"))
        for digest, finding in wanted.items():
            why = problems.get(digest, "its source has another version now")
            self.results.append(Mended(finding, problem=f"{why.rstrip('.')}"))

    async def _pull(self, name: str, missing: list[Digest | None]) -> AsyncGenerator[PullProgress, None]:
        source, blobs = await asyncio.to_thread(self._known_of, name)
        store = self._catalog.store
        with Staging.opened(store, self._catalog.aliases, self._make_puller) as staging:
            await asyncio.to_thread(staging.seed, [blob for blob in blobs if blob.digest not in missing])
            async with contextlib.aclosing(staging.pull(source)) as lines:
                async for line in lines:
                    yield line
            for blob in blobs:
                if blob.digest in missing and staging.blob_path(blob.digest).is_file():
                    await asyncio.to_thread(store.adopt_blob, blob, staging.blob_path(blob.digest))

    def _known_of(self, name: str) -> tuple[str, tuple[BlobRef, ...]]:
        path = ModelName.parse(name).manifest_path(self._catalog.store.models_dir)
        manifest = parse_manifest(read_small(path, MAX_MANIFEST_BYTES))
        return pullable(self._catalog, name), manifest.blobs

    def _is_there(self, digest: Digest) -> bool:
        return digest.blob_path(self._catalog.store.models_dir).is_file()


def _digest(finding: Finding) -> Digest:
    if finding.digest is None:
        raise ValueError("a finding without a digest")
    return finding.digest


def _advice(finding: Finding) -> str:
    if finding.kind == "unreadable" and finding.models and finding.digest is None:
        return f"pull it again, or remove it: oprel rm {finding.models[0]}"
    return "look at who may read it" if finding.kind == "unreadable" else "it can't be mended here"
