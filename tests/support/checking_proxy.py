"""A proxy between a client and a server that keeps what passed, so that it can be held against the documents.

It knows nothing of clients: the same one stands before Python's, Node's and curl's.
"""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from oprel.testing.strict import Observed, departures, document_of

__all__ = ["CheckingProxy", "Exchange", "checking_proxy"]

_LIMIT_S = 120
_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "host"}


@dataclass
class Exchange:
    """`is_whole`: the answer came to its end (a client may leave before). `is_anthropic`: the client named a version of
    Anthropic's API."""

    method: str
    path: str
    request: bytes
    status: int = 0
    content_type: str = ""
    body: bytes = b""
    is_whole: bool = False
    is_anthropic: bool = False

    def check(self) -> None:
        """Fails where the answer, or an event of it, isn't as its document says."""
        seen = Observed(self.method, self.path, self.status, self.content_type, body=self.body, is_whole=self.is_whole)
        seen.document = "anthropic" if self.is_anthropic else document_of(self.path)
        assert list(departures(seen)) == []


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that leave in the middle are part of the tests."""


class CheckingProxy:
    def __init__(self, server_url: str) -> None:
        self.exchanges: list[Exchange] = []
        parts = urlsplit(server_url)
        upstream = (parts.hostname or "", parts.port or 80)
        self._http = _Server(("127.0.0.1", 0), _handler(upstream, self.exchanges))
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,), name="checking-proxy")
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def check(self) -> None:
        """Checks all that passed since the last check; fails where nothing did."""
        passed, self.exchanges[:] = list(self.exchanges), []
        assert passed, "no request passed the proxy"
        for exchange in passed:
            exchange.check()

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._http.shutdown()
        self._thread.join(_LIMIT_S)
        self._http.server_close()


@contextmanager
def checking_proxy(server_url: str) -> Iterator[CheckingProxy]:
    proxy = CheckingProxy(server_url)
    proxy.start()
    try:
        yield proxy
    finally:
        proxy.stop()


def _handler(upstream: tuple[str, int], exchanges: list[Exchange]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log_message(self, format: str, *args: Any) -> None:
            pass

        def _pass_on(self) -> None:
            content = self.rfile.read(int(self.headers.get("content-length") or 0))
            exchange = Exchange(self.command, self.path, content)
            exchange.is_anthropic = "anthropic-version" in self.headers
            exchanges.append(exchange)
            connection = http.client.HTTPConnection(*upstream, timeout=_LIMIT_S)
            try:
                headers = {k: v for k, v in self.headers.items() if k.lower() not in _HOP_BY_HOP}
                connection.request(self.command, self.path, content or None, headers)
                self._answer(connection.getresponse(), exchange)
            except OSError:
                self.close_connection = True
            finally:
                connection.close()

        def _answer(self, response: http.client.HTTPResponse, exchange: Exchange) -> None:
            exchange.status = response.status
            exchange.content_type = response.getheader("content-type") or ""
            self.send_response_only(response.status, response.reason)
            for name, value in response.getheaders():
                if name.lower() not in _HOP_BY_HOP:
                    self.send_header(name, value)
            is_chunked = response.getheader("content-length") is None
            if is_chunked:
                self.send_header("transfer-encoding", "chunked")
            self.end_headers()
            while piece := response.read1(65536):
                exchange.body += piece
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece) if is_chunked else piece)
            exchange.is_whole = True
            if is_chunked:
                self.wfile.write(b"0\r\n\r\n")

        do_GET = do_POST = do_HEAD = do_DELETE = _pass_on

        def finish(self) -> None:
            with suppress(OSError):  # the client left in the middle
                super().finish()

    return Handler
