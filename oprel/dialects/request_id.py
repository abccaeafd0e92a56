"""The id of the request that is being answered: what its header, the log's lines and some dialects' bodies say."""

from __future__ import annotations

from contextvars import ContextVar

__all__ = ["UNKNOWN", "request_id"]

UNKNOWN = "-"

request_id: ContextVar[str] = ContextVar("oprel_request_id", default=UNKNOWN)
