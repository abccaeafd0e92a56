"""Calls an ASGI app in this process, without a server or a client library in between."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Reply", "call"]

_LIMIT_S = 30


@dataclass
class Reply:
    """`writes` are the body as it was sent, piece by piece."""

    status: int = 0
    headers: list[tuple[str, str]] = field(default_factory=list)
    writes: list[bytes] = field(default_factory=list)

    @property
    def body(self) -> bytes:
        return b"".join(self.writes)

    def json(self) -> Any:
        return json.loads(self.body)

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key == name), None)

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key == name]

    def events(self) -> list[Any]:
        """The `data:` events of a stream, decoded; "[DONE]" stays text."""
        lines = [line for piece in self.body.decode().split("\n\n") for line in piece.split("\n")]
        texts = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
        return [text if text == "[DONE]" else json.loads(text) for text in texts]


async def call(
    app: Any,
    method: str,
    path: str,
    body: bytes | dict[str, Any] | list[Any] = b"",
    *,
    headers: tuple[tuple[str, str], ...] = (),
    leave_after_writes: int | None = None,
) -> Reply:
    """`leave_after_writes`: the client goes away when it has got so many pieces of the body."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    reply = Reply()
    left = asyncio.Event()
    pending = [{"type": "http.request", "body": content, "more_body": False}]

    async def receive() -> dict[str, Any]:
        if pending:
            return pending.pop(0)
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            reply.status = message["status"]
            reply.headers = [(name.decode(), value.decode()) for name, value in message["headers"]]
        elif message["type"] == "http.response.body":
            if message.get("body"):
                reply.writes.append(message["body"])
            if not message.get("more_body") or len(reply.writes) == leave_after_writes:
                left.set()

    if leave_after_writes == 0:
        left.set()
    path, _, query = path.partition("?")
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [(b"content-length", str(len(content)).encode())] + [(k.encode(), v.encode()) for k, v in headers],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
        "state": {},
    }
    async with asyncio.timeout(_LIMIT_S):
        await app(scope, receive, send)
    return reply
