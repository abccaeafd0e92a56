"""What takes a minute of waiting for others, an index of packages say, begun when the tests are collected.

A test module names in `AHEAD` what its fixtures will wait for; the conftest begins it before the first test, whichever
that is. It should be nice to them.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Generic, TypeVar

from support.servers import descendants

__all__ = ["Ahead"]

T = TypeVar("T")


class Ahead(Generic[T]):
    """Runs `make` once, in a thread."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._made: Future[T] = Future()
        self._thread: threading.Thread | None = None

    def begin(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()

    def result(self) -> T:
        """Waits for it; raises what `make` raised."""
        self.begin()
        return self._made.result()

    def give_up(self) -> None:
        """The tests are over, it may be before it was made: nothing goes on without them."""
        while self._thread is not None and self._thread.is_alive():
            for pid in descendants(os.getpid()):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._thread.join(0.1)

    def _run(self) -> None:
        try:
            self._made.set_result(self._make())
        except BaseException as error:
            self._made.set_exception(error)
