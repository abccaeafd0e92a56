"""From a recipe to a model in the store: layers of a base, of uploaded files and of small texts; the manifest last.

| layer | from |
|---|---|
| model, projector, adapter | the base's, or uploaded GGUF files, which stay as they are |
| template, system, messages | the recipe's where it gives one, else the base's |
| params | the base's, with the recipe's above them |
| license | the base's, then the recipe's |

Killed anywhere, it leaves whole blobs that nothing refers to yet, which the next run uses.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from oprel.errors import InvalidRequestError, ModelDamagedError, StoreError
from oprel.schema.chat_form import chat_form
from oprel.store.blobs import BlobRef
from oprel.store.gguf import GgufMetadata, parameter_size
from oprel.store.manifests import MEDIA, Layer, Manifest, decode_json, encode_manifest, read_small
from oprel.store.names import Digest, ModelName
from oprel.store.parameters import checked_parameters
from oprel.store.recipes import GivenFile, Recipe
from oprel.store.store import Store

__all__ = ["Base", "Creating", "Quantize", "Report"]

_WEIGHTS, _PROJECTOR, _ADAPTER = MEDIA["model"], MEDIA["projector"], MEDIA["adapter"]
_GGUF_MAGIC = b"GGUF"
_FLOATS = ("F32", "F16", "BF16")
# The order of Ollama's own config.
_CONFIG_FIELDS = (
    "model_format", "model_family", "model_families", "model_type", "file_type", "renderer", "parser", "requires",
    "capabilities", "context_length", "embedding_length", "base_name",
)  # fmt: skip
_NO_DIGEST = "0000000000000000000"  # what Ollama sends along while it quantizes


class Report(Protocol):
    """Takes one line of progress; called on the worker's thread. Whatever it raises ends the work."""

    def __call__(
        self, status: str, digest: str | None = None, total: int | None = None, completed: int | None = None
    ) -> None: ...


class Quantize(Protocol):
    """Writes `target` from `source`, a GGUF file in floats; `progress` takes the share that is done, 0 to 1, and what
    it raises ends the work. Raises OprelError."""

    def __call__(self, source: Path, target: Path, kind: str, progress: Callable[[float], None]) -> None: ...


class Base(Struct, frozen=True):
    """A model in a store: `name` as it is displayed, `root` the store that its blobs are in."""

    name: str
    manifest: Manifest
    root: Path


class Creating:
    """One model in the making. Blocking: call it in a thread."""

    def __init__(self, store: Store, recipe: Recipe, report: Report, *, quantize: Quantize | None = None) -> None:
        self._store = store
        self._recipe = recipe
        self._report = report
        self._quantize = quantize
        self._layers: list[Layer] = []
        self._new: set[str] = set()

    def run(self, base: Base | None) -> ModelName:
        """The name as it is spelled on disk. Raises InvalidRequestError, NoSpaceError, StoreError."""
        recipe = self._recipe
        fields = self._take_base(base) if base is not None else {}
        if recipe.files:
            self._layers += self._given(recipe.files)
        if recipe.adapters:
            self._layers += self._adapters(recipe.adapters)
        metadata = self._check_whole()
        if recipe.quantize:
            metadata = self._quantized(metadata)
        self._check_honoured(fields, metadata)
        self._put_texts()
        config = self._config(fields, metadata)
        if recipe.template and not self._uses_template(fields, metadata):
            self._report(
                "using the chat template of the weights: it has what TEMPLATE has no place for (tools, thinking)"
            )
        for layer in self._layers:
            known = "creating new" if layer.digest in self._new else "using existing"
            self._report(f"{known} layer {layer.digest}")
        self._report("writing manifest")
        return self._store.write_manifest(recipe.name, encode_manifest(config, tuple(self._layers)))[0]

    # -- what is there already

    def _take_base(self, base: Base) -> dict[str, Any]:
        """The base's layers, in this store; what its config says."""
        for layer in base.manifest.layers:
            self._adopt(layer.blob, base.root)
            origin = base.name if layer.media_type == _WEIGHTS else ""
            self._layers.append(replace(layer, origin=origin))
        fields: dict[str, Any] = decode_json(
            read_small(base.manifest.config.blob.digest.blob_path(base.root)), dict[str, Any]
        )
        if fields.get("remote_host") or fields.get("remote_model"):
            raise InvalidRequestError(f"{base.name!r} runs on another server: nothing can be made of it here")
        return fields

    def _adopt(self, blob: BlobRef, root: Path) -> None:
        """A blob of another store is linked into this one, or copied."""
        if self._store.has_blob(blob):
            return
        source = blob.digest.blob_path(root)
        if not source.is_file():
            raise StoreError(f"The file sha256-{blob.digest.hex} of the base model is missing; pull it again.")
        with self._store.new_blob(size_bytes=blob.size_bytes) as writer:
            writer.fill_from(
                source, progress=lambda done: self._report("copying", str(blob.digest), blob.size_bytes, done)
            )
            writer.finish(blob.digest)
            writer.publish()
        self._new.add(str(blob.digest))

    # -- what was uploaded

    def _given(self, files: tuple[GivenFile, ...]) -> list[Layer]:
        layers = []
        for file in files:
            self._report("parsing GGUF")
            metadata, blob = self._read(file)
            layers.append(Layer(_media_type(metadata, file), str(blob.digest), blob.size_bytes, origin=file.name))
        return layers

    def _adapters(self, files: tuple[GivenFile, ...]) -> list[Layer]:
        if any(file.name.lower().endswith(".safetensors") for file in files):
            raise InvalidRequestError(
                "an adapter in safetensors can't be used on GGUF weights: convert it with llama.cpp's "
                "convert_lora_to_gguf.py, and give the GGUF file",
                param="adapters",
            )
        if len(files) > 1:
            raise InvalidRequestError("only one adapter is currently supported", param="adapters")
        (layer,) = self._given(files)
        if layer.media_type != _ADAPTER:
            raise InvalidRequestError(f"{files[0].name!r} is a GGUF file, but not an adapter", param="adapters")
        return [layer]

    def _read(self, file: GivenFile) -> tuple[GgufMetadata, BlobRef]:
        path = self._path(file.digest)
        try:
            with path.open("rb") as handle:
                magic = handle.read(len(_GGUF_MAGIC))
            size_bytes = path.stat().st_size
        except OSError:
            raise StoreError(f"open sha256-{file.digest.hex}: no such file or directory") from None
        if magic != _GGUF_MAGIC:
            is_named = file.name.lower().endswith(".gguf")
            raise InvalidRequestError(
                "supplied file was not in GGUF format" if is_named else "unknown type", param="files"
            )
        return self._metadata(BlobRef(file.digest, size_bytes), file.name), BlobRef(file.digest, size_bytes)

    def _metadata(self, blob: BlobRef, shown: str) -> GgufMetadata:
        try:
            return self._store.metadata_cache.get(
                blob.digest, blob.digest.blob_path(self._store.models_dir), model=shown
            )
        except ModelDamagedError as problem:
            raise InvalidRequestError(problem.message, param="files") from problem

    # -- what must be true of the whole

    def _check_whole(self) -> GgufMetadata:
        """The metadata of the weights. Exactly one file of them, and companions that fit it."""
        weights = self._of(_WEIGHTS)
        if not weights:
            raise InvalidRequestError(
                "no weights were given: a model needs a GGUF file of its own, or a base", param="files"
            )
        if len(weights) > 1:
            raise InvalidRequestError("more than one file of weights was given", param="files")
        if len(self._of(_PROJECTOR)) > 1:
            raise InvalidRequestError("more than one projector was given", param="files")
        metadata = self._metadata(weights[0].blob, weights[0].origin)
        for layer in self._of(_ADAPTER):
            made_for = self._metadata(layer.blob, layer.origin).architecture
            if made_for != metadata.architecture:
                raise InvalidRequestError(
                    f"the adapter was made for {made_for!r}, and this model is of the kind {metadata.architecture!r}",
                    param="adapters",
                )
        return metadata

    def _check_honoured(self, fields: dict[str, Any], metadata: GgufMetadata) -> None:
        recipe = self._recipe
        for what, named, own in (
            ("renderer", recipe.renderer, fields.get("renderer")),
            ("parser", recipe.parser, fields.get("parser")),
        ):
            if named and named != own:
                raise InvalidRequestError(
                    f"{what} {named[:80]!r} can't be honoured: engines use the model's own chat template, or TEMPLATE; "
                    f"leave out {what.upper()}",
                    param=what,
                )
        if metadata.is_embedding and (recipe.system or recipe.messages or recipe.template):
            raise InvalidRequestError("an embedding model has no place for a template, a system text or messages")

    # -- what is written

    def _quantized(self, metadata: GgufMetadata) -> GgufMetadata:
        kind = self._recipe.quantize
        if metadata.quantization not in _FLOATS:
            raise StoreError("quantization is only supported for F16, BF16 and F32 models")
        if metadata.quantization == kind:
            return metadata
        if self._quantize is None:
            raise InvalidRequestError(
                "quantizing needs llama-quantize, which isn't on PATH nor beside the configured llama-server: "
                "install llama.cpp's tools, or leave out 'quantize'",
                param="quantize",
            )
        (weights,) = self._of(_WEIGHTS)
        blob, made = self._run_quantize(self._quantize, weights, metadata.quantization, kind)
        self._report("verifying conversion")
        at = self._layers.index(weights)
        self._layers[at] = replace(weights, digest=str(blob.digest), size=blob.size_bytes)
        return made

    def _run_quantize(self, quantize: Quantize, weights: Layer, had: str, kind: str) -> tuple[BlobRef, GgufMetadata]:
        status, total = f"quantizing {had} model to {kind}", weights.size

        def progress(share: float) -> None:
            self._report(status, _NO_DIGEST, total, int(total * max(0.0, min(share, 1.0))))

        with self._store.new_blob(size_bytes=total) as target:
            progress(0.0)
            target.refill(
                lambda path: quantize(weights.blob.digest.blob_path(self._store.models_dir), path, kind, progress)
            )
            digest = target.finish()
            try:
                made = self._store.read_header(target.path)
            except InvalidRequestError as problem:
                raise StoreError(f"llama-quantize made a file that can't be used: {problem.message}") from problem
            is_new = not self._path(digest).is_file()
            blob = target.publish()
        if is_new:
            self._new.add(str(digest))
        return blob, made

    def _put_texts(self) -> None:
        recipe = self._recipe
        if recipe.template:
            self._replace("template", recipe.template.encode())
        if recipe.system:
            self._replace("system", recipe.system.encode())
        for text in recipe.licenses:
            self._add("license", text.encode("utf-8", "replace"))
        own = {**self._own_parameters(), **checked_parameters(recipe.parameters)}
        if own:
            self._replace("params", _line({name: own[name] for name in sorted(own)}))
        if recipe.messages:
            self._replace("messages", _line(list(recipe.messages)))

    def _uses_template(self, fields: dict[str, Any], metadata: GgufMetadata) -> bool:
        own, renderer = metadata.chat_template, str(fields.get("renderer") or "")
        form = chat_form(own, self._recipe.template, architecture=metadata.architecture, renderer=renderer)
        return form == "go" or own is None

    def _own_parameters(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for layer in self._of(MEDIA["params"]):
            found.update(decode_json(read_small(self._path(layer.blob.digest)), dict[str, Any]))
        return found

    def _replace(self, kind: str, data: bytes) -> None:
        self._layers = [layer for layer in self._layers if layer.kind != kind]
        self._add(kind, data)

    def _add(self, kind: str, data: bytes) -> None:
        blob = self._small(data)
        self._layers.append(Layer(MEDIA[kind], str(blob.digest), blob.size_bytes))

    def _small(self, data: bytes) -> BlobRef:
        blob, is_new = self._store.add_small_blob(data)
        if is_new:
            self._new.add(str(blob.digest))
        return blob

    def _config(self, fields: dict[str, Any], metadata: GgufMetadata) -> BlobRef:
        recipe = self._recipe
        families = [metadata.architecture, *(["clip"] if self._of(_PROJECTOR) else [])]
        kept = {name: fields[name] for name in _CONFIG_FIELDS if fields.get(name)}
        said = {
            **kept,
            "model_format": "gguf",
            "model_family": metadata.architecture,
            "model_families": families if recipe.files or not kept.get("model_families") else kept["model_families"],
            "model_type": parameter_size(metadata.parameter_count),
            "file_type": metadata.quantization,
            **({"requires": recipe.requires} if recipe.requires else {}),
            **recipe.info,
        }
        if "model_family" in recipe.info:
            said["model_families"] = [recipe.info["model_family"]]
        ordered = {name: said[name] for name in _CONFIG_FIELDS if name in said}
        layers = {"type": "layers", "diff_ids": [layer.digest for layer in self._layers]}
        return self._small(_line({**ordered, "architecture": "amd64", "os": "linux", "rootfs": layers}))

    def _path(self, digest: Digest) -> Path:
        return digest.blob_path(self._store.models_dir)

    def _of(self, media_type: str) -> list[Layer]:
        return [layer for layer in self._layers if layer.media_type == media_type]


def _media_type(metadata: GgufMetadata, file: GivenFile) -> str:
    split = metadata.number("split.count")
    if split is not None and split > 1:
        raise InvalidRequestError(
            f"{file.name!r} is one of {split} parts of a model: join them with llama-gguf-split --merge", param="files"
        )
    match metadata.kind:
        case "adapter":
            return _ADAPTER
        case "mmproj" | "projector":
            return _PROJECTOR
        case "imatrix":
            raise InvalidRequestError(
                f"{file.name!r} is a GGUF file, but no model, projector or adapter", param="files"
            )
    if not metadata.tensors or not metadata.architecture:
        raise InvalidRequestError(
            f"{file.name!r} is a GGUF file without a model: no architecture or no tensors", param="files"
        )
    return _WEIGHTS


def _line(value: object) -> bytes:
    """JSON as Ollama writes its small layers: compact, with a newline at the end."""
    return msgspec.json.encode(value) + b"\n"
