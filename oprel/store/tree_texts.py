"""What a folder's model was given beside its files: system text, parameters, messages, licenses.

They lie in the folder under names that no engine reads, and stand in its manifest with the media types that they have
in Ollama's store.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from oprel.schema import Message, Model, Role, TextPart
from oprel.store.manifests import MEDIA, Layer, Manifest, decode_json, read_small

__all__ = ["TreeTexts", "is_text_file", "is_text_layer", "with_texts"]

_PREFIX = "oprel."
_NAMES = {"system": "oprel.system.txt", "params": "oprel.params.json", "messages": "oprel.messages.json"}
_KINDS = ("license", "system", "params", "messages")
_MEDIA = frozenset(MEDIA[kind] for kind in _KINDS)


class _StoredMessage(Struct, frozen=True):
    role: Role
    content: str = ""


class TreeTexts(Struct, frozen=True, kw_only=True):
    """`messages` are (role, text). Parameters stand above those that the folder's own files name."""

    system: str = ""
    parameters: tuple[tuple[str, Any], ...] = ()
    messages: tuple[tuple[str, str], ...] = ()
    licenses: tuple[str, ...] = ()

    def files(self) -> Iterator[tuple[str, str, bytes]]:
        """Name, media type and content of each."""
        for number, text in enumerate(self.licenses):
            yield f"oprel.license.{number:04}.txt", MEDIA["license"], text.encode("utf-8", "replace")
        if self.system:
            yield _NAMES["system"], MEDIA["system"], self.system.encode("utf-8", "replace")
        if self.parameters:
            yield _NAMES["params"], MEDIA["params"], msgspec.json.encode(dict(sorted(self.parameters))) + b"\n"
        if self.messages:
            listed = [{"role": role, "content": text} for role, text in self.messages]
            yield _NAMES["messages"], MEDIA["messages"], msgspec.json.encode(listed) + b"\n"


def is_text_file(name: str) -> bool:
    return name.startswith(_PREFIX)


def is_text_layer(layer: Layer) -> bool:
    return layer.media_type in _MEDIA and is_text_file(layer.name) and "/" not in layer.name


def with_texts(model: Model, manifest: Manifest, folder: Path) -> Model:
    """`model` with what its manifest lists. Raises InvalidRequestError, StoreError."""
    for layer in manifest.layers:
        if not is_text_layer(layer):
            continue
        data = read_small(folder / layer.name)
        match layer.kind:
            case "license":
                model = replace(model, licenses=(*model.licenses, data.decode("utf-8", "replace")))
            case "system":
                model = replace(model, system=data.decode("utf-8", "replace"))
            case "params":
                model = replace(model, parameters=_merged(model.parameters, decode_json(data, dict[str, Any])))
            case "messages":
                stored: list[_StoredMessage] = decode_json(data, list[_StoredMessage])
                said = tuple(Message(role=each.role, content=(TextPart(each.content),)) for each in stored)
                model = replace(model, messages=said)
    return model


def _merged(own: tuple[tuple[str, object], ...], given: dict[str, Any]) -> tuple[tuple[str, object], ...]:
    typed = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    return tuple({**dict(own), **typed}.items())
