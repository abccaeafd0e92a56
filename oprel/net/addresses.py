"""Which addresses outside may be reached: one reading of a URL, and the networks that are inside.

The client's own URL object is what gets checked, so that nothing is read in two ways.
"""

from __future__ import annotations

import ipaddress

import httpx

from oprel.errors import SourceError

__all__ = [
    "Address",
    "InsideError",
    "check_address",
    "check_literal",
    "default_port",
    "host_of",
    "origin_of",
    "parse_url",
    "shown_url",
]

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

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class InsideError(SourceError):
    """`origin` is what leads to an address inside."""

    def __init__(self, message: str, *, origin: str) -> None:
        super().__init__(message)
        self.origin = origin


def parse_url(url: str) -> httpx.URL:
    """Raises SourceError for what isn't http or https, or carries a login."""
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, ValueError) as problem:
        raise SourceError("An address that isn't a URL can't be fetched.") from problem
    if parsed.scheme not in _PORTS or not parsed.host:
        raise SourceError(f"{shown_url(url)} isn't an http or https address.")
    if parsed.userinfo:
        raise SourceError(f"{shown_url(url)} carries a user name in its address, which isn't followed.")
    return parsed


def default_port(url: httpx.URL) -> int:
    """The URL's own port, or its scheme's."""
    return url.port or _PORTS[url.scheme]


def origin_of(url: str) -> str:
    """`scheme://host:port`, lowercase, with the port always there; empty for what isn't http or https."""
    parsed = httpx.URL(url)
    if parsed.scheme not in _PORTS or not parsed.host:
        return ""
    host = f"[{parsed.host}]" if ":" in parsed.host else parsed.host
    return f"{parsed.scheme}://{host}:{default_port(parsed)}"


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


def check_literal(url: httpx.URL) -> None:
    """What can be seen of a host without resolving it. Raises SourceError for one that is inside."""
    if url.host == "localhost" or url.host.endswith(".localhost"):
        raise _inside(url)
    try:
        address = ipaddress.ip_address(url.host)
    except ValueError:
        return
    check_address(url, address)


def check_address(url: httpx.URL, address: Address) -> None:
    """Raises SourceError for an address inside; `url` is what led to it."""
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


def _inside(url: httpx.URL) -> InsideError:
    return InsideError(
        f"{shown_url(str(url))} leads to an address inside this machine or network, which isn't fetched from "
        "unless it is configured there or named so.",
        origin=origin_of(str(url)),
    )
