"""From a manifest on disk to `schema.Model`: whatever is wrong with one becomes that model's `damage`, a sentence."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from oprel.errors import InvalidRequestError, OprelError
from oprel.schema import Message, Model, ModelFile, Role, TextPart
from oprel.store.capabilities import capabilities_of
from oprel.store.gguf import GgufMetadata, check_beginning, parameter_size
from oprel.store.gguf_types import UNKNOWN_QUANTIZATION
from oprel.store.manifests import (
    MAX_MANIFEST_BYTES,
    Layer,
    Manifest,
    ManifestEntry,
    ModelConfig,
    decode_json,
    parse_manifest,
    read_small,
)
from oprel.store.metadata_cache import MetadataCache
from oprel.store.names import Digest

__all__ = ["build_model", "damage_of_files"]

_ROLES = {"model": "weights", "projector": "projector", "adapter": "adapter", "draft": "draft"}
_GGUF = "gguf"
_AUTO = "auto"


class _StoredMessage(Struct, frozen=True):
    role: Role
    content: str = ""


def build_model(entry: ManifestEntry, cache: MetadataCache | None, *, modified_at: float) -> Model:
    """Never raises: a model that can't be read has `damage` and as much else as could be found out. `cache` None: its
    GGUF files aren't looked into."""
    model = Model(name=str(entry.name), digest="", format="", files=(), size_bytes=0, modified_at=modified_at)
    try:
        data = read_small(entry.path, MAX_MANIFEST_BYTES)
        model = replace(model, digest=hashlib.sha256(data).hexdigest())
        manifest = parse_manifest(data)
        model = replace(model, files=_files(manifest, entry.root), size_bytes=manifest.size_bytes)
        return _described(model, manifest, entry, cache)
    except OprelError as problem:
        return replace(model, damage=_sentence(model.name, problem.message))


def damage_of_files(model: Model) -> str | None:
    """A look at the sizes of its files, quick enough for each use; None when they are all right."""
    for file in model.files:
        try:
            size_bytes = Path(file.path).stat().st_size
        except OSError:
            return _sentence(model.name, f"the file sha256-{file.digest} is missing")
        if size_bytes != file.size_bytes:
            return _sentence(
                model.name, f"the file sha256-{file.digest} has {size_bytes} bytes instead of {file.size_bytes}"
            )
    return None


def _sentence(name: str, problem: str) -> str:
    problem = problem.rstrip(".")
    return f"Model {name!r} is damaged: {problem}; pull or import it again."


def _files(manifest: Manifest, root: Path) -> tuple[ModelFile, ...]:
    return tuple(
        ModelFile(
            role=_ROLES[layer.kind],  # type: ignore[arg-type]  # the values are the roles
            path=str(layer.blob.digest.blob_path(root)),
            digest=layer.blob.digest.hex,
            size_bytes=layer.size,
        )
        for layer in manifest.layers
        if layer.kind in _ROLES
    )


def _described(model: Model, manifest: Manifest, entry: ManifestEntry, cache: MetadataCache | None) -> Model:
    root = entry.root
    config: ModelConfig = decode_json(_read(manifest.config, root), ModelConfig)
    parameters = _parameters(manifest, root)
    model = replace(
        model,
        format=config.model_format or _GGUF,
        architecture=config.model_family or "",
        families=config.model_families or (),
        parameter_size=config.model_type or "",
        quantization=config.file_type or "",
        context_tokens=config.context_length,
        embedding_length=config.embedding_length,
        template=_text(manifest, "template", root),
        renderer=config.renderer or "",
        system=_text(manifest, "system", root),
        licenses=tuple(_decoded(layer, root) for layer in manifest.of_kind("license")),
        parameters=parameters,
        driver=_driver(parameters),
        messages=_messages(manifest, root),
        parser=config.parser or "",
        requires=config.requires or "",
        parent=next((layer.origin for layer in manifest.of_kind("model") if layer.origin), ""),
    )
    stated = config.capabilities or ()
    if config.remote_host or config.remote_model:
        problem = f"it runs at {config.remote_host or 'a remote server'}, and nothing of it is on this machine"
        return replace(model, capabilities=frozenset(stated), damage=f"Model {model.name!r} can't be used: {problem}.")
    if model.format != _GGUF:
        return replace(model, capabilities=frozenset(stated))
    if not any(file.role == "weights" for file in model.files):
        raise InvalidRequestError("its manifest names no weights")
    return _with_metadata(model, cache, stated=stated)


def _with_metadata(model: Model, cache: MetadataCache | None, *, stated: tuple[str, ...]) -> Model:
    if (damage := damage_of_files(model)) is not None:
        return replace(model, capabilities=frozenset(stated), damage=damage)
    if cache is None:
        for file in model.files:
            if file.role in ("weights", "projector"):
                check_beginning(Path(file.path), model=model.name)
        return replace(model, capabilities=frozenset(stated))
    parts = [_metadata(model, file, cache) for file in model.files if file.role == "weights"]
    projectors = (file for file in model.files if file.role == "projector")
    projector = next((_metadata(model, file, cache) for file in projectors), None)
    metadata = parts[0]
    parameter_count = sum(part.parameter_count for part in parts)  # the parts of a split file have tensors each
    quantization = model.quantization
    if quantization in ("", UNKNOWN_QUANTIZATION):
        quantization = metadata.quantization
    return replace(
        model,
        architecture=metadata.architecture or model.architecture,
        families=model.families or (metadata.architecture,),
        parameter_count=parameter_count,
        parameter_size=model.parameter_size or parameter_size(parameter_count),
        quantization=quantization,
        context_tokens=metadata.context_tokens or model.context_tokens,
        embedding_length=metadata.embedding_length or model.embedding_length,
        layers=metadata.layers,
        kv_bytes_per_token=metadata.kv_bytes_per_token,
        pooling=metadata.pooling,
        chat_template=metadata.chat_template,
        capabilities=capabilities_of(
            metadata, stated=stated, template=model.template, renderer=model.renderer, projector=projector
        ),
    )


def _metadata(model: Model, file: ModelFile, cache: MetadataCache) -> GgufMetadata:
    return cache.get(Digest(file.digest), Path(file.path), model=model.name)


def _read(layer: Layer, root: Path) -> bytes:
    data = read_small(layer.blob.digest.blob_path(root))
    if len(data) != layer.size:
        raise InvalidRequestError(f"the file sha256-{layer.blob.digest.hex} has {len(data)} bytes, not {layer.size}")
    return data


def _decoded(layer: Layer, root: Path) -> str:
    return _read(layer, root).decode("utf-8", errors="replace")


def _text(manifest: Manifest, kind: str, root: Path) -> str | None:
    """The last layer of a kind, as Ollama reads them."""
    layers = manifest.of_kind(kind)
    return _decoded(layers[-1], root) if layers else None


def _parameters(manifest: Manifest, root: Path) -> tuple[tuple[str, object], ...]:
    found: dict[str, object] = {}
    for layer in manifest.of_kind("params"):
        values: dict[str, Any] = decode_json(_read(layer, root), dict[str, Any])
        found.update({key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})
    return tuple(found.items())


def _driver(parameters: tuple[tuple[str, object], ...]) -> str | None:
    """The one that a Modelfile's `PARAMETER driver NAME` chose; Ollama passes over it, with a remark in its log."""
    named = dict(parameters).get("driver")
    return named if isinstance(named, str) and named not in ("", _AUTO) else None


def _messages(manifest: Manifest, root: Path) -> tuple[Message, ...]:
    found: list[Message] = []
    for layer in manifest.of_kind("messages"):
        stored: list[_StoredMessage] = decode_json(_read(layer, root), list[_StoredMessage])
        found += [Message(role=message.role, content=(TextPart(message.content),)) for message in stored]
    return tuple(found)
