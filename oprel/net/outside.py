"""The HTTP client for everything that leaves this machine: bounded in size, time and reach.

* Redirects are followed by hand, five at most, and every hop is checked like the first.
* A name is resolved once, all its addresses are checked, and the connection goes to the address that was checked.
  Addresses inside (loopback, private, link-local, …) and plain http are refused, except for origins that the user's
  own configuration names.
* Bodies come unpacked (`Accept-Encoding: identity`), are counted, and end at a limit.
* Credentials belong to an origin (scheme, host, port) and are sent to no other; errors name hosts and paths only.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from base64 import b64encode
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from urllib.request import getproxies, proxy_bypass

import certifi
import httpx
from msgspec import Struct

from oprel.errors import SourceError

__all__ = [
    "Credentials",
    "NotThereError",
    "OutsideClient",
    "OutsideResponse",
    "RefusedError",
    "SmallBody",
    "TransientSourceError",
    "host_of",
    "origin_of",
    "require_ok",
    "shown_url",
]

MAX_REDIRECTS = 5
CONNECT_LIMIT_S = 15.0
STALL_LIMIT_S = 30.0
SMALL_BODY_LIMIT_S = 60.0
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_PORTS = {"http": 80, "https": 443}
_INSIDE = tuple(
    ipaddress.ip_network(network)
    for network in (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
        "192.168.0.0/16", "198.18.0.0/15", "224.0.0.0/4", "240.0.0.0/4",
        "::/128", "::1/128", "64:ff9b:1::/48", "2001::/32", "fc00::/7", "fe80::/10", "fec0::/10", "ff00::/8",
    )
)  # fmt: skip
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")

Credentials = Callable[[str, str], tuple[str, str] | None]
"""From (origin, host) to a user and a password, or None."""

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class TransientSourceError(SourceError):
    """Another try may succeed. `retry_after_s` is what the server asked for; `status` what it answered, if it did."""

    def __init__(self, message: str, *, retry_after_s: float | None = None, answered: int | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.answered = answered


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
        with _told(self.url):
            async for chunk in self._response.aiter_raw():
                done += len(chunk)
                if done > max_bytes:
                    raise SourceError(f"{shown_url(self.url)} sends more than the {max_bytes} bytes that it may.")
                yield chunk


class OutsideClient:
    """`trusted` are the origins that configuration names: they may be inside, and may be plain http. So may every port
    of `trusted_hosts`. `bearers` are tokens by origin."""

    def __init__(
        self,
        *,
        trusted: Iterable[str] = (),
        trusted_hosts: Iterable[str] = (),
        bearers: Mapping[str, str] | None = None,
        ca_file: Path | None = None,
        proxy: str | None = None,
        credentials: Credentials | None = None,
        user_agent: str = "oprel",
    ) -> None:
        self._trusted = frozenset(trusted)
        self._trusted_hosts = frozenset(trusted_hosts)
        self._bearers = dict(bearers or {})
        self._ca_file = ca_file
        self._proxy = proxy
        self._credentials = credentials
        self._user_agent = user_agent
        self._clients: dict[str | None, httpx.AsyncClient] = {}

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
    async def stream(self, url: str, *, headers: Mapping[str, str] | None = None) -> AsyncIterator[OutsideResponse]:
        """GET, with redirects followed; the status is the caller's to look at. Raises SourceError,
        TransientSourceError."""
        target = _parsed(url)
        for _ in range(MAX_REDIRECTS + 1):
            request, client = await self._request(target, headers or {})
            with _told(str(target)):
                response = await client.send(request, stream=True)
            try:
                location = response.headers.get("location")
                if response.status_code not in _REDIRECTS or location is None:
                    yield OutsideResponse(response, str(target))
                    return
            finally:
                await response.aclose()
            target = self._next(target, location)
        raise SourceError(f"{shown_url(url)} redirects more than {MAX_REDIRECTS} times.")

    def _next(self, current: httpx.URL, location: str) -> httpx.URL:
        try:
            target = current.join(location)
        except (httpx.InvalidURL, ValueError) as problem:
            raise SourceError(f"{shown_url(str(current))} redirects to something that isn't a URL.") from problem
        return _parsed(str(target))

    async def _request(self, url: httpx.URL, headers: Mapping[str, str]) -> tuple[httpx.Request, httpx.AsyncClient]:
        is_trusted = origin_of(str(url)) in self._trusted or url.host in self._trusted_hosts
        if url.scheme == "http" and not is_trusted:
            raise SourceError(f"{shown_url(str(url))} isn't https, and no setting allows that.")
        proxy = self._proxy_for(url)
        if proxy is None:
            address = await self._resolved(url, is_trusted=is_trusted)
        else:  # the proxy resolves the name; what can be seen here is checked here
            _check_literal(url, is_trusted=is_trusted)
            address = None
        client = self._client(proxy)
        request = client.build_request(
            "GET",
            url if address is None else url.copy_with(host=str(address)),
            headers={
                **headers,
                "Host": url.netloc.decode("ascii"),
                "Accept-Encoding": "identity",
                "User-Agent": self._user_agent,
                **self._authorization(url),
            },
        )
        request.extensions["sni_hostname"] = url.host
        return request, client

    def _authorization(self, url: httpx.URL) -> dict[str, str]:
        if (token := self._bearers.get(origin_of(str(url)))) is not None:
            return {"Authorization": f"Bearer {token}"}
        if self._credentials is None:
            return {}
        found = self._credentials(origin_of(str(url)), url.host)
        if found is None:
            return {}
        return {"Authorization": "Basic " + b64encode(":".join(found).encode()).decode()}

    async def _resolved(self, url: httpx.URL, *, is_trusted: bool) -> Address:
        port = url.port or _PORTS[url.scheme]
        try:
            async with asyncio.timeout(CONNECT_LIMIT_S):
                found = await asyncio.get_running_loop().getaddrinfo(url.host, port, type=socket.SOCK_STREAM)
        except TimeoutError:
            raise TransientSourceError(f"The name {url.host!r} couldn't be resolved in time.") from None
        except (OSError, UnicodeError) as problem:
            raise TransientSourceError(f"The host {url.host!r} can't be found; is there a network?") from problem
        addresses = [ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found]
        if not addresses:
            raise TransientSourceError(f"The host {url.host!r} has no address.")
        if not is_trusted:
            for address in addresses:
                _check_outside(url, address)
        return addresses[0]

    def _proxy_for(self, url: httpx.URL) -> str | None:
        if self._proxy is not None:
            return self._proxy
        proxies = getproxies()
        proxy = proxies.get(url.scheme) or proxies.get("all")
        return None if proxy is None or proxy_bypass(url.host) else proxy

    def _client(self, proxy: str | None) -> httpx.AsyncClient:
        if proxy not in self._clients:
            self._clients[proxy] = httpx.AsyncClient(
                verify=_tls(self._ca_file),
                proxy=proxy,
                trust_env=False,
                follow_redirects=False,
                timeout=httpx.Timeout(STALL_LIMIT_S, connect=CONNECT_LIMIT_S),
                # A connection that was checked for one name isn't used for another name at the same address.
                limits=httpx.Limits(max_keepalive_connections=0),
            )
        return self._clients[proxy]


def require_ok(response: OutsideResponse, *, accept: frozenset[int] = frozenset({200})) -> None:
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


def origin_of(url: str) -> str:
    """`scheme://host:port`, lowercase, with the port always there; empty for what isn't http or https."""
    parsed = httpx.URL(url)
    if parsed.scheme not in _PORTS or not parsed.host:
        return ""
    host = f"[{parsed.host}]" if ":" in parsed.host else parsed.host
    return f"{parsed.scheme}://{host}:{parsed.port or _PORTS[parsed.scheme]}"


def host_of(url: str) -> str:
    """Lowercase, without port; empty for what isn't http or https."""
    return httpx.URL(url).host if origin_of(url) else ""


def shown_url(url: str) -> str:
    """Without what could be a secret: user, password, query, fragment."""
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, ValueError):
        return "the address"
    port = f":{parsed.port}" if parsed.port else ""
    return f"{parsed.scheme}://{parsed.host}{port}{parsed.path[:200]}"


def _parsed(url: str) -> httpx.URL:
    """The client's own URL object is what gets checked, so that nothing is read in two ways."""
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, ValueError) as problem:
        raise SourceError("An address that isn't a URL can't be fetched.") from problem
    if parsed.scheme not in _PORTS or not parsed.host:
        raise SourceError(f"{shown_url(url)} isn't an http or https address.")
    if parsed.userinfo:
        raise SourceError(f"{shown_url(url)} carries a user name in its address, which isn't followed.")
    return parsed


def _check_literal(url: httpx.URL, *, is_trusted: bool) -> None:
    if is_trusted:
        return
    if url.host == "localhost" or url.host.endswith(".localhost"):
        raise _inside(url)
    try:
        address = ipaddress.ip_address(url.host)
    except ValueError:
        return
    _check_outside(url, address)


def _check_outside(url: httpx.URL, address: Address) -> None:
    plain = _unwrapped(address)
    if any(plain in network for network in _INSIDE if network.version == plain.version):
        raise _inside(url)


def _unwrapped(address: Address) -> Address:
    """The IPv4 address inside an IPv6 one, where there is one."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or address


def _inside(url: httpx.URL) -> SourceError:
    return SourceError(
        f"{shown_url(str(url))} leads to an address inside this machine or network, which isn't fetched from "
        "unless the configuration names it (the package index's, or HF_ENDPOINT)."
    )


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


class _told:
    """Turn what httpx raises into ours."""

    def __init__(self, url: str) -> None:
        self._url = url

    def __enter__(self) -> None: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        where = shown_url(self._url)
        if isinstance(error, httpx.TimeoutException):
            raise TransientSourceError(f"{where} stopped answering for {STALL_LIMIT_S:.0f} s.") from error
        if isinstance(error, httpx.ConnectError) and "CERTIFICATE" in str(error).upper():
            raise SourceError(
                f"The certificate of {where} isn't trusted here; if a proxy issues it, set pip's option 'cert'."
            ) from error
        if isinstance(error, httpx.ConnectError):
            raise TransientSourceError(f"{where} can't be reached; is there a network?") from error
        if isinstance(error, httpx.TransportError):
            raise TransientSourceError(f"{where} broke off the answer.") from error
        if isinstance(error, (httpx.HTTPError, httpx.InvalidURL)):
            raise SourceError(f"{where} gives an answer that can't be read.") from error
