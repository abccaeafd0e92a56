"""The quick HTTP client: HTTP/1.1 to engines, over a unix socket, TCP or TLS.

It does what the hot path needs and no more: no redirects, cookies, proxies or compression. Why it exists and what it
measured: `docs/architecture/hot-path.md`.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import AsyncGenerator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass

from oprel.net.connection import Connection
from oprel.net.failures import AnswerTimeout, BadAnswer, BadCertificate, CannotConnect, ConnectionCut

__all__ = ["QuickClient", "QuickResponse", "QuickStream"]

# llama-server and vLLM (uvicorn) close a connection that was idle for 5 s: ours goes before that.
_IDLE_S = 4.0
_MAX_BODY_BYTES = 64 * 1024 * 1024
_HEAD_TIMEOUT_S = 60.0
_TARGET = re.compile(r"/[!-~]*", re.ASCII)
_TCP = re.compile(r"(https?)://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._\-]+)(?::(\d{1,5}))?(/[!-~]*)?", re.ASCII)
_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class QuickResponse:
    """A whole answer. Header names are lower case; of repeated headers the last one counts."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class QuickStream:
    """An answer whose head is there. Iterating gives bytes as they arrive: what arrived together comes together."""

    __slots__ = ("_connection", "headers", "status")

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.status = connection.status
        self.headers: Mapping[str, str] = connection.headers

    def __aiter__(self) -> QuickStream:
        return self

    async def __anext__(self) -> bytes:
        data = await self._connection.read()
        if not data:
            raise StopAsyncIteration
        return data

    async def read(self) -> bytes:
        """The next bytes; b"" after the clean end. Raises ConnectionCut where the answer broke off."""
        return await self._connection.read()

    async def read_all(self, *, limit_bytes: int = _MAX_BODY_BYTES) -> bytes:
        """The rest of the body; BadAnswer past the limit."""
        pieces: list[bytes] = []
        size = 0
        while data := await self._connection.read():
            size += len(data)
            if size > limit_bytes:
                raise BadAnswer(f"the engine's answer is longer than {limit_bytes} bytes")
            pieces.append(data)
        return b"".join(pieces)

    def interrupt(self, error: Exception) -> None:
        """Makes the read that waits (or else the next one) raise `error`."""
        self._connection.interrupt(error)

    @property
    def buffered_bytes(self) -> int:
        return self._connection.buffered_bytes


class QuickClient:
    """Keeps connections to one engine. `address` is "unix:/path" or "http(s)://host[:port][/base]" (every path is below
    `base`); `api_key` goes as a bearer, `headers` with every request. `tls` says whom to trust (see `tls_context`); an
    https address needs it.

    Belongs to the loop it is first used in. Opens nothing until asked, and never more connections than requests at
    once. A request on a kept connection that turns out to be closed, before anything was received, is sent once
    more on a fresh one.
    """

    def __init__(
        self,
        address: str,
        *,
        api_key: str | None = None,
        connect_timeout_s: float = 5.0,
        tls: ssl.SSLContext | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.address = address
        self._connect_timeout_s = connect_timeout_s
        self._place = _parse_address(address)
        self._tls = tls if self._place.scheme == "https" else None
        if self._place.scheme == "https" and tls is None:
            raise ValueError(f"{address!r} is asked over TLS: say whom to trust")
        self._common = _common_headers(self._place, api_key, headers or {})
        self._idle: list[tuple[Connection, asyncio.TimerHandle]] = []
        self._open: set[Connection] = set()
        self._is_closed = False

    def __repr__(self) -> str:
        state = "closed" if self._is_closed else f"{len(self._open)} open, {len(self._idle)} idle"
        return f"QuickClient({self.address!r}, {state})"

    async def request(self, method: str, path: str, body: bytes | None = None, *, timeout_s: float) -> QuickResponse:
        """The whole answer, whatever its status; AnswerTimeout when it isn't there after `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s), self.stream(method, path, body, timeout_s=timeout_s) as stream:
                return QuickResponse(stream.status, stream.headers, await stream.read_all())
        except TimeoutError:
            raise _too_slow(method, path, timeout_s) from None

    def stream(
        self, method: str, path: str, body: bytes | None = None, *, timeout_s: float | None = _HEAD_TIMEOUT_S
    ) -> AbstractAsyncContextManager[QuickStream]:
        """Waits up to `timeout_s` for the head (None: for ever; the caller has a limit of its own). Leaving the
        context early closes the connection at once, which is what stops an engine's work."""
        return self._streaming(method, path, body, timeout_s)

    async def aclose(self) -> None:
        """Closes every connection at once; whoever is reading gets ConnectionCut. Safe to call twice."""
        self._is_closed = True
        lost = [connection.wait_lost() for connection in self._open]
        for connection in list(self._open):
            connection.abort()
        for _, timer in self._idle:
            timer.cancel()
        self._idle.clear()
        await asyncio.gather(*lost)
        self._open.clear()

    @asynccontextmanager
    async def _streaming(
        self, method: str, path: str, body: bytes | None, timeout_s: float | None
    ) -> AsyncGenerator[QuickStream, None]:
        connection = await self._ask(self._head(method, path, body), body or b"", timeout_s, f"{method} {path}")
        try:
            yield QuickStream(connection)
        finally:
            self._release(connection)

    async def _ask(self, head: bytes, body: bytes, timeout_s: float | None, what: str) -> Connection:
        kept = self._take_idle()
        if kept is not None:
            try:
                return await self._ask_on(kept, head, body, timeout_s, what)
            except ConnectionCut:
                if kept.has_received or self._is_closed:
                    raise
        return await self._ask_on(await self._connect(), head, body, timeout_s, what)

    async def _ask_on(
        self, connection: Connection, head: bytes, body: bytes, timeout_s: float | None, what: str
    ) -> Connection:
        try:
            async with asyncio.timeout(timeout_s):
                connection.ask(head, body)
                await connection.wait_head()
        except TimeoutError:
            self._drop(connection)
            raise AnswerTimeout(f"the engine didn't begin to answer {what} within {timeout_s:g} s") from None
        except BaseException:
            self._drop(connection)
            raise
        return connection

    async def _connect(self) -> Connection:
        if self._is_closed:
            raise CannotConnect("the connection to this engine is closed for good")
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                if self._place.scheme == "unix":
                    _, connection = await loop.create_unix_connection(Connection, self._place.path)
                else:
                    place = self._place
                    _, connection = await loop.create_connection(Connection, place.host, place.port, ssl=self._tls)
        except TimeoutError:
            raise CannotConnect(f"no connection to {self.address} within {self._connect_timeout_s:g} s") from None
        except ssl.SSLCertVerificationError as error:
            why = error.verify_message or "it can't be verified"
            raise BadCertificate(f"the certificate of {self.address} isn't trusted: {why}", why=why) from error
        except OSError as error:
            raise CannotConnect(f"no connection to {self.address}: {error.strerror or error}") from error
        if self._is_closed:
            connection.abort()
            raise CannotConnect("the connection to this engine is closed for good")
        self._open.add(connection)
        return connection

    def _take_idle(self) -> Connection | None:
        while self._idle:
            connection, timer = self._idle.pop()
            timer.cancel()
            if connection.is_open:
                return connection
            self._drop(connection)
        return None

    def _release(self, connection: Connection) -> None:
        if self._is_closed or not connection.is_reusable:
            self._drop(connection)
            return
        connection.go_idle()
        timer = asyncio.get_running_loop().call_later(_IDLE_S, self._expire, connection)
        self._idle.append((connection, timer))

    def _expire(self, connection: Connection) -> None:
        self._idle = [entry for entry in self._idle if entry[0] is not connection]
        self._drop(connection)

    def _drop(self, connection: Connection) -> None:
        connection.abort()
        self._open.discard(connection)

    def _head(self, method: str, path: str, body: bytes | None) -> bytes:
        if not method.isalpha() or not _TARGET.fullmatch(path):
            raise ValueError(f"not a request line: {method!r} {path!r}")
        line = f"{method} {self._place.base}{path} HTTP/1.1\r\n".encode("ascii")
        if body is None:
            return line + self._common + b"\r\n"
        return b"%bContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % (line + self._common, len(body))


@dataclass(frozen=True, slots=True)
class _Place:
    """`path` is a unix socket's; `base` what stands before every path that is asked, without a slash at its end."""

    scheme: str
    host: str = "localhost"
    port: int = 0
    path: str = ""
    base: str = ""

    @property
    def named(self) -> str:
        """As the Host header says it (RFC 9110, section 7.2): a scheme's own port is left out."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}" if self.port and self.port != _PORTS.get(self.scheme) else host


def _parse_address(address: str) -> _Place:
    if address.startswith("unix:/"):
        return _Place("unix", path="/" + address.removeprefix("unix:").lstrip("/"))
    if match := _TCP.fullmatch(address):
        scheme, host, port, base = match.groups()
        number = _PORTS[scheme] if port is None else int(port)
        if 0 < number < 65536:
            return _Place(scheme, host.strip("[]"), number, base=(base or "").rstrip("/"))
    raise ValueError(f"not an engine's address: {address!r} (unix:/path or http(s)://host:port)")


def _common_headers(place: _Place, api_key: str | None, headers: Mapping[str, str]) -> bytes:
    lines = [f"Host: {place.named}", "Accept: */*", *(f"{name}: {value}" for name, value in headers.items())]
    if api_key is not None:
        if not api_key.isascii() or not api_key.isprintable() or not api_key.strip():
            raise ValueError("the engine's key has characters that no header can carry")
        lines.append(f"Authorization: Bearer {api_key}")
    return "".join(f"{line}\r\n" for line in lines).encode("ascii")


def _too_slow(method: str, path: str, timeout_s: float) -> AnswerTimeout:
    return AnswerTimeout(f"the engine didn't finish its answer to {method} {path} within {timeout_s:g} s")
