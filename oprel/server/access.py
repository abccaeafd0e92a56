"""Who may talk to this server: the Host header, the Origin of a browser's page, and keys.

The rules for names and origins are Ollama's (`OLLAMA_HOST`, `OLLAMA_ORIGINS`), with two stricter ones: a page of
another site is refused even when its browser sends no Origin, and a server that is open to others without a key goes
on checking the name it is called by, because that name is all that tells a rebound DNS entry from an honest client.
"""

from __future__ import annotations

import hmac
import ipaddress
import re
import socket
from functools import lru_cache
from hashlib import sha256

from msgspec import Struct

from oprel.config import Settings, parse_address

__all__ = ["AccessPolicy", "Keyring", "Verdict", "is_loopback"]

Header = tuple[bytes, bytes]

_DEFAULT_ORIGINS = (
    *(f"{scheme}://{host}" for host in ("localhost", "127.0.0.1", "0.0.0.0") for scheme in ("http", "https")),  # noqa: S104
    *(f"{scheme}://{host}:*" for host in ("localhost", "127.0.0.1", "0.0.0.0") for scheme in ("http", "https")),  # noqa: S104
    *(f"{scheme}://*" for scheme in ("app", "file", "tauri", "vscode-webview", "vscode-file")),
)
_PRIVATE = tuple(
    ipaddress.ip_network(net) for net in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7", "127.0.0.0/8")
)
_STAINLESS = (
    "arch", "async", "custom-poll-interval", "helper-method", "lang", "os", "package-version", "poll-helper",
    "retry-count", "runtime", "runtime-version", "timeout",
)  # fmt: skip
_ALLOWED_HEADERS = ", ".join(
    ["Authorization", "Content-Type", "User-Agent", "Accept", "X-Requested-With", "OpenAI-Beta", "X-Api-Key"]
    + ["Anthropic-Version", "Anthropic-Beta", "Anthropic-Dangerous-Direct-Browser-Access"]
    + [f"x-stainless-{name}" for name in _STAINLESS]
)
_EXPOSED = b"X-Request-Id, Request-Id, X-Oprel-Warning, X-Oprel-Driver, X-Oprel-Device, Retry-After, Server-Timing"
_PREFLIGHT: tuple[Header, ...] = (
    (b"access-control-allow-methods", b"GET,POST,PUT,PATCH,DELETE,HEAD,OPTIONS"),
    (b"access-control-allow-headers", _ALLOWED_HEADERS.encode()),
    (b"access-control-max-age", b"43200"),
)


class Verdict(Struct, frozen=True):
    """`headers` go on every answer to this origin; `preflight` on a preflight's as well. `is_page`: a page asked."""

    allowed: bool
    headers: tuple[Header, ...] = ()
    preflight: tuple[Header, ...] = ()
    is_page: bool = False


_NO = Verdict(allowed=False)
_YES = Verdict(allowed=True)


class AccessPolicy:
    """Judges a request by three headers; the same three get the same verdict, so verdicts are remembered."""

    def __init__(self, settings: Settings) -> None:
        self.is_local = is_loopback(settings.host)
        self._checks_host = self.is_local or not settings.api_keys
        own = {socket.gethostname().lower(), *(name.lower() for name in settings.allowed_hosts)}
        if not self.is_local:
            own.add(settings.host.lower())
        self._own_names = frozenset(own)
        self._any_origin = "*" in settings.origins
        patterns = (*settings.origins, *_DEFAULT_ORIGINS)
        self._origins = re.compile("|".join(_pattern(origin) for origin in patterns), re.IGNORECASE)
        self.judge = lru_cache(maxsize=1024)(self._judge)

    def _judge(self, host: bytes, origin: bytes | None, site: bytes | None) -> Verdict:
        """`site` is Sec-Fetch-Site."""
        if self._checks_host and not self.is_known_host(host.decode("latin-1")):
            return _NO
        if origin is None:
            return _NO if site == b"cross-site" and not self._any_origin else _YES
        if self._any_origin:
            return _cors(b"*", varies=False)
        if origin.lower() in (b"http://" + host.lower(), b"https://" + host.lower()):
            return Verdict(allowed=True, is_page=True)
        if self._origins.fullmatch(origin.decode("latin-1")) is None:
            return _NO
        return _cors(origin, varies=True)

    def is_known_host(self, host: str) -> bool:
        """Whether a Host header may be one of ours."""
        if host == "":
            return True
        try:
            name = parse_address(host).host.lower()
        except ValueError:
            return False
        if "://" in host or "/" in host:
            return False
        if (address := _ip(name)) is not None:
            return not self.is_local or _is_near(address)
        if name in ("localhost", *self._own_names) or name.endswith((".localhost", ".local", ".internal")):
            return True
        # A name without a dot (a container's, say) can't be an entry in somebody's public DNS zone.
        return not self.is_local and "." not in name


class Keyring:
    """Accepted keys, as hashes: comparing takes the same time whatever was sent."""

    def __init__(self, keys: tuple[str, ...]) -> None:
        self._digests = tuple(sha256(key.encode()).digest() for key in keys)

    def __bool__(self) -> bool:
        return bool(self._digests)

    def accepts(self, authorization: bytes | None, api_key: bytes | None) -> bool:
        """Either header may carry the key: `Authorization: Bearer KEY` or `X-Api-Key: KEY`."""
        presented = api_key
        if authorization is not None and authorization[:7].lower() == b"bearer ":
            presented = authorization[7:]
        if presented is None:
            return False
        digest = sha256(presented.strip()).digest()
        # Every key is compared, so that time doesn't tell which one was near.
        return any([hmac.compare_digest(digest, known) for known in self._digests])


def is_loopback(host: str) -> bool:
    """Whether a server bound to `host` can be reached from this machine only."""
    address = _ip(host)
    return address.is_loopback if address is not None else host.lower() == "localhost"


def _cors(allow: bytes, *, varies: bool) -> Verdict:
    headers: tuple[Header, ...] = (
        (b"access-control-allow-origin", allow),
        (b"access-control-expose-headers", _EXPOSED),
    )
    if varies:
        headers += ((b"vary", b"Origin"),)
    return Verdict(allowed=True, headers=headers, preflight=_PREFLIGHT, is_page=True)


def _pattern(origin: str) -> str:
    """`*` stands for anything, and for a number where the port is."""
    origin, is_any_port = origin.rstrip("/"), origin.endswith(":*")
    parts = origin.removesuffix(":*").split("*") if is_any_port else origin.split("*")
    return ".*".join(re.escape(part) for part in parts) + (r":\d+" if is_any_port else "")


def _ip(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return None


def _is_near(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    if address.is_loopback or address.is_unspecified:
        return True
    if any(address in net for net in _PRIVATE if net.version == address.version):
        return True
    return _is_ours(str(address))


def _is_ours(address: str) -> bool:
    """Whether an interface of this machine has it: only then can a socket be bound to it."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((address, 0))
    except OSError:
        return False
    return True
