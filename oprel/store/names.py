"""Model names and digests: the only code that turns a string from outside into a path.

The grammar is Ollama's: `[scheme://][host/][namespace/]model[:tag]`, read from the right.

| part | default | length | characters (the first: a letter, a digit or `_`) |
|---|---|---|---|
| host | `registry.ollama.ai` | 1-350 | letters, digits, `_ - . :` |
| namespace | `library` | 1-80 | letters, digits, `_ -` |
| model | | 1-80 | letters, digits, `_ - .` |
| tag | `latest` | 1-80 | letters, digits, `_ - .` |

No part can be `.` or `..`, be empty, or hold a separator, so a parsed name always lands exactly four levels below
`manifests/`, and a parsed digest exactly one below `blobs/`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from oprel.errors import InvalidNameError, InvalidRequestError

__all__ = [
    "DEFAULT_HOST",
    "DEFAULT_NAMESPACE",
    "DEFAULT_TAG",
    "Digest",
    "DigestPrefix",
    "ModelName",
    "as_name_part",
    "split_version",
]

DEFAULT_HOST = "registry.ollama.ai"
DEFAULT_NAMESPACE = "library"
DEFAULT_TAG = "latest"

_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,349}")
_NAMESPACE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,79}")
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}")
_SCHEME = re.compile(r"https?://")
_MAX_LENGTH = 700
_DIGEST = re.compile(r"sha256[:-]([0-9a-f]{64})")
_HEX = re.compile(r"[0-9a-f]{64}")
_HEX_START = re.compile(r"[0-9a-f]{12,64}")
_VERSION_MARK = "@sha256:"


@dataclass(frozen=True, slots=True)
class ModelName:
    """Parts keep the case they were written in; `key` is what two spellings of one name share."""

    host: str
    namespace: str
    model: str
    tag: str

    def __post_init__(self) -> None:
        rules = ((_HOST, self.host), (_NAMESPACE, self.namespace), (_PART, self.model), (_PART, self.tag))
        if not all(rule.fullmatch(part) for rule, part in rules):
            raise _invalid(f"{self.host}/{self.namespace}/{self.model}:{self.tag}")

    @classmethod
    def parse(cls, raw: str) -> ModelName:
        """Spaces around the name are dropped, as is `http://` or `https://`. Raises InvalidNameError."""
        text = raw.strip(" \t")
        if len(text) > _MAX_LENGTH:
            raise _invalid(raw)
        scheme = _SCHEME.match(text)
        rest = text[scheme.end() :] if scheme else text
        path, tag = _split_tag(rest)
        parts = path.split("/")
        if len(parts) > 3:
            raise _invalid(raw)
        host, namespace, model = [DEFAULT_HOST, DEFAULT_NAMESPACE][: 3 - len(parts)] + parts
        try:
            return cls(host, namespace, model, tag)
        except InvalidNameError:
            raise _invalid(raw) from None

    def __str__(self) -> str:
        """The display form: the default host and namespace are left out, the tag never is."""
        if self.host != DEFAULT_HOST:
            return f"{self.host}/{self.namespace}/{self.model}:{self.tag}"
        if self.namespace != DEFAULT_NAMESPACE:
            return f"{self.namespace}/{self.model}:{self.tag}"
        return f"{self.model}:{self.tag}"

    @property
    def parts(self) -> tuple[str, str, str, str]:
        return (self.host, self.namespace, self.model, self.tag)

    @property
    def key(self) -> tuple[str, str, str, str]:
        return (self.host.lower(), self.namespace.lower(), self.model.lower(), self.tag.lower())

    def manifest_path(self, models_dir: Path) -> Path:
        return models_dir.joinpath("manifests", *self.parts)


@dataclass(frozen=True, slots=True)
class Digest:
    """A SHA-256, as 64 lowercase hexadecimal digits."""

    hex: str

    def __post_init__(self) -> None:
        if not _HEX.fullmatch(self.hex):
            raise _bad_digest(self.hex)

    @classmethod
    def parse(cls, raw: str) -> Digest:
        """`sha256:<hex>` or `sha256-<hex>`, nothing else. Raises InvalidRequestError."""
        match = _DIGEST.fullmatch(raw)
        if match is None:
            raise _bad_digest(raw)
        return cls(match.group(1))

    def __str__(self) -> str:
        return f"sha256:{self.hex}"

    @property
    def short(self) -> str:
        return self.hex[:12]

    def blob_path(self, models_dir: Path) -> Path:
        return models_dir / "blobs" / f"sha256-{self.hex}"


@dataclass(frozen=True, slots=True)
class DigestPrefix:
    """The first 12 digits of a digest or more, up to all 64: what a person writes for a version of a model."""

    hex: str

    def __post_init__(self) -> None:
        if not _HEX_START.fullmatch(self.hex):
            raise InvalidRequestError(
                f"{self.hex[:100]!r} isn't the start of a digest; write 12 to 64 lowercase hexadecimal digits.",
                param="digest",
            )

    @classmethod
    def parse(cls, raw: str) -> DigestPrefix:
        """With `sha256:` in front, or without. Raises InvalidRequestError."""
        return cls(raw.removeprefix("sha256:"))

    def __str__(self) -> str:
        return f"sha256:{self.hex}"

    def starts(self, digest: str) -> bool:
        return digest.startswith(self.hex)


def split_version(raw: str) -> tuple[str, DigestPrefix | None]:
    """`NAME@sha256:<hex>` as its two parts; the second is None where the text has no `@`. The name isn't parsed.
    Raises InvalidNameError for any other text with an `@`."""
    if "@" not in raw:
        return raw, None
    name, mark, digits = raw.strip(" \t").partition(_VERSION_MARK)
    if not mark or not name or "@" in name or not _HEX_START.fullmatch(digits):
        raise _invalid(raw)
    return name, DigestPrefix(digits)


def as_name_part(text: str, *, fallback: str = "model") -> str:
    """Make a name's model or tag part of a file name or version: what the grammar refuses becomes `-`."""
    cleaned = re.sub(r"[^A-Za-z0-9_.-]+", "-", text).lstrip("-.")[:80]
    return cleaned or fallback


def _split_tag(text: str) -> tuple[str, str]:
    colon = text.rfind(":")
    if colon <= text.rfind("/"):
        return text, DEFAULT_TAG
    return text[:colon], text[colon + 1 :]


def _invalid(raw: str) -> InvalidNameError:
    shown = raw if len(raw) <= 100 else raw[:100] + "…"
    return InvalidNameError(
        f"{shown!r} isn't a model name; write it as [host/][namespace/]model[:tag], like 'smollm2:135m'.", name=shown
    )


def _bad_digest(raw: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"{raw[:100]!r} isn't a digest; write 'sha256:' and 64 lowercase hexadecimal digits.", param="digest"
    )
