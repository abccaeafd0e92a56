"""A server of a test's own process."""

from __future__ import annotations

import sys
from http.server import ThreadingHTTPServer
from typing import Any

__all__ = ["LocalServer"]


class LocalServer(ThreadingHTTPServer):
    """Clients may hang up whenever they like: no trace of it goes to stderr, which belongs to what is tested."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)
