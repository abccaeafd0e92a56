"""HTTP as it goes over the wire, with nothing added: any Host, none, several headers of a name, half a request."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

__all__ = ["RawAnswer", "ask", "connect", "read_to_end"]


@dataclass(frozen=True)
class RawAnswer:
    """Header names in lower case; of several with one name, the last."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def ask(
    port: int,
    path: str = "/",
    method: str = "GET",
    *,
    headers: Iterable[tuple[str, str]] = (),
    host: str | None = "127.0.0.1",
    body: bytes | Any = None,
    limit_s: float = 20.0,
) -> RawAnswer:
    """`host` None: no Host header. A body that isn't bytes is sent as JSON."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=limit_s)
    try:
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        if host is not None:
            connection.putheader("Host", host)
        for name, value in headers:
            connection.putheader(name, value)
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        if data is not None:
            connection.putheader("Content-Length", str(len(data)))
        connection.endheaders(data)
        response = connection.getresponse()
        found = {name.lower(): value for name, value in response.getheaders()}
        return RawAnswer(response.status, found, response.read())
    finally:
        connection.close()


def connect(port: int, *, limit_s: float = 20.0) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=limit_s)


def read_to_end(connection: socket.socket) -> bytes:
    """All that comes until the other side closes; b"" where it resets."""
    parts = []
    try:
        while part := connection.recv(65536):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)
