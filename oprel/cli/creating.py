"""`create NAME -f Modelfile`: a model of what a Modelfile says.

Files that it names are read here, with the rights of whoever typed the command; the server only gets their bytes.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oprel.cli.common import add_address, client_of, reach_server, settings_of
from oprel.cli.terminal import Terminal
from oprel.errors import InvalidRequestError, StoreError

if TYPE_CHECKING:
    from oprel.config import Settings
    from oprel.sdk.client import Client
    from oprel.store.modelfile import Modelfile

__all__ = ["add_commands"]

_MAGIC = b"GGUF"
_LIKE_PATHS = ("/", "./", "../", "~")
_CONVERT = "convert it with llama.cpp's convert_lora_to_gguf.py, and name the GGUF file"


def add_commands(commands: Any) -> None:
    create = commands.add_parser("create", help="make a model of a Modelfile")
    create.add_argument("name", metavar="NAME")
    create.add_argument("-f", "--file", metavar="FILE", default="Modelfile", help="the Modelfile (Modelfile); -: stdin")
    create.add_argument("--quantize", metavar="TYPE", help="F32, F16, Q4_K_S, Q4_K_M or Q8_0, from floats only")
    add_address(create)
    create.set_defaults(command=_create)


def _create(arguments: argparse.Namespace, terminal: Terminal) -> None:
    modelfile, folder = _read(arguments.file)
    for warning in modelfile.warnings:
        terminal.remark(warning)
    sources = _Sources(modelfile, folder)
    settings = settings_of(arguments)
    if sources.tree is not None:
        _create_tree(arguments, sources.tree, modelfile, settings, terminal)
        return
    fields = _fields(modelfile)
    with client_of(settings, reach_server(settings, terminal)) as client, terminal.bar() as bar:

        def sent(paths: list[Path]) -> dict[str, str] | None:
            files: dict[str, str] = {}
            for path in paths:
                bar.show(f"sending {path.name}")
                name = path.name if path.name not in files else f"{len(files)}/{path.name}"
                files[name] = _place(path, client, settings)
            return files or None

        parts = client.create(
            arguments.name,
            stream=True,
            from_=sources.base,
            files=sent(sources.files),
            adapters=sent(sources.adapters),
            quantize=arguments.quantize,
            **fields,
        )
        for part in parts or ():
            bar.show(part.status or "", part.completed, part.total)


def _read(file: str) -> tuple[Modelfile, Path]:
    """The Modelfile, and the folder that its paths start from."""
    from oprel.store.modelfile import MAX_BYTES, Modelfile

    if file == "-":
        return Modelfile.parse(sys.stdin.read(MAX_BYTES + 1)), Path.cwd()
    path = Path(file).expanduser().absolute()
    if not path.is_file():
        if file == "Modelfile":
            raise InvalidRequestError("no Modelfile or safetensors files found: name one with -f")
        raise InvalidRequestError(f"{file!r} isn't a file that can be read")
    try:
        with path.open("rb") as handle:
            return Modelfile.parse(handle.read(MAX_BYTES + 1)), path.parent
    except OSError as problem:
        raise InvalidRequestError(f"{file!r} can't be read: {problem.strerror}") from problem


def _fields(modelfile: Modelfile) -> dict[str, Any]:
    """What a request says beside its files; typed, so that mistakes are told before anything is sent."""
    return {
        "template": modelfile.template,
        "system": modelfile.system,
        "license": list(modelfile.licenses) or None,
        "parameters": modelfile.parameters or None,
        "messages": [{"role": role, "content": text} for role, text in modelfile.messages] or None,
        "renderer": modelfile.renderer,
        "parser": modelfile.parser,
        "requires": modelfile.requires,
    }


class _Sources:
    """Where a Modelfile's model comes from: a name, files, or a folder of safetensors (`tree`)."""

    def __init__(self, modelfile: Modelfile, folder: Path) -> None:
        self.base: str | None = None
        self.files: list[Path] = []
        self.adapters: list[Path] = []
        self.tree: Path | None = None
        self._folder = folder
        for source in modelfile.sources:
            self._add(source)
        if modelfile.adapter is not None:
            self._add_adapter(modelfile.adapter)
        if modelfile.drafts:
            self._refuse_draft(modelfile.drafts[0])

    def _add(self, source: str) -> None:
        path = self._path(source)
        if path.is_dir():
            self._add_folder(path)
        elif path.exists():
            self.files.append(_checked(path))
        elif source.startswith(_LIKE_PATHS):
            raise InvalidRequestError(f"FROM {source}: there is no such file or folder")
        else:
            self.base = source

    def _add_folder(self, path: Path) -> None:
        files = sorted(path.glob("*.gguf"))
        if any(path.glob("*.safetensors")):
            self.tree = path
        elif files:
            self.files += [_checked(file) for file in files]
        else:
            raise InvalidRequestError(f"FROM {path.name}: no safetensors and no GGUF files are in this folder")

    def _add_adapter(self, source: str) -> None:
        path = self._path(source)
        if path.is_dir() or path.suffix.lower() == ".safetensors":
            raise InvalidRequestError(f"ADAPTER {source}: safetensors can't be used on a GGUF model; {_CONVERT}")
        if not path.exists():
            raise InvalidRequestError(f"ADAPTER {source}: there is no such file")
        self.adapters.append(_checked(path))

    def _refuse_draft(self, source: str) -> None:
        if self._path(source) in self.files:
            raise InvalidRequestError(f"DRAFT must not reference the same local path as FROM: {source}")
        raise InvalidRequestError("draft models are not supported: leave out DRAFT")

    def _path(self, source: str) -> Path:
        try:
            return self._folder / Path(source).expanduser()
        except (RuntimeError, ValueError) as problem:  # ~nobody, a NUL
            raise InvalidRequestError(f"{source[:100]!r} can't be a path: {problem}") from problem


def _checked(path: Path) -> Path:
    """Nothing but a GGUF file leaves this machine, whatever a Modelfile names."""
    try:
        if path.is_file():
            with path.open("rb") as handle:
                if handle.read(len(_MAGIC)) == _MAGIC:
                    return path
    except OSError as problem:
        raise InvalidRequestError(f"{str(path)!r} can't be read: {problem.strerror}") from problem
    raise InvalidRequestError(f"{str(path)!r} isn't a GGUF file")


def _place(path: Path, client: Client, settings: Settings) -> str:
    """The digest of a file that the server has now. On this machine it is linked into the store, where that is the
    server's as well: no bytes are copied."""
    from oprel.server.access import is_loopback
    from oprel.store import Store

    if is_loopback(settings.host):
        try:
            blob = Store(settings.models_dir, state_dir=settings.state_dir).add_file(path)
        except StoreError:  # another user's store, which only the server writes
            return client.create_blob(path)
        if client.has_blob(str(blob.digest)):
            return str(blob.digest)
    return client.create_blob(path)


def _create_tree(
    arguments: argparse.Namespace, folder: Path, modelfile: Modelfile, settings: Settings, terminal: Terminal
) -> None:
    """Taken into this user's store without a server, as `pull ./FOLDER` does."""
    from oprel.server.compose import make_catalog
    from oprel.store import ModelName, Trees
    from oprel.store.parameters import checked_parameters
    from oprel.store.tree_texts import TreeTexts

    taken = {"from", "system", "parameter", "message", "license"}
    others = sorted({each.word for each in modelfile.instructions} - taken)
    if others or arguments.quantize or len(modelfile.sources) > 1:
        what = others[0].upper() if others else "--quantize" if arguments.quantize else "a second FROM"
        raise InvalidRequestError(f"{what} can't be honoured for a folder of safetensors")
    name = ModelName.parse(arguments.name)
    if make_catalog(settings).is_stored(name):
        raise InvalidRequestError(f"There is a GGUF model called {str(name)!r} already: give the folder another name.")
    texts = TreeTexts(
        system=modelfile.system or "",
        parameters=tuple(checked_parameters(modelfile.parameters).items()),
        messages=modelfile.messages,
        licenses=modelfile.licenses,
    )
    with terminal.bar() as bar:
        made = Trees(settings.trees_dir, state_dir=settings.state_dir).add(
            folder, name, texts=texts, progress=lambda done, total: bar.show(f"importing {folder.name}", done, total)
        )
        for left in made.left_out[:5]:
            terminal.remark(f"left out, since no engine needs it: {left}")
        bar.show("success")
