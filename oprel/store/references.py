"""Where a model may come from, as written in an alias or by a user: parsed, but nothing is fetched here."""

from __future__ import annotations

import re
from typing import TypeAlias

from msgspec import Struct

from oprel.errors import InvalidNameError
from oprel.store.names import DEFAULT_NAMESPACE, DEFAULT_TAG, ModelName, as_name_part

__all__ = ["HUB_HOSTS", "PACKAGE_HOST", "HubReference", "PackageReference", "Reference", "parse_reference"]

PACKAGE_HOST = "pypi"
HUB_HOSTS = ("hf.co", "huggingface.co")

_PREFIX = "pypi:"
_PACKAGE = re.compile(
    r"(?P<package>[A-Za-z0-9](?:[A-Za-z0-9._-]{0,78}[A-Za-z0-9])?)"
    r"(?:==(?P<version>[A-Za-z0-9][A-Za-z0-9.!+_-]{0,62}))?"
    r"(?:/(?P<file>[A-Za-z0-9_][A-Za-z0-9_. -]{0,199}))?"
)


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
    """`hf.co/OWNER/REPO[:QUANT]`, or the same without the host."""

    owner: str
    repo: str
    quantization: str | None = None

    def __str__(self) -> str:
        return f"hf.co/{self.owner}/{self.repo}" + (f":{self.quantization}" if self.quantization else "")

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
    a bare name is Ollama's registry. Raises InvalidNameError."""
    text = text.strip(" \t")
    if text.startswith(_PREFIX):
        return PackageReference.parse(text)
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
