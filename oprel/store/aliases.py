"""Aliases: short names for models elsewhere; data in `aliases.toml`, which the user's own file comes before.

A name with `*` in it is a pattern: programs that ask for `gpt-4o-mini` or `claude-sonnet-4` get the model that the user
chose for `gpt-*` and `claude-*`. Whatever else bears the name comes before a pattern.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from msgspec import Struct

from oprel.errors import ConfigError, OprelError
from oprel.store.names import DEFAULT_HOST, DEFAULT_NAMESPACE, DEFAULT_TAG, Digest, ModelName
from oprel.store.quantizations import QUANTIZED_TAG
from oprel.store.references import HubReference, Reference, parse_reference

__all__ = ["Alias", "Aliases", "Wildcard"]

_SHIPPED = Path(__file__).with_name("aliases.toml")
_MAX_FILE_BYTES = 1 << 20
_FIELDS = frozenset({"source", "sha256", "description"})
_WILDCARD = re.compile(r"[A-Za-z0-9_.:*-]{1,160}")


class Alias(Struct, frozen=True):
    """`digest` is what the GGUF file must have, where the alias says. `quantization` was asked for with the name."""

    name: ModelName
    source: Reference
    digest: Digest | None = None
    description: str = ""
    quantization: str | None = None

    @property
    def shown(self) -> str:
        return str(self.name)


class Wildcard(Struct, frozen=True):
    """`pattern`: `*` is any run of characters, also none. `target` is the name of a model that is here, or an alias."""

    pattern: str
    target: str

    def matches(self, name: str) -> bool:
        """Without regard to case; the tag `latest` may be left out on either side."""
        return self._expression.fullmatch(_untagged(name.strip())) is not None

    @property
    def literal_length(self) -> int:
        return len(self.pattern.replace("*", ""))

    @property
    def _expression(self) -> re.Pattern[str]:
        return re.compile(".*".join(re.escape(part) for part in _untagged(self.pattern).split("*")))


class Aliases:
    """A lookup without case, over the entries given."""

    def __init__(self, entries: Mapping[ModelName, Alias] | None = None, *, wildcards: Iterable[Wildcard] = ()) -> None:
        self._entries = {name.key: alias for name, alias in (entries or {}).items()}
        self.wildcards = tuple(sorted(wildcards, key=lambda each: -each.literal_length))

    @classmethod
    def load(cls, user_file: Path | None = None) -> Aliases:
        """The shipped ones, with those of the user's file (which needn't exist) in front. Raises ConfigError."""
        read = list(_read(_SHIPPED))
        if user_file is not None and user_file.expanduser().is_file():
            read += _read(user_file.expanduser())
        entries = {alias.name.key: alias for alias in read if isinstance(alias, Alias)}
        return cls(
            {alias.name: alias for alias in entries.values()},
            wildcards=[each for each in read if isinstance(each, Wildcard)],
        )

    def __iter__(self) -> Iterator[Alias]:
        return iter(self._entries.values())

    def __len__(self) -> int:
        return len(self._entries)

    def wildcard(self, name: str) -> Wildcard | None:
        """The pattern that says most of those that `name` fits."""
        return next((each for each in self.wildcards if each.matches(name)), None)

    def get(self, name: ModelName) -> Alias | None:
        """The alias of that name, or of the name without the quantization that its tag ends with
        (`qwen2.5:3b-q8_0`, `llama3:8b-instruct-q4_K_M`). Only short names (no host, no namespace) are aliases."""
        if name.host != DEFAULT_HOST or name.namespace != DEFAULT_NAMESPACE:
            return None
        if (alias := self._entries.get(name.key)) is not None:
            return alias
        match = QUANTIZED_TAG.fullmatch(name.tag)
        if match is None:
            return None
        alias = self._sized(name, match["size"] or "")
        return None if alias is None else _quantized(alias, match["quantization"])

    def _sized(self, name: ModelName, size: str) -> Alias | None:
        """`3b-instruct` is the alias of `3b`; what no alias has is that of `latest`, unless this is a family of several
        sizes and the one that is meant isn't in the name of its source."""
        words = size.split("-")
        for count in range(len(words), 0, -1):
            tag = "-".join(words[:count]).lower()
            if tag and (alias := self._entries.get((*name.key[:3], tag))) is not None:
                return alias
        latest = self._entries.get((*name.key[:3], DEFAULT_TAG))
        has_sizes = sum(key[:3] == name.key[:3] for key in self._entries) > 1
        if latest is None or (has_sizes and words[0] and words[0].lower() not in str(latest.source).lower()):
            return None
        return latest


def _untagged(name: str) -> str:
    return name.lower().removesuffix(f":{DEFAULT_TAG}")


def _quantized(alias: Alias, quantization: str) -> Alias | None:
    """None where the source is one file, which has the quantization that it has."""
    if not isinstance(alias.source, HubReference):
        return None
    source = HubReference(alias.source.owner, alias.source.repo, quantization)
    return Alias(name=alias.name, source=source, digest=None, description=alias.description, quantization=quantization)


def _read(path: Path) -> Iterator[Alias | Wildcard]:
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise ConfigError(f"{path} is larger than {_MAX_FILE_BYTES >> 10} KiB; aliases are one short line each.")
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise ConfigError(f"The aliases in {path} can't be read: {problem}.") from problem
    aliases = table.get("aliases")
    if not isinstance(aliases, dict):
        raise ConfigError(f'{path} has no [aliases] table; write lines like "name" = "OWNER/REPO" below one.')
    for name, value in aliases.items():
        yield _parse_wildcard(path, name, value) if "*" in name else _parse(path, name, value)


def _parse_wildcard(path: Path, pattern: str, value: Any) -> Wildcard:
    if not _WILDCARD.fullmatch(pattern) or not isinstance(value, str):
        raise ConfigError(
            f'The pattern {pattern!r} in {path} can\'t be used: write it like "gpt-*" = "NAME", with letters, digits, '
            "_ . : - and *, and the name of a model."
        )
    try:
        parse_reference(value)
    except OprelError as problem:
        raise ConfigError(f"The pattern {pattern!r} in {path} can't be used: {problem}") from problem
    return Wildcard(pattern, value)


def _parse(path: Path, name: str, value: Any) -> Alias:
    fields = {"source": value} if isinstance(value, str) else value
    if not isinstance(fields, dict) or not isinstance(fields.get("source"), str) or not _FIELDS.issuperset(fields):
        raise ConfigError(f"The alias {name!r} in {path} needs a source, and may have sha256 and description.")
    try:
        parsed = ModelName.parse(name)
        digest = Digest(fields["sha256"]) if "sha256" in fields else None
        source = parse_reference(fields["source"])
    except (OprelError, TypeError) as problem:
        raise ConfigError(f"The alias {name!r} in {path} can't be used: {problem}") from problem
    if parsed.host != DEFAULT_HOST or parsed.namespace != DEFAULT_NAMESPACE:
        raise ConfigError(f"The alias {name!r} in {path} isn't a short name; write it as name[:tag].")
    return Alias(name=parsed, source=source, digest=digest, description=str(fields.get("description", "")))
