"""What the scheduler asks of the store."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from oprel.schema import Model

__all__ = ["Catalog"]


class Catalog(Protocol):
    """What the scheduler asks of `oprel.store.Catalog`. May block, and is called in threads."""

    def find(self, name: str) -> Model: ...

    def are_files_known(self, model: Model) -> bool:
        """Whether its files were read before and look as they did then: quick."""
        ...

    def check_files(self, model: Model, *, progress: Callable[[int], None] | None = None) -> None:
        """Reads those that aren't known; `progress` may raise. Raises ModelDamagedError."""
        ...
