"""Who is asking, so that the queue can be fair."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from litestar.types import Scope

__all__ = ["client_key"]


def client_key(scope: Scope) -> str:
    """The same for requests of one program: address, key and user agent. Means nothing outside this process (the key
    is only hashed, with a salt of this process), so it may be logged."""
    address: Any = scope.get("client")
    host = address[0] if address else "local"
    headers: Mapping[bytes, bytes] = dict(scope["headers"])
    marks = headers.get(b"authorization", b""), headers.get(b"x-api-key", b""), headers.get(b"user-agent", b"")
    return f"{host} {hash(marks) & 0xFFFFFFFF:08x}"
