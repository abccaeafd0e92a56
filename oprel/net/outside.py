"""The HTTP client for everything that leaves this machine: bounded in size, time and reach.

* Redirects are followed by hand, five at most, and every hop is checked like the first.
* A name is resolved once, all its addresses are checked, and the connection goes to the address that was checked.
  Addresses inside (loopback, private, link-local, …) and plain http are refused, except for origins that the user's
  own configuration names.
* Bodies come unpacked (`Accept-Encoding: identity`), are counted, and end at a limit.
* Credentials belong to an origin (scheme, host, port) and are sent to no other: after a redirect to another origin only
  headers that say what is wanted (`Accept`, `Range`, …) go along. Errors name hosts and paths only.
* `checked` gives one hop's way to those who make the connection themselves (`oprel.net.bulk`).
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from base64 import b64encode
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Protocol
from urllib.request import getproxies, proxy_bypass

import certifi
import httpx
from msgspec import Struct

from oprel.errors import SourceError
from oprel.net.addresses import (
    Address,
    check_address,
    check_literal,
    default_port,
    origin_of,
    parse_url,
    shown_url,
)
from oprel.net.telling import telling

__all__ = [
    "Credentials",
    "Hop",
    "NotThereError",
    "OutsideClient",
    "OutsideResponse",
    "RefusedError",
    "SmallBody",
    "TransientSourceError",
    "UnreachableError",
    "is_redirect",
    "next_url",
    "origin_of",
    "portable",
    "require_ok",
    "shown_url",
    "unreachable",
]

MAX_REDIRECTS = 5
CONNECT_LIMIT_S = 15.0
STALL_LIMIT_S = 30.0
SMALL_BODY_LIMIT_S = 60.0
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_PORTABLE = frozenset({"accept", "range", "if-range", "if-none-match"})
Credentials = Callable[[str, str], tuple[str, str] | None]
"""From (origin, host) to a user and a password, or None."""


class TransientSourceError(SourceError):
    """Another try may succeed. `retry_after_s` is what the server asked for; `answered` its status, if it did."""

    def __init__(self, message: str, *, retry_after_s: float | None = None, answered: int | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.answered = answered


class UnreachableError(TransientSourceError):
    """No connection came about: no such host, nobody listens there, no way to it."""


class NotThereError(SourceError):
    """Status 404 or 410."""


class RefusedError(SourceError):
    """Status 401 or 403, in `answered`."""

    def __init__(self, message: str, *, answered: int) -> None:
        super().__init__(message)
        self.answered = answered


class SmallBody(Struct, frozen=True):
    """`url` is where it came from in the end."""

    data: bytes
    content_type: str
    url: str


class Hop(Struct, frozen=True):
    """The checked way of one request. `address` is what to connect to; None where a proxy resolves the name. `tls` is
    whom to trust; None for plain http that no proxy sees."""

    url: str
    address: str | None
    proxy: str | None
    tls: ssl.SSLContext | None
    headers: dict[str, str]


class Answered(Protocol):
    """What `require_ok` looks at."""

    @property
    def url(self) -> str: ...
    @property
    def status(self) -> int: ...
    @property
    def headers(self) -> Mapping[str, str]: ...


class OutsideResponse:
    """An answer whose body hasn't been read; use it inside its `async with`."""

    def __init__(self, response: httpx.Response, url: str) -> None:
        self._response = response
        self.url = url
        self.status = response.status_code
        self.headers: Mapping[str, str] = response.headers

    @property
    def content_length(self) -> int | None:
        text = self.headers.get("content-length", "")
        return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None

    async def chunks(self, *, max_bytes: int) -> AsyncIterator[bytes]:
        """The body, refused past `max_bytes`. Raises TransientSourceError when it stalls or is cut."""
        done = 0
        with telling(self.url, _problem_of):
            async for chunk in self._response.aiter_raw():
                done += len(chunk)
                if done > max_bytes:
                    raise SourceError(f"{shown_url(self.url)} sends more than the {max_bytes} bytes that it may.")
                yield chunk


class OutsideClient:
    """`trusted` are the origins that configuration names: they may be inside, and may be plain http. So may every port
    of `trusted_hosts`."""

    def __init__(
        self,
        *,
        trusted: Iterable[str] = (),
        trusted_hosts: Iterable[str] = (),
        ca_file: Path | None = None,
        proxy: str | None = None,
        credentials: Credentials | None = None,
        user_agent: str = "oprel",
    ) -> None:
        self._trusted = frozenset(trusted)
        self._trusted_hosts = frozenset(trusted_hosts)
        self._ca_file = ca_file
        self._proxy = proxy
        self._credentials = credentials
        self._user_agent = user_agent
        self._clients: dict[tuple[str | None, bool], httpx.AsyncClient] = {}
        self._tls: ssl.SSLContext | None = None

    async def __aenter__(self) -> OutsideClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for client in self._clients.values():
            await client.aclose()
        self._clients.clear()

    async def read(self, url: str, *, max_bytes: int, headers: Mapping[str, str] | None = None) -> SmallBody:
        """A small document, whole. Raises SourceError for any status but 200."""
        try:
            async with asyncio.timeout(SMALL_BODY_LIMIT_S), self.stream(url, headers=headers) as response:
                require_ok(response)
                data = b"".join([chunk async for chunk in response.chunks(max_bytes=max_bytes)])
                return SmallBody(data, response.headers.get("content-type", ""), response.url)
        except TimeoutError:
            raise TransientSourceError(f"{shown_url(url)} took longer than {SMALL_BODY_LIMIT_S:.0f} s.") from None

    @asynccontextmanager
    async def stream(
        self,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        method: str = "GET",
        content: bytes | AsyncIterable[bytes] | None = None,
        follow: bool = True,
    ) -> AsyncIterator[OutsideResponse]:
        """The answer to a request, with redirects followed unless `follow` is False; the status is the caller's to look
        at. A `content` that can be read only once needs `follow=False`. Raises SourceError, TransientSourceError."""
        sent = dict(headers or {})
        for _ in range(MAX_REDIRECTS + 1):
            hop = await self.checked(url, sent)
            with telling(url, _problem_of):
                request, client = self._request(hop, method, content)
                response = await client.send(request, stream=True)
            try:
                answer = OutsideResponse(response, url)
                if not follow or not is_redirect(answer.status, answer.headers):
                    yield answer
                    return
                after = next_url(url, answer.headers["location"])
            finally:
                await response.aclose()
            sent = portable(sent, url, after)
            url = after
        raise SourceError(f"{shown_url(url)} redirects more than {MAX_REDIRECTS} times.")

    async def checked(self, url: str, headers: Mapping[str, str], *, is_connected: bool = False) -> Hop:
        """Look at one address before anything is sent to it; its name isn't resolved again for a connection that is
        open already. Raises SourceError for one that may not be reached."""
        parsed = parse_url(url)
        is_trusted = origin_of(url) in self._trusted or parsed.host in self._trusted_hosts
        if parsed.scheme == "http" and not is_trusted:
            raise SourceError(f"{shown_url(url)} isn't https, and no setting allows that.")
        proxy = self._proxy_for(parsed)
        address = None
        if proxy is None and not is_connected:
            address = str(await self._resolved(parsed, is_trusted=is_trusted))
        elif not is_trusted:  # the proxy resolves the name; what can be seen here is checked here
            check_literal(parsed)
        own = {
            "Host": parsed.netloc.decode("ascii"),
            "Accept-Encoding": "identity",
            "User-Agent": self._user_agent,
        }
        tls = await self._trust() if parsed.scheme == "https" or proxy is not None else None
        return Hop(url, address, proxy, tls, {**self._authorization(parsed), **headers, **own})

    async def _trust(self) -> ssl.SSLContext:
        """Whose certificates are trusted; reading them takes a tenth of a second. Raises SourceError."""
        if self._tls is None:
            self._tls = await asyncio.to_thread(_tls, self._ca_file)
        return self._tls

    def _request(
        self, hop: Hop, method: str, content: bytes | AsyncIterable[bytes] | None
    ) -> tuple[httpx.Request, httpx.AsyncClient]:
        client = self._client(hop.proxy, hop.tls)
        url = httpx.URL(hop.url)
        target = url if hop.address is None else url.copy_with(host=hop.address)
        request = client.build_request(method, target, headers=hop.headers, content=content)
        request.extensions["sni_hostname"] = url.host
        return request, client

    def _authorization(self, url: httpx.URL) -> dict[str, str]:
        if self._credentials is None:
            return {}
        found = self._credentials(origin_of(str(url)), url.host)
        if found is None:
            return {}
        return {"Authorization": "Basic " + b64encode(":".join(found).encode()).decode()}

    async def _resolved(self, url: httpx.URL, *, is_trusted: bool) -> Address:
        port = default_port(url)
        try:
            async with asyncio.timeout(CONNECT_LIMIT_S):
                found = await asyncio.get_running_loop().getaddrinfo(url.host, port, type=socket.SOCK_STREAM)
        except TimeoutError:
            raise UnreachableError(f"The name {url.host!r} couldn't be resolved in time.") from None
        except (OSError, UnicodeError) as problem:
            raise UnreachableError(f"The host {url.host!r} can't be found; is there a network?") from problem
        addresses = [ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found]
        if not addresses:
            raise UnreachableError(f"The host {url.host!r} has no address.")
        if not is_trusted:
            for address in addresses:
                check_address(url, address)
        return addresses[0]

    def _proxy_for(self, url: httpx.URL) -> str | None:
        if self._proxy is not None:
            return self._proxy
        proxies = getproxies()
        proxy = proxies.get(url.scheme) or proxies.get("all")
        return None if proxy is None or proxy_bypass(url.host) else proxy

    def _client(self, proxy: str | None, tls: ssl.SSLContext | None) -> httpx.AsyncClient:
        key = proxy, tls is not None
        if key not in self._clients:
            self._clients[key] = httpx.AsyncClient(
                verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT) if tls is None else tls,  # which trusts nobody
                proxy=proxy,
                trust_env=False,
                follow_redirects=False,
                timeout=httpx.Timeout(STALL_LIMIT_S, connect=CONNECT_LIMIT_S),
                # A connection that was checked for one name isn't used for another name at the same address.
                limits=httpx.Limits(max_keepalive_connections=0),
            )
        return self._clients[key]


def is_redirect(status: int, headers: Mapping[str, str]) -> bool:
    return status in _REDIRECTS and "location" in headers


def next_url(url: str, location: str) -> str:
    """Where a redirect leads. Raises SourceError for what isn't a URL."""
    try:
        return str(httpx.URL(url).join(location))
    except (httpx.InvalidURL, ValueError) as problem:
        raise SourceError(f"{shown_url(url)} redirects to something that isn't a URL.") from problem


def portable(headers: Mapping[str, str], before: str, after: str) -> dict[str, str]:
    """What of a request's headers may go to the address that a redirect leads to."""
    if origin_of(before) == origin_of(after):
        return dict(headers)
    return {name: value for name, value in headers.items() if name.lower() in _PORTABLE}


def require_ok(response: Answered, *, accept: frozenset[int] = frozenset({200})) -> None:
    """Raises SourceError, or TransientSourceError where the server says that it's busy."""
    if response.status in accept:
        return
    where = shown_url(response.url)
    if response.status in (401, 403):
        raise RefusedError(
            f"{where} refuses access (status {response.status}); check the credentials for its host.",
            answered=response.status,
        )
    if response.status in (404, 410):
        raise NotThereError(f"{where} isn't there (status {response.status}).")
    if response.status in (408, 425, 429) or response.status >= 500:
        wait = response.headers.get("retry-after", "")
        seconds = float(wait) if wait.isascii() and wait.isdigit() and len(wait) < 6 else None
        raise TransientSourceError(
            f"{where} answers with status {response.status}.", retry_after_s=seconds, answered=response.status
        )
    raise SourceError(f"{where} answers with status {response.status}.")


def _tls(ca_file: Path | None) -> ssl.SSLContext:
    """The file or folder that was configured, and nothing else; or the system's certificates and certifi's."""
    if ca_file is not None:
        try:
            if ca_file.is_dir():
                return ssl.create_default_context(capath=str(ca_file))
            return ssl.create_default_context(cafile=str(ca_file))
        except (OSError, ssl.SSLError) as problem:
            raise SourceError(f"The certificates in {ca_file} can't be read: {problem}.") from problem
    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())
    return context


def unreachable(where: str) -> UnreachableError:
    return UnreachableError(f"{where} can't be reached; is there a network?")


def _problem_of(error: BaseException, where: str) -> SourceError | None:
    """Of what httpx raises."""
    match error:
        case httpx.ConnectTimeout():
            return UnreachableError(f"{where} can't be reached: nothing answered in {CONNECT_LIMIT_S:.0f} s.")
        case httpx.TimeoutException():
            return TransientSourceError(f"{where} stopped answering for {STALL_LIMIT_S:.0f} s.")
        case httpx.ConnectError() if "CERTIFICATE" in str(error).upper():
            return SourceError(
                f"The certificate of {where} isn't trusted here; if a proxy issues it, set pip's option 'cert'."
            )
        case httpx.ConnectError():
            return unreachable(where)
        case httpx.TransportError():
            return TransientSourceError(f"{where} broke off the answer.")
        case httpx.HTTPError() | httpx.InvalidURL():
            return SourceError(f"{where} gives an answer that can't be read.")
    return None
