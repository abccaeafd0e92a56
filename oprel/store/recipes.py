"""What a model is to be made of: checked data, from which `creating` makes it."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from oprel.errors import InvalidRequestError
from oprel.store.manifests import MAX_TEXT_BYTES
from oprel.store.names import Digest, ModelName
from oprel.store.parameters import checked_parameters

__all__ = ["QUANTIZATIONS", "GivenFile", "GivenMessage", "Recipe", "checked_files", "checked_info"]

QUANTIZATIONS = ("F32", "F16", "BF16", "Q4_K", "Q4_K_S", "Q4_K_M", "Q8_0")
_ROLES = ("system", "user", "assistant")
_MAX_FILES = 1000
_MAX_MESSAGES = 1000
_MAX_NAME_BYTES = 1024
_INFO_TEXTS = ("model_family", "base_name", "quantization_level", "parameter_size")
_INFO_NUMBERS = ("context_length", "embedding_length")
_MAX_INFO = 1 << 40


class GivenFile(Struct, frozen=True):
    """A blob that was uploaded, under the name that its owner calls it by."""

    name: str
    digest: Digest


class GivenMessage(Struct, frozen=True):
    role: str
    content: str


class Recipe(Struct, frozen=True, kw_only=True):
    """`base` is a model's name, as given; with `files` as well, those are added to it. Empty texts mean "the base's
    own". `parameters` are typed, by Ollama's option names; `info` overrides what the config says of the model, by the
    names of the config. Checked when it is made: InvalidRequestError."""

    name: ModelName
    base: str = ""
    files: tuple[GivenFile, ...] = ()
    adapters: tuple[GivenFile, ...] = ()
    template: str = ""
    system: str = ""
    licenses: tuple[str, ...] = ()
    parameters: Mapping[str, Any] = {}
    messages: tuple[GivenMessage, ...] = ()
    renderer: str = ""
    parser: str = ""
    requires: str = ""
    quantize: str = ""
    info: Mapping[str, Any] = {}

    def __post_init__(self) -> None:
        if not self.base and not self.files:
            raise InvalidRequestError("neither 'from' or 'files' was specified")
        for what, text in (
            ("template", self.template),
            ("system", self.system),
            *(("license", x) for x in self.licenses),
        ):
            if len(text.encode("utf-8", "replace")) > MAX_TEXT_BYTES:
                raise InvalidRequestError(f"the {what} may have {MAX_TEXT_BYTES >> 10} KiB at most", param=what)
        if len(self.messages) > _MAX_MESSAGES:
            raise InvalidRequestError(f"a model may have {_MAX_MESSAGES} messages at most", param="messages")
        for message in self.messages:
            if message.role not in _ROLES:
                raise InvalidRequestError(
                    'message role must be one of "system", "user", or "assistant"', param="messages"
                )
        checked_parameters(self.parameters)


def checked_files(given: Mapping[str, str]) -> tuple[GivenFile, ...]:
    """Files by name, each with the digest of an uploaded blob. A name is never used as a path of this machine; it is
    refused all the same where it could lead out of a folder. Raises InvalidRequestError."""
    if len(given) > _MAX_FILES:
        raise InvalidRequestError(f"a model may be made of {_MAX_FILES} files at most", param="files")
    for name in given:
        if not _is_relative(name):
            raise InvalidRequestError("file path must be relative", param="files")
    files = []
    for name, digest in given.items():
        try:
            files.append(GivenFile(name, Digest.parse(digest)))
        except InvalidRequestError:
            raise InvalidRequestError("invalid digest format", param="files") from None
    return tuple(files)


def checked_info(given: Mapping[str, Any]) -> dict[str, Any]:
    """By the config's names. Unknown fields say nothing. Raises InvalidRequestError."""
    config_names = {"quantization_level": "file_type", "parameter_size": "model_type"}
    checked: dict[str, Any] = {}
    for name, value in given.items():
        if value is None:
            continue
        if name in _INFO_TEXTS:
            if not isinstance(value, str):
                raise InvalidRequestError(f'info field "{name}" must be a string', param="info")
            checked[config_names.get(name, name)] = value[:200]
        elif name in _INFO_NUMBERS:
            checked[name] = _number(name, value)
        elif name == "capabilities":
            if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
                raise InvalidRequestError('info field "capabilities" must be a list of strings', param="info")
            checked[name] = [item[:40] for item in value[:40]]
    return {name: value for name, value in checked.items() if value}


def _number(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidRequestError(f'info field "{name}" must be a number', param="info")
    if not 0 <= value <= _MAX_INFO or value != int(value):
        raise InvalidRequestError(f'info field "{name}" must be a non-negative integer', param="info")
    return int(value)


def _is_relative(name: str) -> bool:
    """Go's `fs.ValidPath`, without what other systems read as a separator or a drive."""
    if not name or len(name.encode("utf-8", "replace")) > _MAX_NAME_BYTES or not name.isprintable():
        return False
    if "\\" in name or (len(name) > 1 and name[1] == ":"):
        return False
    return not name.startswith("/") and posixpath.normpath(name) == name and name.split("/")[0] not in (".", "..")
