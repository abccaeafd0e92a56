"""What takes a minute of waiting for others, an index of packages say, begun when the tests are collected.

A test module names in `AHEAD` what its fixtures will wait for; the conftest begins it before the first test, whichever
that is. It should be nice to them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

__all__ = ["Ahead"]

T = TypeVar("T")


class Ahead(Generic[T]):
    """Runs `make` once, in a thread."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._made: Future[T] | None = None

    def begin(self) -> Future[T]:
        if self._made is None:
            self._made = Future()
            threading.Thread(target=self._run, args=(self._made,), daemon=True).start()
        return self._made

    def result(self) -> T:
        """Waits for it; raises what `make` raised."""
        return self.begin().result()

    def _run(self, made: Future[T]) -> None:
        try:
            made.set_result(self._make())
        except BaseException as error:
            made.set_exception(error)
