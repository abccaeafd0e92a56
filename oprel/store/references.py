"""Where a model may come from, as written in an alias or by a user: parsed, but nothing is fetched here."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TypeAlias

from msgspec import Struct
from msgspec.structs import replace

from oprel.errors import InvalidNameError
from oprel.store.names import DEFAULT_HOST, DEFAULT_NAMESPACE, DEFAULT_TAG, ModelName, as_name_part

__all__ = [
    "HUB_HOSTS",
    "PACKAGE_HOST",
    "HubReference",
    "PackageReference",
    "Reference",
    "at_revision",
    "file_source",
    "parse_reference",
    "registry_source",
    "source_path",
]

PACKAGE_HOST = "pypi"
HUB_HOSTS = ("hf.co", "huggingface.co")

_PREFIX = "pypi:"
_PACKAGE = re.compile(
    r"(?P<package>[A-Za-z0-9](?:[A-Za-z0-9._-]{0,78}[A-Za-z0-9])?)"
    r"(?:==(?P<version>[A-Za-z0-9][A-Za-z0-9.!+_-]{0,62}))?"
    r"(?:/(?P<file>[A-Za-z0-9_][A-Za-z0-9_. -]{0,199}))?"
)
_FILE = "file:"
# A commit's id: SHA-1, or SHA-256 in a repository that has those.
_AT_REVISION = re.compile(r"(?P<rest>[^@]*)@(?P<revision>[0-9a-f]{40}(?:[0-9a-f]{24})?)")


class PackageReference(Struct, frozen=True):
    """`pypi:PACKAGE[==VERSION][/FILE]`; `package` is normalized (PEP 503), `file` a GGUF's own name in the wheel."""

    package: str
    version: str | None = None
    file: str | None = None

    @classmethod
    def parse(cls, text: str) -> PackageReference:
        match = _PACKAGE.fullmatch(text.strip(" \t").removeprefix(_PREFIX))
        if match is None:
            raise InvalidNameError(
                f"{text[:100]!r} isn't a package; write it as pypi:PACKAGE[==VERSION][/FILE].", name=text[:100]
            )
        package = re.sub(r"[-_.]+", "-", match["package"]).lower()
        return cls(package=package, version=match["version"], file=match["file"])

    def __str__(self) -> str:
        version = f"=={self.version}" if self.version else ""
        return f"{_PREFIX}{self.package}{version}" + (f"/{self.file}" if self.file else "")

    def stored_name(self, *, file: str, version: str) -> ModelName:
        """What a file of this package is called in the store."""
        return ModelName(PACKAGE_HOST, self.package, _stem(file), as_name_part(version, fallback="0"))

    def covers(self, name: ModelName) -> bool:
        """Whether a name in the store is one of those that this reference means."""
        return (
            name.host == PACKAGE_HOST
            and name.namespace == self.package
            and (self.version is None or name.tag == as_name_part(self.version))
            and (self.file is None or name.model == _stem(self.file))
        )


class HubReference(Struct, frozen=True):
    """`hf.co/OWNER/REPO[:QUANT][@COMMIT]`, or the same without the host; `revision` is the commit's full id."""

    owner: str
    repo: str
    quantization: str | None = None
    revision: str | None = None

    def __str__(self) -> str:
        quantization = f":{self.quantization}" if self.quantization else ""
        return f"hf.co/{self.owner}/{self.repo}{quantization}" + (f"@{self.revision}" if self.revision else "")

    def stored_name(self, tag: str | None = None) -> ModelName:
        """What a model of this repository is called in the store: under `tag`, else what was asked for."""
        return ModelName(HUB_HOSTS[0], self.owner, self.repo, tag or self.quantization or DEFAULT_TAG)

    def covers(self, name: ModelName) -> bool:
        host, namespace, model, tag = name.key
        return (
            host in HUB_HOSTS
            and (namespace, model) == (self.owner.lower(), self.repo.lower())
            and (self.quantization is None or tag == self.quantization.lower())
        )


Reference: TypeAlias = PackageReference | HubReference | ModelName
"""A ModelName stands for a registry's model."""


def parse_reference(text: str) -> Reference:
    """In this order: `pypi:…`; `hf.co/…`; a first part with a dot or a port is a registry; `OWNER/REPO` is the hub;
    a bare name is Ollama's registry. Only the hub has commits to name. Raises InvalidNameError."""
    text = text.strip(" \t")
    if text.startswith(_PREFIX):
        return PackageReference.parse(text)
    match = _AT_REVISION.fullmatch(text)
    if match is None:
        return _named(text)
    reference = _named(match["rest"])
    if not isinstance(reference, HubReference):
        raise InvalidNameError(
            f"{text[:100]!r} isn't a repository of the hub: only those have commits.", name=text[:100]
        )
    return replace(reference, revision=match["revision"])


def at_revision(source: str, revision: str) -> str:
    """What pulls that revision of a source and no other; the source itself where it has no such thing. Raises
    InvalidNameError."""
    reference = parse_reference(source)
    return str(replace(reference, revision=revision)) if revision and isinstance(reference, HubReference) else source


def registry_source(name: ModelName) -> str:
    """What pulls a model of a registry: its name, with the host wherever it would otherwise be a repository's."""
    if name.host == DEFAULT_HOST and name.namespace != DEFAULT_NAMESPACE:
        return f"{name.host}/{name}"
    return str(name)


def file_source(path: Path) -> str:
    """What a model of a file or folder of this machine is noted to be from."""
    return f"{_FILE}{path}"


def source_path(source: str) -> Path | None:
    """The file or folder of this machine that a noted source is; None for one that can be pulled on others."""
    return Path(source.removeprefix(_FILE)) if source.startswith(_FILE) else None


def _named(text: str) -> HubReference | ModelName:
    name = ModelName.parse(text)
    path = text.split("://", 1)[-1]
    has_tag = ":" in path.rpartition("/")[2]
    # `latest` is what Ollama's clients write where nothing was named.
    quantization = name.tag if has_tag and name.tag.lower() != DEFAULT_TAG else None
    if name.host.lower() in HUB_HOSTS:
        return HubReference(name.namespace, name.model, quantization)
    if path.count("/") == 2 or name.namespace == DEFAULT_NAMESPACE:
        return name
    return HubReference(name.namespace, name.model, quantization)


def _stem(file: str) -> str:
    return as_name_part(file.removesuffix(".gguf").removesuffix(".GGUF"))
