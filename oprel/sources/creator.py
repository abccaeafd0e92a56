"""Making models of recipes: the base is pulled where it is missing, then the store does its work in a thread."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable

from oprel.errors import InvalidRequestError, ModelDamagedError, ModelNotFoundError
from oprel.schema import Model
from oprel.sources.progress import PullProgress
from oprel.sources.threads import StopFlag, in_thread
from oprel.store import Catalog, Trees
from oprel.store.creating import Base, Creating, Quantize, Report
from oprel.store.creating_trees import CreatingTree, is_for_tree
from oprel.store.recipes import Recipe

__all__ = ["Creator", "Pull"]

Pull = Callable[[str], AsyncGenerator[PullProgress, None]]
"""Gets a model by its name, as `Puller.pull` does."""


class Creator:
    """`quantize` None: recipes that ask for it are refused."""

    def __init__(self, catalog: Catalog, pull: Pull, *, quantize: Quantize | None = None) -> None:
        self._catalog = catalog
        self._pull = pull
        self._quantize = quantize

    async def create(self, recipe: Recipe) -> AsyncGenerator[PullProgress, None]:
        """Yields lines up to `success`; before them those of a pull, where the base had to be pulled. Closing the
        generator ends the work, which leaves nothing half done. Raises InvalidRequestError, SourceError, StoreError."""
        base: Base | Model | None = None
        if recipe.base:
            try:
                base = await asyncio.to_thread(self._base, recipe.base)
            except ModelNotFoundError:
                async with contextlib.aclosing(self._pull(recipe.base)) as lines:
                    async for line in lines:
                        yield line
                base = await asyncio.to_thread(self._base, recipe.base)
        async with contextlib.aclosing(self._made(recipe, base)) as lines:
            async for line in lines:
                yield line
        yield PullProgress("success")

    async def _made(self, recipe: Recipe, base: Base | Model | None) -> AsyncGenerator[PullProgress, None]:
        loop = asyncio.get_running_loop()
        lines: asyncio.Queue[PullProgress | None] = asyncio.Queue()

        def run(stop: StopFlag) -> None:
            def report(
                status: str, digest: str | None = None, total: int | None = None, completed: int | None = None
            ) -> None:
                stop.check()
                loop.call_soon_threadsafe(lines.put_nowait, PullProgress(status, digest, total, completed))

            with self._catalog.store.in_use():
                self._make(recipe, base, report)

        working = asyncio.ensure_future(in_thread(run))
        working.add_done_callback(lambda _: lines.put_nowait(None))
        try:
            while (line := await lines.get()) is not None:
                yield line
            await working
        finally:
            working.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await working

    def _make(self, recipe: Recipe, base: Base | Model | None, report: Report) -> None:
        store = self._catalog.store
        if isinstance(base, Model) or (base is None and is_for_tree(recipe)):
            trees = next((shelf for shelf in self._catalog.shelves if isinstance(shelf, Trees)), None)
            if trees is None:
                raise InvalidRequestError("models in safetensors can't be made here: there is no place for them")
            if self._catalog.is_stored(recipe.name):
                raise InvalidRequestError(
                    f"There is a GGUF model called {str(recipe.name)!r} already: give this one another name."
                )
            CreatingTree(store, trees, recipe, report).run(base)
        else:
            Creating(store, recipe, report, quantize=self._quantize).run(base)

    def _base(self, name: str) -> Base | Model:
        """A model that is a folder stands for itself."""
        model = self._catalog.find(name)
        _check_base(model)
        found = self._catalog.manifest_of(model)
        return model if found is None else Base(model.name, *found)


def _check_base(model: Model) -> None:
    if model.damage is not None:
        raise ModelDamagedError(model.damage, model=model.name)
    if model.remote is not None:
        raise InvalidRequestError(
            f"{model.name!r} is on another server, which has its files: nothing can be made of it here", param="from"
        )
