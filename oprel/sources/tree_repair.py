"""Damaged and missing files of models that are folders, brought back one by one: from another copy on this machine,
else from where a model that has the same file was pulled."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import AsyncGenerator, Iterator, Sequence
from pathlib import Path

from msgspec import Struct

from oprel.errors import InvalidRequestError, ModelDamagedError, OprelError
from oprel.sources.progress import PullProgress
from oprel.sources.provenance import imported_from, pulled_from
from oprel.sources.puller import Puller
from oprel.sources.wishes import WantedFile
from oprel.store import Catalog, Digest, ModelName, Trees
from oprel.store.tree_records import TreeFile
from oprel.store.verification import Finding

__all__ = ["TreeRepair"]

_MOVED_ON = "its source has another version now"


class _Use(Struct, frozen=True):
    """That the model called `name`, of the digest `model`, has the file."""

    name: ModelName
    model: Digest
    file: TreeFile


class _Source(Struct, frozen=True):
    source: str
    revision: str


class TreeRepair:
    """`how` or `problems` has a sentence for each finding, in the end. Files that aren't among the findings, and
    manifests, stay as they are."""

    def __init__(self, catalog: Catalog, trees: Trees, puller: Puller, findings: Sequence[Finding]) -> None:
        self._catalog = catalog
        self._trees = trees
        self._puller = puller
        self._left = {finding.path: finding for finding in findings}
        self._uses: defaultdict[Digest | None, list[_Use]] = defaultdict(list)
        self.how: dict[Finding, str] = {}
        self.problems: dict[Finding, str] = {}

    async def run(self) -> AsyncGenerator[PullProgress, None]:
        """Yields how far it has got."""
        await asyncio.to_thread(self._read_manifests)
        await asyncio.to_thread(self._from_here)
        for source, wanted in (await asyncio.to_thread(self._sources)).items():
            async with contextlib.aclosing(self._from(source, wanted)) as lines:
                async for line in lines:
                    yield line
        for finding in self._left.values():
            self.problems.setdefault(finding, self._why_not(finding))

    def _read_manifests(self) -> None:
        for name, model, files in self._trees.listed():
            for file in files:
                self._uses[file.blob.digest].append(_Use(name, model, file))

    def _from_here(self) -> None:
        for finding in tuple(self._left.values()):
            for copy in self._copies(finding):
                if self._put_back(finding, copy, f"taken from {copy.parent}"):
                    break

    def _copies(self, finding: Finding) -> Iterator[Path]:
        """The same file in other models, and in the folders that such a model was made of."""
        uses = self._uses[finding.digest]
        yield from (use.file.path for use in uses if use.file.path not in self._left)
        for use in uses:
            for folder in imported_from(self._trees.versions, use.model):
                yield folder / use.file.name

    def _sources(self) -> dict[_Source, list[WantedFile]]:
        """Where models that have what is left were pulled, and what to ask there for."""
        found: defaultdict[_Source, list[WantedFile]] = defaultdict(list)
        for use in (use for finding in self._left.values() for use in self._uses[finding.digest]):
            origin = pulled_from(self._trees.versions, use.name, use.model)
            wanted = WantedFile(use.file.name, use.file.blob)
            if origin is not None and wanted not in found[_Source(*origin)]:
                found[_Source(*origin)].append(wanted)
        return dict(found)

    async def _from(self, source: _Source, wanted: Sequence[WantedFile]) -> AsyncGenerator[PullProgress, None]:
        wanted = [each for each in wanted if self._findings_of(each)]
        if not wanted:
            return

        def take(each: WantedFile, path: Path) -> None:
            for finding in self._findings_of(each):
                self._put_back(finding, path, f"fetched again from {source.source}")

        problem = _MOVED_ON
        try:
            with self._trees.scratch() as folder:
                fetching = self._puller.fetch_files(source.source, source.revision, wanted, folder=folder, take=take)
                async with contextlib.aclosing(fetching) as lines:
                    async for line in lines:
                        yield line
        except OprelError as failure:
            problem = failure.message.rstrip(".")
        for finding in (finding for each in wanted for finding in self._findings_of(each)):
            self.problems.setdefault(finding, problem)

    def _put_back(self, finding: Finding, copy: Path, how: str) -> bool:
        if not copy.is_file():
            return False
        file = next(use.file for use in self._uses[finding.digest] if use.file.path == finding.path)
        try:
            self._trees.put_back(file, copy)
        except (InvalidRequestError, ModelDamagedError):  # the copy is no good either
            return False
        except OprelError as problem:
            self.problems[finding] = problem.message.rstrip(".")
            return False
        del self._left[finding.path]
        self.how[finding] = how
        return True

    def _findings_of(self, wanted: WantedFile) -> list[Finding]:
        return [finding for finding in self._left.values() if finding.digest == wanted.blob.digest]

    def _why_not(self, finding: Finding) -> str:
        for use in self._uses[finding.digest]:
            for folder in imported_from(self._trees.versions, use.model):
                return f"it was imported from {folder}, which hasn't got it any more: import the folder again"
        return "it was made on this machine, and there is nowhere to fetch it from: make the model again"
