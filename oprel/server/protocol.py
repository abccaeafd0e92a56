"""The HTTP/1.1 protocol with limits on what uvicorn leaves open: headers or a body that never end, and a client that
never reads what it is sent."""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from oprel.config import Settings

__all__ = ["BoundedProtocol", "bounded_protocol"]

_MAX_HEADER_BYTES = 64 * 1024
_LEAST_BYTES_PER_S = 16 * 1024
# What is thrown away of a body after its request was answered (a refused upload), before the line is cut.
_MAX_DISCARDED_BYTES = 256 * 1024 * 1024


class BoundedProtocol(HttpToolsProtocol):
    """Times in seconds. A timer runs only while a request is incomplete or a write is blocked: a request that comes
    in one piece, as nearly all do, costs none."""

    header_timeout: ClassVar[float] = 10.0
    body_timeout: ClassVar[float] = 30.0
    send_timeout: ClassVar[float] = 60.0
    max_connections: ClassVar[int] = 1 << 20

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._state = "idle"  # then "headers", "body", and "idle" again
        self._began_at = 0.0
        self._bytes = 0
        self._reading: asyncio.TimerHandle | None = None
        self._writing: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.max_connections:
            transport.abort()
            return
        self._began_at = self.loop.time()
        self._reading = self.loop.call_later(max(self.header_timeout, self.timeout_keep_alive), self._reading_late)

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_reading()
        self.resume_writing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._bytes += len(data)
        super().data_received(data)
        if self._state == "idle":
            if self.cycle is not None and not self.cycle.response_complete:
                self._cancel_reading()
            elif self._reading is None and self.timeout_keep_alive_task is None:
                # Blank lines between requests: they must not keep a connection for ever.
                self._began_at = self.loop.time()
                self._reading = self.loop.call_later(self.timeout_keep_alive, self._reading_late)
        elif self._is_too_much():
            self._refuse(b"431 Request Header Fields Too Large" if self._state == "headers" else None)
        elif self._reading is None or self._began_at == 0.0:
            self._cancel_reading()
            self._began_at = self.loop.time()
            self._watch_reading()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._state = "headers"
        self._began_at = 0.0
        self._bytes = 0

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        self._state = "body"

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._state = "idle"

    def pause_writing(self) -> None:
        super().pause_writing()
        # Half a second after whoever is blocked has had its chance to end in good order.
        self._writing = self.loop.call_later(self.send_timeout + 0.5, self._writing_late)

    def resume_writing(self) -> None:
        if self._writing is not None:
            self._writing.cancel()
            self._writing = None
        super().resume_writing()

    def _is_too_much(self) -> bool:
        if self._state == "headers":
            return self._bytes > _MAX_HEADER_BYTES
        return self.cycle is not None and self.cycle.response_complete and self._bytes > _MAX_DISCARDED_BYTES

    def _cancel_reading(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    def _watch_reading(self) -> None:
        allowed = self.header_timeout
        if self._state == "body":
            allowed += self.body_timeout + self._bytes / _LEAST_BYTES_PER_S
        left = self._began_at + allowed - self.loop.time()
        self._reading = self.loop.call_later(max(left, 0.01), self._reading_late)

    def _reading_late(self) -> None:
        self._reading = None
        if self.transport is None or self.transport.is_closing():
            return
        allowed = self.header_timeout
        if self._state == "body":
            allowed += self.body_timeout + self._bytes / _LEAST_BYTES_PER_S
            if self.flow.read_paused:  # the wait is ours: nobody has taken what has come
                allowed = self.loop.time() - self._began_at + self.body_timeout
        if self._state != "idle" and self._began_at + allowed > self.loop.time():
            self._watch_reading()
            return
        self._refuse(b"408 Request Timeout" if self._state == "headers" else None)

    def _refuse(self, status: bytes | None) -> None:
        """Says why where no answer has begun on this connection, and closes it."""
        if status is not None and (self.cycle is None or self.cycle.response_complete):
            head = b"HTTP/1.1 %b\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
            self.transport.write(head % status)
        self.transport.close()

    def _writing_late(self) -> None:
        self._writing = None
        self.transport.abort()


def bounded_protocol(settings: Settings, *, max_connections: int) -> type[BoundedProtocol]:
    """uvicorn wants a class: one with these limits."""
    limits = {
        "header_timeout": settings.header_timeout,
        "body_timeout": settings.body_timeout,
        "send_timeout": settings.send_timeout,
        "max_connections": max_connections,
    }
    return type("BoundedProtocol", (BoundedProtocol,), limits)
