"""HEAD and POST /api/blobs/{digest}: files on their way into the store, written as they come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from litestar.types import Receive, Scope, Send

from oprel.dialects.exchange import Head
from oprel.dialects.ollama.errors import OllamaErrors, refusal
from oprel.errors import InvalidRequestError, OprelError
from oprel.sources.threads import in_thread
from oprel.store import BlobWriter, Digest, Store

__all__ = ["BlobQuestion", "BlobUpload"]

# What is collected before it is written: a thread for each piece that the network brings would cost more than writing.
_WRITE_BYTES = 1 << 20
# Left free for what else runs on the machine, and looked at again after so many bytes.
RESERVE_BYTES = 32 << 20
_CHECK_BYTES = 64 << 20


class _Gone(Exception):
    """The client left: nobody is there to be answered."""


class _BlobAnswer:
    """An ASGI app for one request."""

    def __init__(self, store: Store, digest: str) -> None:
        self._store = store
        self._digest = digest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        errors = OllamaErrors()
        try:
            head, body = await self._answer(scope, receive), b""
        except _Gone:
            return
        except OprelError as error:
            head, body = errors.whole(error)
        await send({"type": "http.response.start", "status": head.status, "headers": list(head.headers)})
        await send({"type": "http.response.body", "body": body, "more_body": False})

    async def _answer(self, scope: Scope, receive: Receive) -> Head:
        raise NotImplementedError

    def _parsed(self) -> Digest:
        try:
            return Digest.parse(self._digest)
        except InvalidRequestError:
            raise refusal("invalid_digest") from None


class BlobQuestion(_BlobAnswer):
    """Whether it is here."""

    async def _answer(self, scope: Scope, receive: Receive) -> Head:
        digest = self._parsed()
        if not await asyncio.to_thread(self._store.refresh_blob, digest):
            raise refusal("no_such_blob", digest=str(digest))
        return Head(200, ((b"content-length", b"0"),))


class BlobUpload(_BlobAnswer):
    """Takes the body to disk; visible when it is whole and has the digest. What has another one isn't kept."""

    async def _answer(self, scope: Scope, receive: Receive) -> Head:
        digest = self._parsed()
        if await asyncio.to_thread(self._store.refresh_blob, digest):
            return await _not_needed(scope, receive)
        await self._take(digest, receive, _length(scope))
        return Head(201, ((b"content-length", b"0"),))

    async def _take(self, digest: Digest, receive: Receive, length: int | None) -> None:
        writer = await asyncio.to_thread(self._open, length)
        try:
            await self._write_body(writer, receive, is_length_known=length is not None)
            await in_thread(lambda stop: _publish(writer, digest))
        finally:
            writer.discard()

    def _open(self, length: int | None) -> BlobWriter:
        return self._store.new_blob(size_bytes=(length or 0) + RESERVE_BYTES)

    async def _write_body(self, writer: BlobWriter, receive: Receive, *, is_length_known: bool) -> None:
        pieces: list[bytes] = []
        held = unchecked = 0
        async for data in _body(receive):
            pieces.append(data)
            held += len(data)
            if held < _WRITE_BYTES:
                continue
            unchecked += held
            if unchecked >= _CHECK_BYTES and not is_length_known:
                await asyncio.to_thread(self._store.require_space, RESERVE_BYTES)
                unchecked = 0
            await _write(writer, pieces)
            pieces, held = [], 0
        await _write(writer, pieces)


async def _write(writer: BlobWriter, pieces: list[bytes]) -> None:
    # Waits for the thread when this request is cancelled: the file is closed after it.
    await in_thread(lambda stop: writer.write(b"".join(pieces)))


def _publish(writer: BlobWriter, digest: Digest) -> None:
    found = writer.finish()
    if found != digest:
        raise refusal("digest_mismatch", expected=str(digest), got=str(found))
    writer.publish()


async def _not_needed(scope: Scope, receive: Receive) -> Head:
    """A client that waits to be told to go on is told not to; one that sends already is let finish, since many read
    no answer before that."""
    headers = dict(scope["headers"])
    if headers.get(b"expect", b"").lower() == b"100-continue":
        return Head(200, ((b"content-length", b"0"), (b"connection", b"close")))
    async for _ in _body(receive):
        pass
    return Head(200, ((b"content-length", b"0"),))


async def _body(receive: Receive) -> AsyncIterator[bytes]:
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _Gone
        if message["type"] == "http.request":
            if data := message.get("body", b""):
                yield data
            if not message.get("more_body"):
                return


def _length(scope: Scope) -> int | None:
    value = dict(scope["headers"]).get(b"content-length")
    return int(value) if value is not None and value.isdigit() else None
