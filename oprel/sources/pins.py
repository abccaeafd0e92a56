"""Models as a lock file pins them: made from what is here, and brought back elsewhere, the same to the byte or not at
all."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence
from typing import Literal

from msgspec import Struct

from oprel.errors import InvalidNameError, ModelNotFoundError, OprelError, SourceError
from oprel.schema import Model
from oprel.sources.lockfile import LockedFile, LockedModel
from oprel.sources.progress import PullProgress
from oprel.sources.staging import MakePuller, Staging
from oprel.store import BlobRef, Catalog, Digest, ModelName
from oprel.store.manifests import Manifest, parse_manifest
from oprel.store.names import DigestPrefix
from oprel.store.references import PACKAGE_HOST, at_revision, registry_source, source_path
from oprel.store.versions import Change, Version

__all__ = ["PinState", "Pins", "State", "pullable"]

State = Literal["here", "kept", "differs", "missing", "damaged"]
"""`kept`: among the old versions. `differs`: the name has another version."""


class PinState(Struct, frozen=True):
    model: LockedModel
    state: State
    note: str = ""


class Pins:
    """Over the models of a catalog; `make_puller` makes a puller that writes into the catalog it is given."""

    def __init__(self, catalog: Catalog, make_puller: MakePuller) -> None:
        self._catalog = catalog
        self._make_puller = make_puller

    def lock(self, name: str) -> LockedModel:
        """The model as it is now. Blocking. Raises ModelNotFoundError, InvalidNameError, and SourceError for one that
        can't be fetched anywhere else."""
        model = self._catalog.find(name)
        if model.damage is not None:
            raise SourceError(f"{model.damage.rstrip('.')}; a damaged model can't be locked.")
        if model.remote is not None:
            raise SourceError(f"{model.name!r} is on another server: there is nothing to lock.")
        source, revision = _origin(self._catalog, model)
        manifest = parse_manifest(self._catalog.manifest(model))
        return LockedModel(
            name=model.name,
            digest=f"sha256:{model.digest}",
            source=source,
            revision=revision,
            files=_files(manifest),
        )

    def state(self, pinned: LockedModel) -> PinState:
        """Blocking."""
        try:
            model = self._catalog.find(pinned.name)
            versions = self._catalog.versions(pinned.name)
        except (ModelNotFoundError, InvalidNameError):
            return PinState(pinned, "missing")
        if _is_kept(versions, pinned.hex):
            return PinState(pinned, "kept")
        if ModelName.parse(model.name).key != pinned.parsed.key:
            return PinState(pinned, "missing")
        if model.digest != pinned.hex:
            return PinState(pinned, "differs", f"it is sha256:{model.digest[:12]} here")
        return PinState(pinned, "here") if model.damage is None else PinState(pinned, "damaged", model.damage)

    async def sync(self, pinned: LockedModel) -> AsyncGenerator[PullProgress, None]:
        """Yields lines up to `success`; nothing where it is here. Raises SourceError when the source has something
        else now: then nothing has changed here."""
        found = await asyncio.to_thread(self.state, pinned)
        if found.state == "here":
            return
        if found.state == "kept":
            await asyncio.to_thread(self._catalog.rollback, pinned.name, DigestPrefix(pinned.hex))
        elif not await asyncio.to_thread(self._copy, pinned):
            with Staging.opened(self._catalog.store, self._catalog.aliases, self._make_puller) as staging:
                async with contextlib.aclosing(self._fetch(staging, pinned)) as lines:
                    async for line in lines:
                        yield line
        yield PullProgress("success")

    def _copy(self, pinned: LockedModel) -> bool:
        """From another name that has the same version."""
        for model in self._catalog.list(described=False):
            if model.digest == pinned.hex and model.damage is None:
                self._catalog.copy(model, pinned.parsed)
                return True
        return False

    async def _fetch(self, staging: Staging, pinned: LockedModel) -> AsyncGenerator[PullProgress, None]:
        await asyncio.to_thread(staging.seed, _blobs(pinned))
        try:
            async with contextlib.aclosing(staging.pull(at_revision(pinned.source, pinned.revision))) as lines:
                async for line in lines:
                    yield line
        except OprelError as problem:
            raise SourceError(f"{pinned.name!r} can't be fetched: {problem.message}") from problem
        await asyncio.to_thread(self._take, staging, pinned)

    def _take(self, staging: Staging, pinned: LockedModel) -> None:
        change = Change("pull", pinned.source, pinned.revision)
        entry = staging.entry(pinned.hex)
        if entry is None:
            staging.clear()
            raise SourceError(
                f"{pinned.source} has something else now than {pinned.name!r} was locked with "
                f"({pinned.digest[:19]}): nothing was changed."
            )
        if staging.has_tree(pinned.hex):
            self._catalog.add_tree(staging.trees.trees_dir / pinned.hex, pinned.parsed, change)
        else:
            self._catalog.store.adopt(entry, pinned.parsed, change)


def pullable(catalog: Catalog, name: str) -> str:
    """What a pull of the model as it is now is asked for. Raises SourceError for one that was made here."""
    return at_revision(*_origin(catalog, catalog.find(name)))


# How a version came whose source isn't known: an older one that was gone back to was made here as well.
_MADE = ("create", "rollback")


def _origin(catalog: Catalog, model: Model) -> tuple[str, str]:
    version = next(each for each in catalog.versions(model.name) if each.digest == model.digest)
    if source_path(version.source) is not None or (version.action in _MADE and not version.source):
        raise SourceError(f"{model.name!r} was made on this machine, so that it can't be fetched from elsewhere.")
    return version.source or _source_of(ModelName.parse(model.name)), version.revision


def _is_kept(versions: Sequence[Version], digest: str) -> bool:
    return any(version.digest == digest and version.is_kept and not version.is_current for version in versions)


def _blobs(pinned: LockedModel) -> list[BlobRef]:
    return [BlobRef(Digest.parse(file.digest), file.size) for file in pinned.files]


def _files(manifest: Manifest) -> tuple[LockedFile, ...]:
    layers = (*manifest.layers, manifest.config)
    return tuple(LockedFile(layer.digest, layer.size, layer.media_type, layer.name) for layer in layers)


def _source_of(name: ModelName) -> str:
    """Of a model that another program pulled: its name says where from."""
    return f"pypi:{name.namespace}=={name.tag}/{name.model}" if name.host == PACKAGE_HOST else registry_source(name)
