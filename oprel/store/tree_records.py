"""From the manifest of a model that is a folder to `schema.Model`."""

from __future__ import annotations

import hashlib
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from oprel.errors import InvalidRequestError, OprelError
from oprel.schema import Model, ModelFile
from oprel.store.blobs import BlobRef
from oprel.store.capabilities import of_jinja
from oprel.store.folders import FolderFacts, check_relative, read_facts
from oprel.store.gguf import parameter_size
from oprel.store.manifests import MAX_MANIFEST_BYTES, Layer, Manifest, ManifestEntry, parse_manifest, read_small
from oprel.store.records import damage_of_files
from oprel.store.tree_texts import is_text_layer, with_texts

__all__ = ["TREE_FILE", "TreeFile", "build_tree_model", "listed_files"]

TREE_FILE = "application/vnd.oprel.tree.file"


class TreeFile(Struct, frozen=True):
    """A file as a manifest lists it, whether it is there or not: `name` in the model's folder, `path` on disk."""

    name: str
    path: Path
    blob: BlobRef

    @property
    def folder(self) -> str:
        """The name of the model's folder: its digest."""
        return self.path.parents[self.name.count("/")].name


def build_tree_model(entry: ManifestEntry, *, modified_at: float, described: bool = True) -> Model:
    """Never raises: a model that can't be read has `damage` and as much else as could be found out. `described` False:
    its files aren't looked into."""
    model = Model(name=str(entry.name), digest="", format="", files=(), size_bytes=0, modified_at=modified_at)
    try:
        data = read_small(entry.path, MAX_MANIFEST_BYTES)
        model = replace(model, digest=hashlib.sha256(data).hexdigest())
        manifest = parse_manifest(data)
        folder = entry.root / model.digest
        model = replace(model, files=_files(manifest, folder), size_bytes=manifest.size_bytes)
        if (damage := damage_of_files(model)) is not None:
            return replace(model, format="safetensors", damage=damage)
        if not described:
            return replace(model, format="safetensors")
        return with_texts(_described(model, read_facts(folder)), manifest, folder)
    except OprelError as problem:
        sentence = f"Model {model.name!r} is damaged: {problem.message.rstrip('.')}; import it again."
        return replace(model, format="safetensors", damage=sentence)


def listed_files(data: bytes, root: Path) -> tuple[TreeFile, ...]:
    """All that a manifest lists, the model's texts too, in the folder below `root` that it belongs to. Raises
    InvalidRequestError."""
    manifest = parse_manifest(data)
    folder = root / hashlib.sha256(data).hexdigest()
    _files(manifest, folder)  # raises for what is no folder's manifest
    layers = {layer.name: layer for layer in (manifest.config, *manifest.layers)}
    return tuple(TreeFile(check_relative(name), folder / name, layer.blob) for name, layer in layers.items())


def _files(manifest: Manifest, folder: Path) -> tuple[ModelFile, ...]:
    """Weights first, so that a model's first file says what it is."""
    layers = [layer for layer in (manifest.config, *manifest.layers) if not is_text_layer(layer)]
    if not all(layer.media_type == TREE_FILE for layer in layers):
        raise InvalidRequestError("its manifest lists what isn't a file of a folder")
    files = [_file(layer, folder) for layer in layers]
    if not any(file.role == "weights" for file in files):
        raise InvalidRequestError("its manifest names no weights")
    return tuple(sorted(files, key=lambda file: (file.role != "weights", file.path)))


def _file(layer: Layer, folder: Path) -> ModelFile:
    name = check_relative(layer.name)
    role = "weights" if name.lower().endswith(".safetensors") else "companion"
    return ModelFile(
        role=role,  # type: ignore[arg-type]  # it is one of the two
        path=str(folder / name),
        digest=layer.blob.digest.hex,
        size_bytes=layer.size,
    )


def _described(model: Model, facts: FolderFacts) -> Model:
    return replace(
        model,
        format=facts.format,
        architecture=facts.architecture,
        families=(facts.family,) if facts.family else (),
        parameter_count=facts.parameter_count,
        parameter_size=parameter_size(facts.parameter_count),
        quantization=facts.quantization,
        context_tokens=facts.context_tokens,
        embedding_length=facts.embedding_length,
        layers=facts.layers,
        kv_bytes_per_token=facts.kv_bytes_per_token,
        pooling=facts.pooling,
        chat_template=facts.chat_template,
        parameters=facts.parameters,
        capabilities=_capabilities(facts),
        own_code=facts.has_own_code,
    )


def _capabilities(facts: FolderFacts) -> frozenset[str]:
    """In Ollama's words."""
    if facts.is_embedding:
        return frozenset({"embedding"})
    found = {"completion"}
    if facts.has_vision:
        found.add("vision")
    if facts.has_audio:
        found.add("audio")
    if facts.chat_template is not None:
        found.update(of_jinja(facts.chat_template))
    return frozenset(found)
