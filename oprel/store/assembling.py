"""Make a model of several files: weights in parts, a projector beside them. The last step makes it visible."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from oprel.errors import InvalidRequestError, ModelDamagedError
from oprel.store.blobs import BlobRef, BlobWriter
from oprel.store.gguf import GgufMetadata, parameter_size, read_gguf
from oprel.store.manifests import MEDIA, Layer, encode_config, encode_manifest
from oprel.store.names import ModelName
from oprel.store.store import Installed, Store
from oprel.store.versions import Change

__all__ = ["Finished", "install_parts", "split_position"]

Finished = BlobWriter | BlobRef
"""A writer after its `finish`, or a blob that the store has."""


def install_parts(
    store: Store,
    name: ModelName,
    weights: Sequence[Finished],
    *,
    projector: Finished | None = None,
    licenses: Sequence[str] = (),
    change: Change | None = None,
) -> Installed:
    """`weights` is one GGUF file, or all parts of a split one in order: each becomes a layer of its own. `change` is
    noted. Blocking.

    Raises InvalidRequestError for files that don't make one model, StoreError.
    """
    headers = [_header(_path(store, part)) for part in weights]
    _check_model(headers)
    seen = None if projector is None else _header(_path(store, projector))
    if seen is not None and seen.kind != "mmproj":
        raise InvalidRequestError(f"The file beside the weights is of the kind {seen.kind!r}, not a projector.")
    refs = [_published(part) for part in weights]
    for ref, header in zip(refs, headers, strict=True):
        store.metadata_cache.keep(ref.digest, header)
    layers = [Layer(MEDIA["model"], str(ref.digest), ref.size_bytes) for ref in refs]
    if projector is not None:
        ref = _published(projector)
        layers.append(Layer(MEDIA["projector"], str(ref.digest), ref.size_bytes))
    for text in licenses:
        ref = _kept(store, text.encode("utf-8", errors="replace"))
        layers.append(Layer(MEDIA["license"], str(ref.digest), ref.size_bytes))
    first = headers[0]
    config = encode_config(
        family=first.architecture,
        parameter_size=parameter_size(sum(header.parameter_count for header in headers)),
        quantization=first.quantization,
        layers=tuple(layers),
    )
    spelled, digest = store.write_manifest(name, encode_manifest(_kept(store, config), tuple(layers)), change)
    return Installed(name=spelled, digest=digest, weights=refs[0], metadata=first)


def split_position(metadata: GgufMetadata) -> tuple[int, int]:
    """Which part of how many a file says it is, from 0; (0, 1) for a whole one."""
    return metadata.number("split.no") or 0, metadata.number("split.count") or 1


def _check_model(headers: Sequence[GgufMetadata]) -> None:
    first, count = headers[0], len(headers)
    if not first.architecture:
        raise InvalidRequestError("The GGUF file has no model in it: it names no architecture.")
    if first.kind in ("adapter", "mmproj", "imatrix"):
        raise InvalidRequestError(f"The GGUF file is of the kind {first.kind!r}, not a model.")
    for position, header in enumerate(headers):
        if split_position(header) != (position, count):
            number, total = split_position(header)
            raise InvalidRequestError(
                f"The files don't make one model: file {position + 1} of {count} says that it is part {number + 1} "
                f"of {total}."
            )
    tensors = sum(len(header.tensors) for header in headers)
    stated = first.number("split.tensors.count")
    if not tensors or (stated is not None and stated != tensors):
        raise InvalidRequestError(
            f"The files don't make one model: they hold {tensors} tensors"
            + ("." if stated is None else f" instead of {stated}.")
        )


def _header(path: Path) -> GgufMetadata:
    try:
        return read_gguf(path)
    except ModelDamagedError as problem:
        raise InvalidRequestError(f"This isn't a GGUF file that can be used: {problem.message}") from problem


def _path(store: Store, part: Finished) -> Path:
    return part.path if isinstance(part, BlobWriter) else part.digest.blob_path(store.models_dir)


def _published(part: Finished) -> BlobRef:
    return part.publish() if isinstance(part, BlobWriter) else part


def _kept(store: Store, data: bytes) -> BlobRef:
    with store.new_blob(size_bytes=len(data)) as blob:
        blob.write(data)
        blob.finish()
        return blob.publish()
