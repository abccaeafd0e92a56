"""From what a user wrote to where the model comes from."""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias

from msgspec import Struct

from oprel.store import Aliases, Digest, HubReference, ModelName, PackageReference, Reference, parse_reference
from oprel.store.names import DEFAULT_HOST, as_name_part
from oprel.store.references import file_source, registry_source

__all__ = [
    "FileSource",
    "HubSource",
    "PackageSource",
    "RegistrySource",
    "Source",
    "name_of_file",
    "names_a_host",
    "resolve_source",
    "told",
]


class PackageSource(Struct, frozen=True):
    """`digest` is what the GGUF file must have."""

    reference: PackageReference
    digest: Digest | None = None


class HubSource(Struct, frozen=True):
    reference: HubReference


class RegistrySource(Struct, frozen=True):
    name: ModelName


class FileSource(Struct, frozen=True):
    path: Path


Source: TypeAlias = PackageSource | HubSource | RegistrySource | FileSource


def resolve_source(text: str, *, aliases: Aliases, is_local_user: bool = False) -> Source:
    """In this order: a path (only for a user of this machine, never for a client of the server); `pypi:…`; `hf.co/…`;
    an alias; a registry's host; `OWNER/REPO`, which is the hub; a bare name, which is Ollama's registry.

    Raises InvalidNameError."""
    if is_local_user and looks_like_path(text):
        return FileSource(Path(text).expanduser())
    reference = parse_reference(text)
    digest = None
    if not isinstance(reference, PackageReference) and not _names_a_commit(reference):
        alias = aliases.get(ModelName.parse(text))
        if alias is not None:
            reference, digest = alias.source, alias.digest
    match reference:
        case PackageReference():
            return PackageSource(reference, digest)
        case HubReference():
            return HubSource(reference)
        case ModelName():
            return RegistrySource(reference)


def told(source: Source) -> str:
    """As it is pulled again."""
    match source:
        case PackageSource() | HubSource():
            return str(source.reference)
        case RegistrySource():
            return registry_source(source.name)
        case FileSource():
            return file_source(source.path)


def _names_a_commit(reference: Reference) -> bool:
    return isinstance(reference, HubReference) and reference.revision is not None


def looks_like_path(text: str) -> bool:
    return text.startswith(("/", "./", "../", "~/")) or (text.lower().endswith(".gguf") and Path(text).is_file())


def name_of_file(path: Path) -> ModelName:
    """What a GGUF file is called in the store when nobody names it."""
    stem = path.name[: -len(".gguf")] if path.name.lower().endswith(".gguf") else path.name
    return ModelName.parse(as_name_part(stem))


def names_a_host(text: str) -> bool:
    """Whether who wrote it chose the host that a pull would go to, other than the few that are known. Raises
    InvalidNameError."""
    reference = parse_reference(text)
    return isinstance(reference, ModelName) and reference.host.lower() != DEFAULT_HOST
