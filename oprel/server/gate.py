"""What every request passes before a route sees it: one pass over its headers, whatever its path, 404s included.

In this order: the name it called us by and the page it came from (403), a browser's preflight (204), a server that is
stopping (503), a key (401), the size of its body (413). And on every answer, these too: a request id, which the log's
lines carry as well, one of them for each request, with its status and how long it took.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import time
from collections.abc import Awaitable, Callable

from litestar.enums import ScopeType
from litestar.types import ASGIApp, HTTPReceiveMessage, HTTPScope, Message, Receive, Scope, Send

from oprel.config import Settings
from oprel.dialects.request_id import request_id
from oprel.errors import AuthenticationError, BusyError, PayloadTooLargeError
from oprel.server.access import AccessPolicy, Keyring, Verdict
from oprel.server.lifetime import Lifetime
from oprel.server.refusals import Refusal, refusal

__all__ = ["Gate", "request_id"]

_log = logging.getLogger("oprel.server")

_READ = frozenset(
    {b"host", b"origin", b"sec-fetch-site", b"authorization", b"x-api-key", b"content-length", b"transfer-encoding"}
    | {b"x-request-id"}
)
_OPEN_PATHS = frozenset({"/health", "/ready"})
_WATCHED_PATHS = _OPEN_PATHS | {"/metrics"}  # asked every few seconds
_LONGEST_PATH = 200
_UPLOADS = "/api/blobs/"  # streamed to disk, bounded there
_GIVEN_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
_FORBIDDEN = Refusal(403, headers=((b"content-length", b"0"),))
_STOPPING = "the server is stopping: try again when it is back"


class Gate:
    """`running` counts requests that routes are busy with."""

    def __init__(self, app: ASGIApp, settings: Settings, lifetime: Lifetime) -> None:
        self.running = 0
        self._app = app
        self._lifetime = lifetime
        self._policy = AccessPolicy(settings)
        self._keys = Keyring(settings.api_keys)
        self._max_body_bytes = settings.max_body_bytes
        self._idle = asyncio.Event()
        self._idle.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != ScopeType.HTTP:
            await self._app(scope, receive, send)
            return
        read = {name: value for name, value in scope["headers"] if name in _READ}
        own_id = _request_id(read.get(b"x-request-id"))
        request_id.set(own_id)
        verdict = self._policy.judge(read.get(b"host", b""), read.get(b"origin"), read.get(b"sec-fetch-site"))
        began, status = time.monotonic(), 0

        def note(answered: int) -> None:
            nonlocal status
            status = answered

        send = _with_headers(send, ((b"x-request-id", own_id.encode()), *verdict.headers), note)
        try:
            await self._answer(scope, receive, send, read, verdict)
        finally:
            _log_answer(scope, status, time.monotonic() - began)

    async def _answer(
        self, scope: HTTPScope, receive: Receive, send: Send, read: dict[bytes, bytes], verdict: Verdict
    ) -> None:
        if not verdict.allowed:
            await _FORBIDDEN(scope, receive, send)
        elif scope["method"] == "OPTIONS" and verdict.is_page:
            await Refusal(204, headers=verdict.preflight)(scope, receive, send)
        elif (refused := self._refusal(scope["path"], read)) is not None:
            await refused(scope, receive, send)
        else:
            if b"transfer-encoding" in read and not scope["path"].startswith(_UPLOADS):
                receive = _counted(receive, self._max_body_bytes)
            await self._pass(scope, receive, send)

    async def _pass(self, scope: HTTPScope, receive: Receive, send: Send) -> None:
        self.running += 1
        self._idle.clear()
        try:
            await self._app(scope, receive, send)
        finally:
            self.running -= 1
            if not self.running:
                self._idle.set()

    async def wait_idle(self) -> None:
        """Returns when no request is running."""
        await self._idle.wait()

    def _refusal(self, path: str, read: dict[bytes, bytes]) -> Refusal | None:
        if path in _OPEN_PATHS:
            return None
        if self._lifetime.is_draining:
            answer = refusal(BusyError(_STOPPING, retry_after_s=5), path)
            answer.headers += ((b"connection", b"close"),)
            return answer
        if self._keys and not self._keys.accepts(read.get(b"authorization"), read.get(b"x-api-key")):
            return refusal(AuthenticationError(_no_key(read)), path)
        if int(read.get(b"content-length", b"0")) > self._max_body_bytes and not path.startswith(_UPLOADS):
            return refusal(_too_large(self._max_body_bytes), path)
        return None


def _request_id(given: bytes | None) -> str:
    """The client's own, where it is one that can stand in a log; else a new one."""
    if given is not None and _GIVEN_ID.fullmatch(given):
        return given.decode()
    return os.urandom(8).hex()


def _no_key(read: dict[bytes, bytes]) -> str:
    if b"authorization" in read or b"x-api-key" in read:
        return "this key is not one of the server's keys"
    return "this server needs a key: send it as 'Authorization: Bearer KEY'"


def _too_large(limit: int) -> PayloadTooLargeError:
    return PayloadTooLargeError(f"the request's body is larger than {limit / 2**20:.0f} MiB", limit_bytes=limit)


def _log_answer(scope: HTTPScope, status: int, took_s: float) -> None:
    """`status` is 0 where the client had gone before there was an answer."""
    level = logging.DEBUG if scope["path"] in _WATCHED_PATHS else logging.INFO
    path = scope["path"][:_LONGEST_PATH]
    _log.log(level, "%s %r %s in %.3f s", scope["method"], path, status or "unanswered", took_s)


def _with_headers(send: Send, headers: tuple[tuple[bytes, bytes], ...], note: Callable[[int], None]) -> Send:
    # Not a coroutine function: a stream's every write passes here, and only its first message is of interest.
    def sending(message: Message) -> Awaitable[None]:
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], *headers]
            note(message["status"])
        return send(message)

    return sending


def _counted(receive: Receive, limit: int) -> Receive:
    """Bounds a body that doesn't say how long it is."""
    seen = 0

    async def receiving() -> HTTPReceiveMessage:
        nonlocal seen
        message: HTTPReceiveMessage = await receive()  # type: ignore[assignment]
        if message["type"] == "http.request":
            seen += len(message["body"])
            if seen > limit:
                raise _too_large(limit)
        return message

    return receiving
