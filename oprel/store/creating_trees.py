"""From a recipe to a model that is a folder: of uploaded files in safetensors, or of another such model."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

from oprel.errors import InvalidRequestError, StoreError
from oprel.schema import Model
from oprel.store.creating import Report
from oprel.store.disk import translated
from oprel.store.folders import check_relative
from oprel.store.names import ModelName
from oprel.store.parameters import checked_parameters
from oprel.store.recipes import GivenFile, Recipe
from oprel.store.store import Store
from oprel.store.tree_texts import TreeTexts
from oprel.store.trees import Trees
from oprel.store.versions import Change

__all__ = ["CreatingTree", "is_for_tree"]


def is_for_tree(recipe: Recipe) -> bool:
    """Whether its files are a model in safetensors."""
    return any(file.name.lower().endswith(".safetensors") for file in recipe.files)


class CreatingTree:
    """One model in the making. Blocking: call it in a thread."""

    def __init__(self, store: Store, trees: Trees, recipe: Recipe, report: Report) -> None:
        self._store = store
        self._trees = trees
        self._recipe = recipe
        self._report = report

    def run(self, base: Model | None) -> ModelName:
        """`base`: a model that is a folder. Raises InvalidRequestError, NoSpaceError, StoreError."""
        self._check_honoured()
        texts = self._texts(base)
        if base is not None:
            return self._add(self._trees.folder_of(base), texts)
        with self._trees.scratch() as folder:
            for file in self._recipe.files:
                self._report(f"using existing layer {file.digest}")
                self._put(file, folder)
            try:
                return self._add(folder, texts)
            except InvalidRequestError as problem:
                said = problem.message.replace(repr(folder.name), "the model")
                raise InvalidRequestError(said, param="files") from problem

    def _add(self, folder: Path, texts: TreeTexts) -> ModelName:
        def progress(done: int, total: int) -> None:
            self._report("reading the files", None, total, done)

        made = self._trees.add(folder, self._recipe.name, texts=texts, progress=progress, change=Change("create"))
        self._report("writing manifest")
        return made.name

    def _put(self, file: GivenFile, folder: Path) -> None:
        target = folder / check_relative(file.name)
        source = file.digest.blob_path(self._store.models_dir)
        if not source.is_file():
            raise StoreError(f"open sha256-{file.digest.hex}: no such file or directory")
        with translated("write a model's file"):
            self._trees.disk.make_folder(target.parent)
            try:
                self._trees.disk.link(source, target)
            except OSError as problem:
                if problem.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP):
                    raise
                shutil.copyfile(source, target)

    def _check_honoured(self) -> None:
        recipe = self._recipe
        asked = {
            "template": recipe.template,
            "adapters": recipe.adapters,
            "quantize": recipe.quantize,
            "renderer": recipe.renderer,
            "parser": recipe.parser,
            "requires": recipe.requires,
            "info": recipe.info,
        }
        for name, value in asked.items():
            if value:
                hint = ": name one for it in [vllm] of config.toml" if name == "adapters" else ""
                raise InvalidRequestError(f"{name!r} can't be honoured for a model in safetensors{hint}", param=name)
        if recipe.base and recipe.files:
            raise InvalidRequestError("files can't be added to a model in safetensors", param="files")

    def _texts(self, base: Model | None) -> TreeTexts:
        """The recipe's, with the base's where it says nothing."""
        recipe = self._recipe
        own = dict(base.parameters) if base is not None else {}
        own = {name: list(value) if isinstance(value, tuple) else value for name, value in own.items()}
        messages = tuple((message.role, message.content) for message in recipe.messages)
        if base is not None and not messages:
            messages = tuple((message.role, message.text) for message in base.messages)
        return TreeTexts(
            system=recipe.system or (base.system if base is not None else None) or "",
            parameters=tuple({**own, **checked_parameters(recipe.parameters)}.items()),
            messages=messages,
            licenses=(*(base.licenses if base is not None else ()), *recipe.licenses),
        )
