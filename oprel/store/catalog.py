"""All models on this machine: the store that Oprel writes, stores of Ollama found elsewhere, and aliases over both."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from msgspec import Struct
from msgspec.structs import replace

from oprel.errors import InvalidNameError, InvalidRequestError, ModelDamagedError, ModelNotFoundError, StoreError
from oprel.schema import Model, ModelFile
from oprel.store.aliases import Alias, Aliases
from oprel.store.gguf import GgufMetadata, read_gguf
from oprel.store.manifests import (
    MAX_MANIFEST_BYTES,
    Manifest,
    ManifestEntry,
    changed_at,
    find_spelling,
    is_taken,
    iter_manifests,
    parse_manifest,
    read_small,
)
from oprel.store.names import Digest, DigestPrefix, ModelName, split_version
from oprel.store.records import build_model, damage_of_files
from oprel.store.references import (
    HUB_HOSTS,
    PACKAGE_HOST,
    HubReference,
    PackageReference,
    Reference,
    parse_reference,
)
from oprel.store.remote_shelf import RemoteShelf
from oprel.store.store import Store
from oprel.store.tree_records import build_tree_model
from oprel.store.trees import Trees
from oprel.store.versions import Change, Retention, Version

if TYPE_CHECKING:
    from oprel.config import Settings  # its pydantic is heavy, and the command line often does without

__all__ = ["Catalog", "Shelf"]

_ALL_ARRAYS = 1 << 22


class Shelf(Protocol):
    """Models of another kind than Ollama's store holds: folders, remote ones. Asked from several threads; what can't
    be used is a model with `damage`. `described` False: as `Catalog.list`."""

    def find(self, name: str) -> Model | None:
        """A model by its name, without regard to case."""
        ...

    # Below the others, since its name would hide the type.
    def list(self, *, described: bool = True) -> tuple[Model, ...]: ...


class _Found(Struct, frozen=True):
    """A model with the parsed name that it is stored under."""

    name: ModelName
    model: Model


class _Record(Struct, frozen=True):
    """What a manifest's file looked like when the model was built from it."""

    stamp: tuple[int, int, int]
    model: Model


class Catalog:
    """Sync, and safe to use from several threads; what touches the disk belongs in one.

    A model is built from its manifest once, and again when the manifest's file changes; the sizes of its files are
    looked at on each use. A manifest, config or file that can't be used makes that one model damaged.
    """

    def __init__(
        self,
        store: Store,
        *,
        aliases: Aliases | None = None,
        extra_dirs: Sequence[Path] = (),
        shelves: Sequence[Shelf] = (),
    ) -> None:
        self.store = store
        self.shelves = tuple(shelves)
        self.aliases = aliases if aliases is not None else Aliases()
        roots = [store.models_dir, *(path.expanduser().absolute() for path in extra_dirs)]
        self._roots = tuple(dict.fromkeys(roots))
        self._records: dict[Path, _Record] = {}

    @classmethod
    def from_settings(cls, settings: Settings) -> Catalog:
        """Raises ConfigError for a file of aliases that can't be read."""
        retention = Retention(settings.keep_versions, settings.keep_versions_bytes)
        store = Store(settings.models_dir, state_dir=settings.state_dir, retention=retention)
        return cls(
            store,
            aliases=Aliases.load(settings.aliases_file),
            extra_dirs=settings.extra_models_dirs,
            shelves=(
                Trees(settings.trees_dir, state_dir=settings.state_dir, retention=retention),
                *((RemoteShelf(settings.remotes),) if settings.remotes else ()),
            ),
        )

    @property
    def roots(self) -> tuple[Path, ...]:
        """The folders of models, the one that is written to first."""
        return self._roots

    def find(self, name: str, *, patterns: bool = True) -> Model:
        """An installed name (without regard to case; the store before the shelves), then an alias, then `pypi:…` and
        `OWNER/REPO` as they were stored, then what a pattern among the aliases stands for (`patterns` False: what
        isn't meant for whatever the pattern leads to, such as its end); `NAME@sha256:…` is a version of it, its name
        with the digest. Raises InvalidNameError, ModelNotFoundError; a damaged model is returned, with `damage`."""
        try:
            return self._find(name)
        except ModelNotFoundError:
            wildcard = self.aliases.wildcard(name) if patterns else None
            if wildcard is None:
                raise
        try:
            return self._find(wildcard.target)
        except ModelNotFoundError as missing:
            raise ModelNotFoundError(
                f"{name[:200]!r} stands for {wildcard.target!r} by the pattern {wildcard.pattern!r} among the aliases; "
                f"{missing.message}",
                model=name,
            ) from missing

    def _find(self, name: str) -> Model:
        name, version = split_version(name)
        if version is not None:
            return self._version(name, version)
        found = self._look_up(name)
        if (found is None or not _is_called(found, name)) and (shelved := self._shelved(name)) is not None:
            return shelved
        if found is None and (shelved := self._shelved_from_hub(name)) is not None:
            return shelved
        if found is None:
            excuse = "".join(f"; {text}" for text in self._problems())
            raise ModelNotFoundError(
                f"Model {name[:200]!r} isn't here; get it with: oprel pull {name[:200]}{excuse}", model=name
            )
        return replace(found.model, aliases=self._aliases_of(found))

    def metadata(self, model: Model, *, full: bool = False) -> GgufMetadata:
        """All keys and tensors of its weights, in whatever parts they are; `full` with the arrays that are otherwise
        skipped (slow: not kept). Raises ModelDamagedError, StoreError."""
        if model.damage is not None or not model.files:
            raise ModelDamagedError(model.damage or f"Model {model.name!r} has no files.", model=model.name)
        parts = [self._header(model, file, full=full) for file in model.files if file.role == "weights"]
        if len(parts) == 1:
            return parts[0]
        return replace(parts[0], tensors=tuple(tensor for part in parts for tensor in part.tensors))

    def _header(self, model: Model, file: ModelFile, *, full: bool) -> GgufMetadata:
        if full:
            return read_gguf(Path(file.path), model=model.name, array_limit=_ALL_ARRAYS)
        return self.store.metadata_cache.get(Digest(file.digest), Path(file.path), model=model.name)

    def blob_path(self, digest: str) -> Path:
        """Where the blob is, or would be written. `sha256:<hex>`, `sha256-<hex>` or the bare digits."""
        parsed = Digest.parse(digest) if digest.startswith("sha256") else Digest(digest)
        paths = [parsed.blob_path(root) for root in self._roots]
        return next((path for path in paths if path.is_file()), paths[0])

    def installed(self, reference: Reference, digest: Digest | None = None) -> Model | None:
        """The newest model stored from that source, with weights of that digest if one is given."""
        found = self._covered(reference, digest)
        return None if found is None else found.model

    def is_stored(self, name: ModelName) -> bool:
        """Whether a store, this one or one that is read, has a model of that very name."""
        return self._entry(name) is not None

    def manifest_of(self, model: Model) -> tuple[Manifest, Path] | None:
        """The manifest of a model in a store, and that store; None for one of a shelf. Raises InvalidRequestError,
        StoreError."""
        entry = self._entry(ModelName.parse(model.name))
        if entry is None or self._model(entry).digest != model.digest:
            return None
        return parse_manifest(read_small(entry.path, MAX_MANIFEST_BYTES)), entry.root

    def are_files_known(self, model: Model) -> bool:
        """Whether all files were found to be what their names say, and look as they did then. A stat of each."""
        return all(self.store.verified.holds(Digest(file.digest), Path(file.path)) for file in model.files)

    def check_files(self, model: Model, *, progress: Callable[[int], None] | None = None) -> None:
        """Reads the files of a model that is about to be loaded, those that weren't read before or look otherwise
        now; ModelDamagedError for one that isn't what its name says. Blocking, for as long as that takes; what
        `progress` raises ends it."""
        for file in model.files:
            if not self.store.verified.check(Digest(file.digest), Path(file.path), progress=progress):
                raise ModelDamagedError(
                    f"Model {model.name!r} is damaged: its file sha256-{file.digest} doesn't hold what its name says; "
                    f"mend it with: oprel verify {model.name} --repair",
                    model=model.name,
                    digest=file.digest,
                )

    def copy(self, source: Model, destination: ModelName) -> None:
        """One more name for a model that `find` gave, whichever store has it. Raises InvalidRequestError for a remote
        one and for a destination that is a model of the other kind, ModelDamagedError, StoreError."""
        name = ModelName.parse(source.name)
        home = next((trees for trees in self.trees if trees.has(name)), None)
        others = self.trees if home is None else [self.store]
        if any(other.versions.current(destination) is not None for other in others):
            raise InvalidRequestError(
                f"There is a model of another kind called {str(destination)!r} already: remove it first."
            )
        if home is not None:
            home.copy(name, destination)
        elif not self.store.copy(name, destination):
            entry = self._entry(name)
            if entry is None:
                raise InvalidRequestError(f"Model {source.name!r} is on another server and can't be copied.")
            self.store.adopt(entry, destination)

    def manifest(self, model: Model) -> bytes:
        """Of a model that `find` gave. Raises ModelNotFoundError for a remote one, StoreError."""
        name = ModelName.parse(model.name)
        entry = self._entry(name)
        path = entry.path if entry is not None else self._place(model.name)[0].manifest_path(self.trees[0].trees_dir)
        return read_small(path, MAX_MANIFEST_BYTES)

    def add_tree(self, folder: Path, name: ModelName, change: Change) -> None:
        """A folder as a model, where this catalog has models that are folders. Raises StoreError where it hasn't."""
        if not self.trees:
            raise StoreError("There is no place for models that are folders.")
        self.trees[0].add(folder, name, change=change)

    def versions(self, name: str) -> tuple[Version, ...]:
        """Of a model by its name or alias, the current one first. Raises InvalidNameError, ModelNotFoundError."""
        parsed, place = self._place(name)
        return place.versions.of(parsed)

    def rollback(self, name: str, wanted: DigestPrefix | None = None) -> Version:
        """Give a model by its name or alias a version that it had, by default the one before. Raises as `versions`,
        InvalidRequestError and StoreError."""
        parsed, place = self._place(name)
        return place.rollback(parsed, wanted)

    def owns(self, model: Model) -> bool:
        """Whether it is in the store or the folders, and so can be deleted."""
        if model.remote is not None:
            return False
        name = ModelName.parse(model.name)
        places = (self.store.versions, *(trees.versions for trees in self.trees))
        return any(place.current(name) is not None for place in places)

    def delete(self, name: str) -> bool:
        """From the store, or the folders; False where neither has it."""
        parsed = ModelName.parse(name)
        return self.store.delete(parsed) or any(trees.delete(name) for trees in self.trees)

    @property
    def read_dirs(self) -> tuple[Path, ...]:
        """Other programs' stores, which are read and never written."""
        return self._roots[1:]

    @property
    def trees(self) -> tuple[Trees, ...]:
        """The shelves of models that are folders."""
        return tuple(shelf for shelf in self.shelves if isinstance(shelf, Trees))

    def _place(self, name: str) -> tuple[ModelName, Store | Trees]:
        """A name as it is stored, and where; one whose manifest is gone, but not its versions, too."""
        places: tuple[Store | Trees, ...] = (self.store, *self.trees)
        try:
            parsed = ModelName.parse(self.find(name, patterns=False).name)
        except ModelNotFoundError:
            parsed = ModelName.parse(name)
            for place in places:
                if any(version.is_kept for version in place.versions.of(parsed)):
                    return parsed, place
            raise
        return parsed, next((place for place in places if place.versions.current(parsed) is not None), self.store)

    def _version(self, name: str, wanted: DigestPrefix) -> Model:
        """A version of a model, as it is or from what is kept of it."""
        parsed, place = self._place(name)
        version = place.versions.choose(parsed, wanted)
        shown = f"{parsed}@sha256:{version.digest}"
        if version.is_current:
            return replace(self.find(str(parsed)), name=shown, aliases=())
        root = place.versions.folder
        entry = ManifestEntry(parsed, root / "manifests" / version.digest, root)
        if isinstance(place, Trees):
            entry = ManifestEntry(parsed, entry.path, place.trees_dir)
            return replace(build_tree_model(entry, modified_at=version.at), name=shown)
        return replace(build_model(entry, self.store.metadata_cache, modified_at=version.at), name=shown)

    def _shelved(self, name: str) -> Model | None:
        return next((model for shelf in self.shelves if (model := shelf.find(name)) is not None), None)

    def _shelved_from_hub(self, name: str) -> Model | None:
        """A folder that was pulled from a hub's repository, by any way to write that, aliases included."""
        reference = parse_reference(name)
        if not isinstance(reference, PackageReference):
            alias = self.aliases.get(ModelName.parse(name))
            reference = alias.source if alias is not None else reference
        return self._shelved(str(reference.stored_name())) if isinstance(reference, HubReference) else None

    def _problems(self) -> Iterator[str]:
        for shelf in self.shelves:
            if isinstance(shelf, RemoteShelf):
                yield from shelf.problems()

    def _look_up(self, name: str) -> _Found | None:
        reference = parse_reference(name)
        if isinstance(reference, PackageReference):
            return self._covered(reference, None)
        parsed = ModelName.parse(name)
        if (found := self._stored(parsed)) is not None:
            return found
        if (alias := self.aliases.get(parsed)) is not None:
            return self._covered(alias.source, alias.digest)
        return self._covered(reference, None) if isinstance(reference, HubReference) else None

    def _stored(self, name: ModelName) -> _Found | None:
        entry = self._entry(name)
        return None if entry is None else _Found(entry.name, self._model(entry))

    def _entry(self, name: ModelName) -> ManifestEntry | None:
        for root in self._roots:
            path = name.manifest_path(root)
            if is_taken(path):
                return ManifestEntry(name, path, root)
            spelled = find_spelling(root, name)
            if spelled != name and is_taken(path := spelled.manifest_path(root)):
                return ManifestEntry(spelled, path, root)
        return None

    def _covered(self, reference: Reference, digest: Digest | None) -> _Found | None:
        if isinstance(reference, ModelName):
            return self._stored(reference)
        return _newest(_matching(self._group(reference), reference, digest))

    def _group(self, reference: PackageReference | HubReference) -> Iterable[_Found]:
        """Everything stored from a package or an owner's repositories."""
        seen = set()
        for root in self._roots:
            for below in _folders(root, reference):
                for entry in iter_manifests(root, *below):
                    if entry.name.key not in seen:
                        seen.add(entry.name.key)
                        yield _Found(entry.name, self._model(entry))

    def _model(self, entry: ManifestEntry, *, described: bool = True) -> Model:
        try:
            stat = entry.path.stat()
        except OSError:
            return build_model(entry, self.store.metadata_cache, modified_at=0.0)
        stamp = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
        record = self._records.get(entry.path)
        if record is not None and record.stamp == stamp:
            damage = damage_of_files(record.model)
            return record.model if damage is None else replace(record.model, damage=damage)
        if not described:
            return build_model(entry, None, modified_at=changed_at(stat))
        model = build_model(entry, self.store.metadata_cache, modified_at=changed_at(stat))
        if model.damage is None:  # what is damaged may be repaired without a change to its manifest
            self._records[entry.path] = _Record(stamp, model)
        return model

    def _aliases_of(self, found: _Found) -> tuple[str, ...]:
        host = found.name.host.lower()
        if host == PACKAGE_HOST:
            group = self._group(PackageReference(found.name.namespace))
        elif host in HUB_HOSTS:
            group = self._group(HubReference(found.name.namespace, found.name.model))
        else:
            group = [found]
        aliases = self._aliases_by_name(group)[found.name.key]
        return tuple(alias for alias in aliases if self._entry(ModelName.parse(alias)) is None)

    def _aliases_by_name(self, models: Iterable[_Found]) -> defaultdict[tuple[str, ...], list[str]]:
        """Which of the models each alias stands for, by the name's key. An installed model hides an alias."""
        stored: set[tuple[str, ...]] = set()
        groups: defaultdict[tuple[str, str], list[_Found]] = defaultdict(list)
        for each in models:
            stored.add(each.name.key)
            host, namespace = each.name.key[:2]
            groups["hf.co" if host in HUB_HOSTS else host, namespace].append(each)
        found: defaultdict[tuple[str, ...], list[str]] = defaultdict(list)
        for alias in self.aliases:
            if alias.name.key not in stored and (meant := _meant_by(alias, groups)) is not None:
                found[meant.name.key].append(alias.shown)
        return found

    # Below the others, since inside the class its name would hide the type `list`.
    def list(self, *, described: bool = True) -> tuple[Model, ...]:
        """Newest first. A name that several stores have is listed once, as it is used. `described` False: the files of
        models that weren't looked into yet aren't opened for it, so that what only they tell is missing (what a model
        can do, its sizes; damage that only their headers show)."""
        found: dict[tuple[str, ...], _Found] = {}
        for root in self._roots:
            for entry in iter_manifests(root):
                if entry.name.key not in found:
                    found[entry.name.key] = _Found(entry.name, self._model(entry, described=described))
        aliases = self._aliases_by_name(found.values())
        taken = {each.model.name.lower() for each in found.values()}
        shelved: dict[str, Model] = {}
        for model in (model for shelf in self.shelves for model in shelf.list(described=described)):
            if model.name.lower() not in taken:
                shelved.setdefault(model.name.lower(), model)
        models = [*shelved.values()]
        for each in found.values():
            shown = tuple(alias for alias in aliases[each.name.key] if alias.lower() not in shelved)
            models.append(replace(each.model, aliases=shown))
        return tuple(sorted(models, key=lambda model: (-model.modified_at, model.name)))


def _is_called(found: _Found, name: str) -> bool:
    try:
        return ModelName.parse(name).key == found.name.key
    except InvalidNameError:
        return False


def _meant_by(alias: Alias, groups: defaultdict[tuple[str, str], list[_Found]]) -> _Found | None:
    source = alias.source
    if isinstance(source, ModelName):
        key = (source.key[0], source.key[1])
        return next((each for each in groups.get(key, ()) if each.name.key == source.key), None)
    key = (PACKAGE_HOST, source.package) if isinstance(source, PackageReference) else ("hf.co", source.owner.lower())
    return _newest(_matching(groups.get(key, ()), source, alias.digest))


def _matching(
    models: Iterable[_Found], reference: PackageReference | HubReference, digest: Digest | None
) -> Iterable[_Found]:
    for each in models:
        if reference.covers(each.name) and (digest is None or _has_weights(each.model, digest)):
            yield each


def _has_weights(model: Model, digest: Digest) -> bool:
    return any(file.role == "weights" and file.digest == digest.hex for file in model.files)


def _newest(models: Iterable[_Found]) -> _Found | None:
    """Damaged ones last."""
    return max(models, key=lambda each: (each.model.damage is None, each.model.modified_at), default=None)


def _folders(root: Path, reference: PackageReference | HubReference) -> Iterable[tuple[str, ...]]:
    if isinstance(reference, PackageReference):
        return [(PACKAGE_HOST, reference.package)]
    folders = []
    for host in HUB_HOSTS:
        spelled = find_spelling(root, ModelName(host, reference.owner, reference.repo, "latest"))
        folders.append((spelled.host, spelled.namespace, spelled.model))
    return folders
