"""What registries answer: read with limits, and of errors the protocol's own words only."""

from __future__ import annotations

import msgspec
from msgspec import Struct

from oprel.net.outside import OutsideResponse

__all__ = ["error_text", "read_body"]


async def read_body(response: OutsideResponse, limit_bytes: int, *, is_cut: bool = False) -> bytes:
    """Raises SourceError for a longer one, unless `is_cut`: then what comes first is enough."""
    data = bytearray()
    async for chunk in response.chunks(max_bytes=1 << 62 if is_cut else limit_bytes):
        data += chunk
        if is_cut and len(data) >= limit_bytes:
            break
    return bytes(data[:limit_bytes])


class _Problem(Struct):
    code: str = ""
    message: str = ""


class _Problems(Struct):
    errors: list[_Problem] = []


def error_text(data: bytes) -> str:
    """The protocol's own errors in words; nothing else is passed on, since who answers may not be a registry at all
    but something that only this machine can reach."""
    try:
        problems = msgspec.json.decode(data, type=_Problems).errors
    except (msgspec.MsgspecError, RecursionError, ValueError):
        problems = []
    words = "; ".join(" ".join((each.message or each.code).split())[:300] for each in problems[:5])
    return words if words.isprintable() and words else "the registry gives no reason"
