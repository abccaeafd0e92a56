"""Live traffic held against the documents: `oprel serve --strict`.

Every answer is sent as it is, and looked at when it is over: one that isn't what its document says is told in the log,
with the driver of the engine that it came from.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter
from collections.abc import Iterator
from urllib.parse import urlsplit

from litestar.enums import ScopeType
from litestar.types import ASGIApp, Message, Receive, Scope, Send
from msgspec import Struct

from oprel.server.choosing import ANTHROPIC, asks_anthropic, names_version
from oprel.server.documents import documents
from oprel.testing import specs

__all__ = ["Observed", "Strict", "departures", "document_of"]

_log = logging.getLogger("oprel.strict")

_LIMIT_BYTES = 8 << 20
_TEXT_LIMIT = 400


class Observed(Struct):
    """An answer. `is_whole`: it came to its end, which it doesn't where a client left. `document`: the one that
    describes it, where the path alone doesn't say."""

    method: str
    path: str
    status: int = 0
    content_type: str = ""
    driver: str = ""
    body: bytes = b""
    is_whole: bool = False
    document: str = ""


def document_of(path: str) -> str:
    """The document that describes `path`: the one that names it, else the one of its dialect."""
    known = urlsplit(path).path
    if asks_anthropic(known):
        return "anthropic"
    for name in documents():
        if specs.knows(name, known):
            return name
    return "openai" if known.startswith("/v1/") else "ollama" if known.startswith("/api/") else "oprel"


def departures(seen: Observed) -> Iterator[str]:
    """A sentence for each thing in which the answer isn't what its document says."""
    document = seen.document or document_of(seen.path)
    if seen.status in (404, 405) and not specs.knows(document, urlsplit(seen.path).path):
        return  # there is no such path, and it is said
    for event in _events(seen):
        try:
            specs.validate_event(document, seen.path, seen.method, json.loads(event))
        except (specs.SpecError, ValueError) as problem:
            yield str(problem)
    if seen.is_whole and seen.content_type.startswith("application/json"):
        try:
            specs.validate(document, seen.path, seen.method, seen.status, json.loads(seen.body))
        except (specs.SpecError, ValueError) as problem:
            yield str(problem)


def _events(seen: Observed) -> Iterator[str]:
    """The data of whole events of a stream; comments and the mark of the end are none."""
    if seen.content_type.startswith("text/event-stream"):
        for block in seen.body.decode("utf-8", "replace").split("\n\n")[:-1]:
            data = [line.removeprefix("data:").removeprefix(" ") for line in block.split("\n") if line[:5] == "data:"]
            if data and data != ["[DONE]"]:
                yield "\n".join(data)
    elif seen.content_type.startswith("application/x-ndjson"):
        yield from seen.body.decode("utf-8", "replace").split("\n")[:-1]


class Strict:
    """An ASGI app around another. `counts` are the departures by driver."""

    def __init__(self, app: ASGIApp) -> None:
        self.counts: Counter[str] = Counter()
        self._app = app
        self._told: set[str] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != ScopeType.HTTP:
            await self._app(scope, receive, send)
            return
        path = scope["path"]
        is_anthropic = asks_anthropic(path) or names_version(scope)
        seen = Observed(scope["method"], path.removeprefix(ANTHROPIC), document="anthropic" if is_anthropic else "")
        try:
            await self._app(scope, receive, _observing(seen, send))
        finally:
            if seen.status and len(seen.body) <= _LIMIT_BYTES:
                await asyncio.to_thread(self._judge, seen)

    def _judge(self, seen: Observed) -> None:
        for departure in departures(seen):
            driver = seen.driver or "none"
            self.counts[driver] += 1
            if departure not in self._told:  # an engine that departs does so in every event
                self._told.add(departure)
                _log.warning("not as documented (driver %s): %s", driver, departure[:_TEXT_LIMIT])


def _observing(seen: Observed, send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            seen.status = message["status"]
            headers = {bytes(name).lower(): bytes(value) for name, value in message["headers"]}
            seen.content_type = headers.get(b"content-type", b"").decode("latin-1")
            seen.driver = headers.get(b"x-oprel-driver", b"").decode("latin-1")
        elif message["type"] == "http.response.body":
            if len(seen.body) <= _LIMIT_BYTES:
                seen.body += message["body"]
            seen.is_whole = not message["more_body"]
        await send(message)

    return sending
