"""Manifests and configs as Ollama writes them, read with limits.

A manifest lists the blobs that make a model; its file's SHA-256 is the model's digest. Local ones end with a newline,
pulled ones are the registry's bytes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from oprel.errors import InvalidNameError, InvalidRequestError, StoreError
from oprel.store.blobs import BlobRef
from oprel.store.names import Digest, ModelName

__all__ = [
    "MEDIA",
    "Layer",
    "Manifest",
    "ManifestEntry",
    "ModelConfig",
    "changed_at",
    "check_removable",
    "decode_json",
    "encode_config",
    "encode_manifest",
    "find_spelling",
    "is_taken",
    "iter_manifests",
    "parse_manifest",
    "read_small",
]

MAX_MANIFEST_BYTES = 4 << 20
MAX_TEXT_BYTES = 1 << 20
MAX_LAYERS = 1000
MAX_SIZE_BYTES = 1 << 50
_YEAR_9999 = 253_370_764_800.0

MANIFEST_TYPE = "application/vnd.docker.distribution.manifest.v2+json"
CONFIG_TYPE = "application/vnd.docker.container.image.v1+json"
_LAYER_PREFIX = "application/vnd.ollama.image."
MEDIA = {
    kind: _LAYER_PREFIX + kind
    for kind in ("model", "projector", "adapter", "draft", "template", "system", "params", "messages", "license")
}
_KINDS = {media: kind for kind, media in MEDIA.items()} | {_LAYER_PREFIX + "prompt": "template"}


class Layer(Struct, frozen=True, omit_defaults=True, rename={"media_type": "mediaType", "origin": "from"}):
    """`origin` is the parent's name, on the weights only. `digest` is checked when the manifest is parsed."""

    media_type: str
    digest: str
    size: int
    origin: str = ""
    name: str = ""

    @property
    def kind(self) -> str:
        """`model`, `template`, …; empty for a type that Oprel doesn't know."""
        return _KINDS.get(self.media_type, "")

    @property
    def blob(self) -> BlobRef:
        return BlobRef(digest=Digest.parse(self.digest), size_bytes=self.size)


class Manifest(Struct, frozen=True, rename="camel"):
    schema_version: int
    media_type: str
    config: Layer
    layers: tuple[Layer, ...]

    @property
    def size_bytes(self) -> int:
        return self.config.size + sum(layer.size for layer in self.layers)

    @property
    def blobs(self) -> tuple[BlobRef, ...]:
        """Each once, the config last."""
        return tuple({layer.digest: layer.blob for layer in (*self.layers, self.config)}.values())

    def of_kind(self, kind: str) -> tuple[Layer, ...]:
        return tuple(layer for layer in self.layers if layer.kind == kind)


class ModelConfig(Struct, frozen=True):
    """The fields of Ollama's config that Oprel reads; all may be missing or null."""

    model_format: str | None = None
    model_family: str | None = None
    model_families: tuple[str, ...] | None = None
    model_type: str | None = None
    file_type: str | None = None
    capabilities: tuple[str, ...] | None = None
    context_length: int | None = None
    embedding_length: int | None = None
    renderer: str | None = None
    remote_host: str | None = None
    remote_model: str | None = None
    parser: str | None = None
    requires: str | None = None


class ManifestEntry(Struct, frozen=True):
    """A manifest's file, not yet looked into."""

    name: ModelName
    path: Path
    root: Path


def parse_manifest(data: bytes) -> Manifest:
    """Raises InvalidRequestError, whose sentence says what is wrong with it."""
    if len(data) > MAX_MANIFEST_BYTES:
        raise InvalidRequestError(f"it is larger than {MAX_MANIFEST_BYTES >> 20} MiB")
    if not data.strip(b"\0 \n"):
        raise InvalidRequestError("it is empty")
    manifest: Manifest = decode_json(data, Manifest)
    if len(manifest.layers) > MAX_LAYERS:
        raise InvalidRequestError(f"it has {len(manifest.layers)} layers, more than {MAX_LAYERS}")
    for layer in (manifest.config, *manifest.layers):
        Digest.parse(layer.digest)
        if not 0 <= layer.size <= MAX_SIZE_BYTES:
            raise InvalidRequestError(f"it has a layer of {layer.size} bytes")
    return manifest


def decode_json(data: bytes, kind: Any) -> Any:
    """Raises InvalidRequestError for what isn't JSON of that type."""
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, RecursionError, ValueError) as problem:
        raise InvalidRequestError(f"it can't be read: {problem}") from None


def encode_manifest(config: BlobRef, layers: tuple[Layer, ...]) -> bytes:
    top = Layer(media_type=CONFIG_TYPE, digest=str(config.digest), size=config.size_bytes)
    return msgspec.json.encode(Manifest(2, MANIFEST_TYPE, top, layers)) + b"\n"


def encode_config(
    *, family: str, parameter_size: str, quantization: str, layers: tuple[Layer, ...], format: str = "gguf"
) -> bytes:
    return msgspec.json.encode(
        {
            "model_format": format,
            "model_family": family,
            "model_families": [family],
            "model_type": parameter_size,
            "file_type": quantization,
            "architecture": "amd64",
            "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": [layer.digest for layer in layers]},
        }
    )


def read_small(path: Path, limit_bytes: int = MAX_TEXT_BYTES) -> bytes:
    """A whole small file. Raises StoreError for one that can't be read or is larger."""
    try:
        if not path.is_file():
            raise StoreError(f"the file {path.name} {'is no plain file' if is_taken(path) else 'is missing'}")
        with path.open("rb") as handle:
            data = handle.read(limit_bytes + 1)
    except OSError as problem:
        raise StoreError(f"the file {path.name} can't be read: {problem.strerror}") from problem
    if len(data) > limit_bytes:
        raise StoreError(f"the file {path.name} is larger than {limit_bytes >> 10} KiB")
    return data


def changed_at(status: os.stat_result) -> float:
    """Unix seconds, in a year that a calendar has: a file may say anything."""
    return min(max(status.st_mtime, 0.0), _YEAR_9999)


def is_taken(path: Path) -> bool:
    """Whether anything is where a manifest would be: what can't be one, such as a dead link, is a damaged model."""
    return os.path.lexists(path)


def check_removable(path: Path) -> None:
    """Raises InvalidRequestError for what no store has made where its manifests are, and is more than a file."""
    if path.is_dir() and not path.is_symlink():
        raise InvalidRequestError(f"{path} is a folder, where a model's manifest would be: remove it by hand.")


def iter_manifests(root: Path, *below: str) -> Iterator[ManifestEntry]:
    """All of a store, or what lies below `host`, `namespace`, … as they are spelled on disk. What isn't exactly four
    levels deep, or isn't a name, is passed over."""
    yield from _walk(root, root.joinpath("manifests", *below), below)


def find_spelling(root: Path, name: ModelName) -> ModelName:
    """`name` with each part as a folder on disk already spells it, ignoring case; exact spellings win."""
    folder = root / "manifests"
    parts: list[str] = []
    for part in name.parts:
        if not (folder / part).exists():
            part = next((entry for entry in _listed(folder) if entry.lower() == part.lower()), part)
        parts.append(part)
        folder = folder / part
    return ModelName(parts[0], parts[1], parts[2], parts[3])


def _walk(root: Path, folder: Path, parts: tuple[str, ...]) -> Iterator[ManifestEntry]:
    for entry in _listed(folder):
        if len(parts) < 3:
            yield from _walk(root, folder / entry, (*parts, entry))
            continue
        try:
            name = ModelName(parts[0], parts[1], parts[2], entry)
        except InvalidNameError:
            continue
        yield ManifestEntry(name=name, path=folder / entry, root=root)


def _listed(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries)
    except OSError:  # not there, not a folder, or another user's
        return []
