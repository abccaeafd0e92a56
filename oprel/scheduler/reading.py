"""Files that must be read whole before an engine may have them: in threads of their own, so that nothing else waits."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

from oprel.errors import BusyError
from oprel.scheduler.catalog import Catalog
from oprel.schema import Model

__all__ = ["FileReader"]

_THREADS = 2


class FileReader:
    """Who leaves while a file is read doesn't end the reading: what is found is remembered for the next."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._pool = ThreadPoolExecutor(_THREADS, "oprel-read")
        self._stopping = threading.Event()

    async def check(self, model: Model) -> None:
        """Raises ModelDamagedError for a model with a file that isn't what its digest says."""
        await asyncio.get_running_loop().run_in_executor(self._pool, self._check, model)

    def close(self) -> None:
        """Ends what is being read, within a block of it."""
        self._stopping.set()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _check(self, model: Model) -> None:
        self._catalog.check_files(model, progress=self._block_read)

    def _block_read(self, done: int) -> None:
        if self._stopping.is_set():
            raise BusyError("the server is stopping")
