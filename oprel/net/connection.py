"""One HTTP/1.1 connection to an engine: bytes in, one answer at a time out.

| state | meaning | on a lost connection |
|---|---|---|
| idle | nothing asked | closed, quietly |
| asked | waiting for the head | `ConnectionCut`; `has_received` says whether any byte came |
| answering | head is there, body arrives | `ConnectionCut`, unless the body has no other end than the connection's |
| complete | the whole body arrived | closed, quietly |
"""

from __future__ import annotations

import asyncio
from typing import cast

import httptools

from oprel.net.failures import BadAnswer, ConnectionCut, QuickError

__all__ = ["MAX_BUFFERED_BYTES", "MAX_HEADER_BYTES", "Connection"]

MAX_HEADER_BYTES = 64 * 1024
# Past this much that the consumer hasn't taken, the socket isn't read any more: the engine blocks in its write. What
# one read brings comes on top (asyncio reads at most 256 KiB at once).
MAX_BUFFERED_BYTES = 512 * 1024


class Connection(asyncio.Protocol):
    """Used by one asker at a time: `ask`, `wait_head`, `read` until b"", then `ask` again or `abort`."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._lost = self._loop.create_future()
        self._pieces: list[bytes] = []  # of the read that is being parsed
        self.on_body = self._pieces.append  # httptools calls it: no Python frame for a chunk
        self._parser = httptools.HttpResponseParser(self)
        self._waiter: asyncio.Future[None] | None = None
        self._is_asked = False
        self._reset()

    def _reset(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.has_received = False
        self.is_complete = False
        self._has_head = False
        self._keeps_alive = False
        self._ends_with_connection = False
        self._header_bytes = 0
        self._last_piece = 0
        self._buffer: list[bytes] = []
        self._buffered_bytes = 0
        self._is_paused = False
        self._error: QuickError | None = None
        self._interrupt: Exception | None = None

    # What the client calls

    @property
    def is_open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    @property
    def is_reusable(self) -> bool:
        """The answer came whole, the engine has taken the whole question, and keeps the connection."""
        transport = self._transport
        if transport is None or transport.is_closing() or transport.get_write_buffer_size():
            return False
        return self.is_complete and self._keeps_alive and self._error is None

    @property
    def buffered_bytes(self) -> int:
        """What has arrived and wasn't taken yet."""
        return self._buffered_bytes

    def ask(self, head: bytes, body: bytes) -> None:
        self._resume()
        self._reset()
        self._is_asked = True
        if self._transport is None or self._transport.is_closing():
            raise ConnectionCut("the engine closed the connection")
        if len(body) <= MAX_HEADER_BYTES:
            self._transport.write(head + body)
        else:  # a long body isn't copied
            self._transport.write(head)
            self._transport.write(body)

    async def wait_head(self) -> None:
        while not self._has_head:
            self._raise_failure()
            await self._wait()

    async def read(self) -> bytes:
        """All that has arrived since the last call, joined; waits when there's nothing; b"" after the clean end.

        Raises ConnectionCut where the body broke off (after what had arrived was given), or what `interrupt` set.
        """
        while True:
            if self._interrupt is not None:
                raise self._interrupt
            if self._buffer:
                return self._take()
            if self.is_complete:
                return b""
            self._raise_failure()
            await self._wait()

    def interrupt(self, error: Exception) -> None:
        """Makes `read` raise this, now if it waits, and before it gives anything more."""
        self._interrupt = error
        self._wake()

    def go_idle(self) -> None:
        self._is_asked = False

    def abort(self) -> None:
        """Closes the socket at once; whoever waits gets ConnectionCut."""
        if self._transport is not None:
            self._transport.abort()
        self._fail(ConnectionCut("the connection to the engine was closed"))

    async def wait_lost(self) -> None:
        await asyncio.shield(self._lost)

    def _take(self) -> bytes:
        data = self._buffer[0] if len(self._buffer) == 1 else b"".join(self._buffer)
        self._buffer.clear()
        self._buffered_bytes = 0
        self._resume()
        return data

    def _pause(self) -> None:
        if not self._is_paused and self._transport is not None and not self._transport.is_closing():
            self._is_paused = True
            self._transport.pause_reading()

    def _resume(self) -> None:
        if self._is_paused and self._transport is not None and not self._transport.is_closing():
            self._is_paused = False
            self._transport.resume_reading()

    def _raise_failure(self) -> None:
        if self._interrupt is not None:
            raise self._interrupt
        if self._error is not None:
            raise self._error

    async def _wait(self) -> None:
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _fail(self, error: QuickError) -> None:
        if self._error is None and not self.is_complete:
            self._error = error
        self._wake()

    # What asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if not self._is_asked or self.is_complete or self._error is not None:
            self.abort()  # nobody asked: not HTTP as we know it
            return
        self.has_received = True
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as broken:
            if not self.is_complete:
                self._give_up(f"the engine's answer isn't HTTP: {data[:80]!r} ({type(broken).__name__})")
                return
            self._keeps_alive = False
        if self._header_bytes > MAX_HEADER_BYTES or (not self._has_head and self._count_headless(len(data))):
            self._give_up(f"the engine's headers are longer than {MAX_HEADER_BYTES} bytes")
            return
        if self.is_complete:
            del self._pieces[self._last_piece :]  # of an answer to nothing, in the same read
        if self._pieces:
            self._keep()
        self._wake()

    def _keep(self) -> None:
        joined = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces.clear()
        self._buffer.append(joined)
        self._buffered_bytes += len(joined)
        if self._buffered_bytes > MAX_BUFFERED_BYTES and not self.is_complete:
            self._pause()

    def _count_headless(self, size: int) -> bool:
        self._header_bytes += size
        return self._header_bytes > MAX_HEADER_BYTES

    def _give_up(self, why: str) -> None:
        self._pieces.clear()
        self._fail(BadAnswer(why))
        if self._transport is not None:
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._has_head and self._ends_with_connection and exc is None and self._error is None:
            self.is_complete = True
        self._fail(ConnectionCut("the engine closed the connection before its answer was complete"))
        if not self._lost.done():
            self._lost.set_result(None)

    # What httptools calls

    def on_message_begin(self) -> None:
        if self.is_complete:  # a second answer to one question: this one stands, the connection doesn't
            self._keeps_alive = False

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.is_complete:
            return
        self._header_bytes += len(name) + len(value)
        if self._header_bytes <= MAX_HEADER_BYTES:
            self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        if self.is_complete:
            return
        status = self._parser.get_status_code()
        if status < 200:  # 100 Continue: the answer itself is still to come
            self.headers.clear()
            return
        self.status = status
        self._has_head = True
        self._keeps_alive = self._parser.should_keep_alive()
        has_length = "content-length" in self.headers or "transfer-encoding" in self.headers
        self._ends_with_connection = not has_length and status not in (204, 304)

    def on_message_complete(self) -> None:
        if self._has_head and not self.is_complete:
            self.is_complete = True
            self._last_piece = len(self._pieces)
