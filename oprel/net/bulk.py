"""Large bodies at the speed of the disk: one connection that a thread reads with large reads.

The loop checks where each request goes (`OutsideClient.checked`) and a thread does what was checked: connect to that
address, ask, read into the caller's buffer. An event loop that hands over 64 KiB at a time is four times slower.
Behind a proxy httpx makes the connection instead: slower, but it knows all kinds of proxies.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import threading
from collections.abc import Mapping
from typing import Protocol

import httpx

from oprel.errors import SourceError
from oprel.net.addresses import default_port, origin_of, shown_url
from oprel.net.outside import CONNECT_LIMIT_S, STALL_LIMIT_S, Hop, TransientSourceError, unreachable
from oprel.net.telling import telling

__all__ = ["BulkAnswer", "BulkConnection"]


class BulkAnswer(Protocol):
    """Status and headers of one answer; its body comes by `read_into`, blocking. Names of headers are lower-case."""

    url: str
    status: int
    headers: Mapping[str, str]

    def read_into(self, buffer: memoryview) -> int:
        """How many bytes came; 0 is the end. Raises TransientSourceError when it stalls or is cut."""
        ...


class BulkConnection:
    """One connection at a time, kept between requests to one origin. Methods block; `abort` may come from any thread
    and makes them end soon."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._is_aborted = False
        self._origin = ""
        self._socket: socket.socket | None = None
        self._direct: http.client.HTTPConnection | None = None
        self._proxied: httpx.Client | None = None
        self._left: httpx.Response | http.client.HTTPResponse | None = None

    def is_open_to(self, url: str) -> bool:
        """Whether the next request there needs no new connection, and so no new look at the address."""
        is_free = isinstance(self._left, http.client.HTTPResponse) and self._left.isclosed()
        is_up = self._direct is not None and self._direct.sock is not None
        return is_up and is_free and self._origin == origin_of(url)

    def get(self, hop: Hop) -> BulkAnswer:
        """One GET, answered up to its headers. Raises SourceError, TransientSourceError."""
        with telling(hop.url, _problem_of):
            if hop.proxy is not None:
                return self._by_proxy(hop)
            if not self.is_open_to(hop.url):
                self._connect(hop)
            return self._ask(hop)

    def close(self) -> None:
        if self._left is not None:
            self._left.close()
        if self._direct is not None:
            self._direct.close()
        if self._proxied is not None:
            self._proxied.close()
        with self._guard:
            self._left = self._direct = self._proxied = self._socket = None

    def abort(self) -> None:
        """Whoever waits for the connection is told that it broke."""
        with self._guard:
            self._is_aborted = True
            if self._socket is not None:
                with contextlib.suppress(OSError):
                    self._socket.shutdown(socket.SHUT_RDWR)

    def _connect(self, hop: Hop) -> None:
        self.close()
        if hop.address is None:
            raise TransientSourceError(f"The connection to {shown_url(hop.url)} was closed.")
        url = httpx.URL(hop.url)
        port = default_port(url)
        try:
            plain = socket.create_connection((hop.address, port), CONNECT_LIMIT_S)
        except OSError as problem:
            raise unreachable(shown_url(hop.url)) from problem
        self._keep(plain)
        try:
            wrapped = plain if hop.tls is None else hop.tls.wrap_socket(plain, server_hostname=url.host)
        except BaseException:
            plain.close()
            raise
        wrapped.settimeout(STALL_LIMIT_S)
        self._keep(wrapped)
        self._direct = http.client.HTTPConnection(url.host, port)
        self._direct.sock = wrapped
        self._direct.auto_open = 0  # by itself it would connect to the name, whose address nobody checked
        self._origin = origin_of(hop.url)

    def _keep(self, made: socket.socket) -> None:
        with self._guard:
            if self._is_aborted:
                made.close()
                raise TransientSourceError("The download was given up.")
            self._socket = made

    def _ask(self, hop: Hop) -> BulkAnswer:
        direct = self._direct
        if direct is None:
            raise TransientSourceError("The connection is closed.")
        target = httpx.URL(hop.url).raw_path.decode("ascii")
        direct.putrequest("GET", target, skip_host=True, skip_accept_encoding=True)
        for name, value in hop.headers.items():
            direct.putheader(name, value)
        direct.endheaders()
        self._left = direct.getresponse()
        if self._left.length == 0:
            self._left.read()  # nothing, but now it knows that the connection is free
        return _Direct(self._left, hop.url)

    def _by_proxy(self, hop: Hop) -> BulkAnswer:
        if self._proxied is None:
            timeout = httpx.Timeout(STALL_LIMIT_S, connect=CONNECT_LIMIT_S)
            verify = True if hop.tls is None else hop.tls
            self._proxied = httpx.Client(proxy=hop.proxy, verify=verify, trust_env=False, timeout=timeout)
        elif self._left is not None:
            self._left.close()
        request = self._proxied.build_request("GET", hop.url, headers=hop.headers)
        answer = self._proxied.send(request, stream=True, follow_redirects=False)
        self._left = answer
        return _Proxied(answer, hop.url)


class _Direct:
    def __init__(self, response: http.client.HTTPResponse, url: str) -> None:
        self._response = response
        self.url = url
        self.status = response.status
        self.headers: Mapping[str, str] = {name.lower(): value for name, value in response.getheaders()}

    def read_into(self, buffer: memoryview) -> int:
        with telling(self.url, _problem_of):
            return self._response.readinto(buffer)


class _Proxied:
    def __init__(self, response: httpx.Response, url: str) -> None:
        self._chunks = response.iter_raw()
        self.url = url
        self._rest = memoryview(b"")
        self.status = response.status_code
        self.headers: Mapping[str, str] = response.headers

    def read_into(self, buffer: memoryview) -> int:
        with telling(self.url, _problem_of):
            while not self._rest:
                chunk = next(self._chunks, None)
                if chunk is None:
                    return 0
                self._rest = memoryview(chunk)
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count


def _problem_of(error: BaseException, where: str) -> SourceError | None:
    """Of what sockets, http.client and httpx raise."""
    match error:
        case ssl.SSLCertVerificationError():
            return SourceError(
                f"The certificate of {where} isn't trusted here; if a proxy issues it, name its certificates."
            )
        case httpx.ConnectError() | httpx.ConnectTimeout():
            return unreachable(where)
        case TimeoutError() | httpx.TimeoutException():
            return TransientSourceError(f"{where} stopped answering for {STALL_LIMIT_S:.0f} s.")
        case OSError() | http.client.HTTPException() | httpx.HTTPError() | ValueError():
            return TransientSourceError(f"{where} broke off the answer.")
    return None
