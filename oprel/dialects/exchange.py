"""One request's whole life on the wire, in one straight line that every dialect shares.

A dialect answers with an async generator (`Answer`): first a `Head`, then the body's bytes. The exchange runs it,
writes what it yields, and closes it on every path: when it ends, when it fails, when the client leaves (queued,
loading, before the first token, mid-stream, streaming or not), when the client stops reading. Because the generator
holds the lease and the engine's iterator in `async with` blocks, closing it stops the engine and frees the slot.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from functools import partial
from time import monotonic
from typing import Protocol

from litestar.types import Receive, Scope, Send
from msgspec import Struct

from oprel.errors import OprelError

__all__ = ["Answer", "ErrorRenderer", "Exchange", "Head", "Waiting"]

_log = logging.getLogger("oprel.server")

_PING = b": still working\n\n"
_TOLD = (b"x-oprel-", b"server-timing")


class Head(Struct, frozen=True):
    """Status and headers; `content_length` is left out for streams. Header names are lower case."""

    status: int = 200
    headers: tuple[tuple[bytes, bytes], ...] = ()


class Waiting(Struct, frozen=True):
    """Said before the Head by an answer that will be a stream of server-sent events: a model may load first, or a long
    prompt be read, and clients and proxies give up on a connection that says nothing.

    If what follows takes longer than `every_s`, `head` is sent and then a comment (which no client shows) each
    `every_s`. The Head that the answer comes to is then written as a comment too; a failure ends the stream in its
    dialect's way, since its status has gone out.
    """

    head: Head
    every_s: float


Answer = AsyncGenerator[Head | Waiting | bytes, None]


class ErrorRenderer(Protocol):
    """How one dialect says that something went wrong."""

    def whole(self, error: OprelError) -> tuple[Head, bytes]:
        """The answer when nothing was sent yet."""

    def chunk(self, error: OprelError) -> bytes:
        """What is appended to a stream that had begun; the stream ends after it, without its usual end mark."""


class Exchange:
    """An ASGI app for one request. `answer` is called once, without arguments.

    `send_timeout_s` bounds each blocked write (a client that never reads); past it, or up to a quarter later, the
    client counts as gone. The limit costs nothing on the way of a write: the moment that a write began is noted,
    and the exchange looks at it when it wakes (a timer for each write would cost more than the write).
    """

    def __init__(self, answer: Callable[[], Answer], errors: ErrorRenderer, *, send_timeout_s: float) -> None:
        self._answer = answer
        self._errors = errors
        self._send_timeout_s = send_timeout_s
        self._sending_since: float | None = None
        self._has_begun = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        writing = asyncio.ensure_future(self._write(send))
        leaving = asyncio.ensure_future(_wait_client_gone(receive))
        try:
            await self._wait(writing, leaving)
        finally:
            leaving.cancel()
            if not writing.done():
                writing.cancel()
            await asyncio.gather(leaving, return_exceptions=True)
            try:
                await writing
            except asyncio.CancelledError:
                if (task := asyncio.current_task()) is not None and task.cancelling():
                    raise

    async def _wait(self, writing: asyncio.Task[None], leaving: asyncio.Task[None]) -> None:
        """Returns when the answer is written, the client has left, or it hasn't read for too long."""
        while True:
            done, _ = await asyncio.wait(
                (writing, leaving), timeout=self._send_timeout_s / 4, return_when=asyncio.FIRST_COMPLETED
            )
            if done:
                return
            since = self._sending_since
            if since is not None and monotonic() - since >= self._send_timeout_s:
                _log.warning("client stopped reading for %.0f s: cut off", self._send_timeout_s)
                return

    async def _write(self, send: Send) -> None:
        company = _Company()
        try:
            async with aclosing(self._answer()) as answer, aclosing(company):
                async for item in answer:
                    if isinstance(item, bytes):
                        await self._send_body(send, item, more=True)
                    elif isinstance(item, Waiting):
                        company.keep(partial(self._keep_company, send, item))
                    else:
                        await company.aclose()
                        await self._begin(send, item)
            await self._send_body(send, b"", more=False)
        except Exception as caught:
            await self._send_failure(send, _as_ours(caught))

    async def _keep_company(self, send: Send, waiting: Waiting) -> None:
        await asyncio.sleep(waiting.every_s)
        await self._begin(send, waiting.head)
        while True:
            await self._send_body(send, _PING, more=True)
            await asyncio.sleep(waiting.every_s)

    async def _begin(self, send: Send, head: Head) -> None:
        if self._has_begun:
            await self._send_body(send, _as_comment(head), more=True)
            return
        self._has_begun = True
        await self._send_head(send, head)

    async def _send_failure(self, send: Send, error: OprelError) -> None:
        if self._has_begun:
            await self._send_body(send, self._errors.chunk(error), more=True)
            await self._send_body(send, b"", more=False)
            return
        whole, body = self._errors.whole(error)
        await self._send_head(send, whole)
        await self._send_body(send, body, more=False)

    async def _send_head(self, send: Send, head: Head) -> None:
        await send({"type": "http.response.start", "status": head.status, "headers": list(head.headers)})

    async def _send_body(self, send: Send, body: bytes, *, more: bool) -> None:
        self._sending_since = monotonic()
        await send({"type": "http.response.body", "body": body, "more_body": more})
        self._sending_since = None


class _Company:
    """The one who says something while the answer's own generator is busy, in a task beside it."""

    def __init__(self) -> None:
        self._task: asyncio.Task[None] | None = None

    def keep(self, work: Callable[[], Coroutine[None, None, None]]) -> None:
        self._task = asyncio.ensure_future(work())

    async def aclose(self) -> None:
        """Returns when nothing is being said any more. Raises what kept it from being said: a client that left."""
        task, self._task = self._task, None
        if task is None:
            return
        task.cancel()
        await asyncio.wait((task,))
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error


def _as_comment(head: Head) -> bytes:
    return b"".join(b": %s: %s\n" % header for header in head.headers if header[0].startswith(_TOLD)) + b"\n"


def _as_ours(caught: Exception) -> OprelError:
    if isinstance(caught, OprelError):
        return caught
    _log.error("a request failed for a reason that is a defect of this server", exc_info=caught)
    return OprelError("internal error: the server's log has the details")


async def _wait_client_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
