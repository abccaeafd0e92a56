"""Fetch one file over HTTP into a blob in the making: counted, resumed when the connection breaks, with progress."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable

from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception_type,
    stop_after_attempt,
    wait_exponential,
    wait_random,
)

from oprel.errors import SourceError
from oprel.net.outside import OutsideClient, OutsideResponse, TransientSourceError, require_ok, shown_url
from oprel.store import BlobWriter

__all__ = ["ATTEMPTS", "Download", "wait_before_retry"]

ATTEMPTS = 6
MAX_WAIT_S = 60.0
_BACK_OFF = wait_exponential(multiplier=0.5, max=MAX_WAIT_S) + wait_random(0, 0.5)
_WRITE_BYTES = 1 << 20
_RANGE = re.compile(r"bytes (?P<first>\d{1,18})-\d{1,18}/(?P<total>\d{1,18})")

Completed = Callable[[int, int | None], None]
"""Bytes done, and bytes in all where that is known."""


def wait_before_retry(state: RetryCallState) -> float:
    """Seconds: what the server asked for, else doubling from half a second, with some chance in it so that not all
    come back at once; a minute at most."""
    error = state.outcome.exception() if state.outcome is not None else None
    asked = error.retry_after_s if isinstance(error, TransientSourceError) else None
    return min(MAX_WAIT_S, asked) if asked is not None else _BACK_OFF(state)


class Download:
    """`size_bytes` is what the index says, `max_bytes` what is taken at most."""

    def __init__(
        self,
        client: OutsideClient,
        url: str,
        target: BlobWriter,
        *,
        size_bytes: int | None,
        max_bytes: int,
        completed: Completed,
    ) -> None:
        self._client = client
        self._url = url
        self._target = target
        self._total = size_bytes
        self._max_bytes = max_bytes if size_bytes is None else size_bytes
        self._completed = completed
        self._done = 0
        self._validator: str | None = None

    async def run(self) -> None:
        """Raises SourceError when it can't be fetched whole; what was written then is of no use."""
        async for attempt in AsyncRetrying(
            stop=stop_after_attempt(ATTEMPTS),
            wait=wait_before_retry,
            retry=retry_if_exception_type(TransientSourceError),
            sleep=asyncio.sleep,
            reraise=True,
        ):
            with attempt:
                await self._try()

    async def _try(self) -> None:
        async with self._client.stream(self._url, headers=self._range_headers()) as response:
            require_ok(response, accept=frozenset({200, 206}))
            await self._begin(response)
            pending = bytearray()
            async for chunk in response.chunks(max_bytes=self._max_bytes - self._done):
                pending += chunk
                if len(pending) >= _WRITE_BYTES:
                    await self._write(pending)
                    pending = bytearray()
            await self._write(pending)
        if self._total is not None and self._done != self._total:
            raise TransientSourceError(f"{shown_url(self._url)} ended after {self._done} of {self._total} bytes.")

    def _range_headers(self) -> dict[str, str]:
        if not self._done or self._validator is None:
            return {}
        return {"Range": f"bytes={self._done}-", "If-Range": self._validator}

    async def _begin(self, response: OutsideResponse) -> None:
        if response.status == 206:
            self._check_range(response)
        elif self._done:  # the whole file again: it changed, or its server can't resume
            await asyncio.to_thread(self._target.restart)
            self._done = 0
        validator = response.headers.get("etag", "")
        self._validator = validator if validator and not validator.startswith("W/") else None
        if self._total is None and response.content_length is not None:
            self._total = self._done + response.content_length
            if self._total > self._max_bytes:
                raise SourceError(f"{shown_url(self._url)} is larger than the {self._max_bytes} bytes that it may be.")
        self._completed(self._done, self._total)

    def _check_range(self, response: OutsideResponse) -> None:
        match = _RANGE.fullmatch(response.headers.get("content-range", ""))
        if match is None or int(match["first"]) != self._done:
            raise SourceError(f"{shown_url(self._url)} answers with another part of the file than was asked for.")

    async def _write(self, data: bytearray) -> None:
        if not data:
            return
        await asyncio.to_thread(self._target.write, bytes(data))
        self._done += len(data)
        self._completed(self._done, self._total)
