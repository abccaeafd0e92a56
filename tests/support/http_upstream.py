"""A stand-in engine for tests of HTTP clients and drivers: what it answers, and how, is the test's to say.

    async def answer(request: Received, peer: Peer) -> None:
        await peer.send(stream_head())
        await peer.send(chunk(sse({"choices": [...]})))
        peer.cut()

    async with Upstream(answer) as upstream:
        client = QuickClient(upstream.address)

It runs in the test's own loop, on a unix socket, loopback TCP, or TLS over it (as `localhost`); nothing is left when
the block ends.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import tempfile
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

__all__ = [
    "DONE",
    "LAST_CHUNK",
    "Handler",
    "Peer",
    "Received",
    "Upstream",
    "chat_chunk",
    "chunk",
    "json_answer",
    "sse",
    "stream_head",
    "streamed",
    "whole_answer",
]

DONE = b"data: [DONE]\n\n"
LAST_CHUNK = b"0\r\n\r\n"
_LIMIT_S = 20.0


@dataclass(frozen=True)
class Received:
    """One request as it arrived. `connection` numbers connections from 0 in the order they were made."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    connection: int

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Peer:
    """The client's end of one connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    sent_bytes: int = 0

    async def send(self, *pieces: bytes) -> None:
        """Each piece in a write of its own, the loop running in between."""
        for piece in pieces:
            self.writer.write(piece)
            self.sent_bytes += len(piece)
            await self.writer.drain()
            await asyncio.sleep(0)

    def cut(self) -> None:
        """Ends the connection at once, whatever was promised."""
        self.writer.transport.abort()

    async def close(self) -> None:
        """Ends the connection after what was sent."""
        self.writer.close()
        with suppress(ConnectionError):
            await self.writer.wait_closed()

    async def wait_gone(self) -> None:
        """Until the client has closed its end."""
        async with asyncio.timeout(_LIMIT_S):
            with suppress(ConnectionError):
                while await self.reader.read(65536):
                    pass

    async def stall(self) -> None:
        """Says nothing more, until the client has gone."""
        await self.wait_gone()


Handler = Callable[[Received, Peer], Awaitable[None]]


@dataclass
class Upstream:
    """`requests` and `connections` say what came; a handler's own failure is raised when the block ends."""

    handler: Handler
    tcp: bool = False
    tls: ssl.SSLContext | None = None
    requests: list[Received] = field(default_factory=list)
    connections: int = 0
    address: str = ""
    _server: asyncio.Server | None = None
    _folder: tempfile.TemporaryDirectory[str] | None = None
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _failures: list[BaseException] = field(default_factory=list)

    async def __aenter__(self) -> Upstream:
        if self.tls is not None:
            self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, ssl=self.tls)
            self.address = f"https://localhost:{self._server.sockets[0].getsockname()[1]}"
        elif self.tcp:
            self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
            self.address = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        else:
            self._folder = tempfile.TemporaryDirectory(prefix="oprel-test-")
            path = Path(self._folder.name) / "engine.sock"
            self._server = await asyncio.start_unix_server(self._accept, str(path))
            self.address = f"unix:{path}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()
        if self._folder is not None:
            self._folder.cleanup()
        if self._failures and error is None:
            raise self._failures[0]

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        number, self.connections = self.connections, self.connections + 1
        try:
            await self._serve(Peer(reader, writer), number)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client has gone, or the block has ended: both are the end of this task
        except Exception as failure:
            self._failures.append(failure)
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def _serve(self, peer: Peer, number: int) -> None:
        while not peer.writer.is_closing():
            request = await _received(peer.reader, number)
            if request is None:
                return
            self.requests.append(request)
            await self.handler(request, peer)


async def _received(reader: asyncio.StreamReader, number: int) -> Received | None:
    line = await reader.readline()
    if not line:
        return None
    method, path, _ = line.decode("latin-1").split(" ")
    headers: dict[str, str] = {}
    while (line := await reader.readline()) not in (b"\r\n", b""):
        name, _, value = line.decode("latin-1").partition(":")
        headers[name.strip().lower()] = value.strip()
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Received(method, path, headers, body, number)


def whole_answer(
    body: bytes, *, status: int = 200, content_type: str = "application/json", headers: Mapping[str, str] | None = None
) -> bytes:
    """An answer with its length."""
    lines = [f"HTTP/1.1 {status} X", f"Content-Type: {content_type}", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def json_answer(value: Any, *, status: int = 200) -> bytes:
    return whole_answer(json.dumps(value).encode(), status=status)


def stream_head(content_type: str = "text/event-stream") -> bytes:
    """llama-server's head of a stream."""
    return (
        b"HTTP/1.1 200 OK\r\nServer: llama.cpp\r\nKeep-Alive: timeout=5, max=100\r\n"
        b"Content-Type: " + content_type.encode() + b"\r\nTransfer-Encoding: chunked\r\n\r\n"
    )


def chunk(data: bytes) -> bytes:
    """One chunk of a chunked body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def sse(*events: Any, newline: bytes = b"\n") -> bytes:
    """Server-sent events, one for each object."""
    return b"".join(
        b"data: " + json.dumps(event, ensure_ascii=False).encode("utf-8", "surrogateescape") + newline * 2
        for event in events
    )


def chat_chunk(
    content: str | None = None, *, finish: str | None = None, delta: Mapping[str, Any] | None = None, **more: Any
) -> dict[str, Any]:
    """A chunk of a chat completion as llama-server writes it."""
    inner = dict(delta) if delta is not None else {} if content is None else {"content": content}
    return {
        "choices": [{"finish_reason": finish, "index": 0, "delta": inner}],
        "created": 1795420071,
        "id": "chatcmpl-vi4Bwadf45MAdPM6JRXTF8Pze1ES5wlb",
        "model": "m",
        "system_fingerprint": "b1",
        "object": "chat.completion.chunk",
        **more,
    }


def streamed(events: Iterable[bytes]) -> Handler:
    """A handler that streams these event bytes, one chunk each, and ends as it should."""
    pieces = list(events)

    async def answer(_: Received, peer: Peer) -> None:
        await peer.send(stream_head(), *(chunk(piece) for piece in pieces), LAST_CHUNK)

    return answer
