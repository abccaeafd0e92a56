"""Where a server is: as people, files and variables write it."""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["DEFAULT_PORT", "Address", "parse_address", "parse_port"]

DEFAULT_PORT = 11434


@dataclass(frozen=True, slots=True)
class Address:
    """`port` None: not said. `path` starts with a slash or is empty; only clients use it."""

    host: str
    port: int | None
    scheme: str = "http"
    path: str = ""


def parse_address(text: str) -> Address:
    """`HOST`, `HOST:PORT`, `:PORT`, an IPv6 address with or without brackets, or a URL; ValueError otherwise. A URL
    without a port means its scheme's own (80, 443), as it does for Ollama's clients."""
    text = text.strip().strip("\"'").strip()
    scheme, separator, rest = text.partition("://")
    if not separator:
        scheme, rest = "http", text
    scheme = scheme.lower()
    if scheme not in ("http", "https"):
        raise ValueError(f"the scheme {scheme!r} is neither http nor https")
    hostport, slash, path = rest.partition("/")
    host, port = _split_port(hostport)
    if port is None and separator:
        port = 443 if scheme == "https" else 80
    if re.search(r"[\s@\\?#]", host):
        raise ValueError(f"{host!r} is not a host name")
    return Address(host=host, port=port, scheme=scheme, path=(slash + path).rstrip("/"))


def _split_port(hostport: str) -> tuple[str, int | None]:
    if hostport.startswith("["):
        host, bracket, rest = hostport[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise ValueError("a bracket is not closed")
        return host, parse_port(rest[1:]) if rest else None
    if hostport.count(":") > 1:  # an IPv6 address without brackets can't have a port
        return hostport, None
    host, colon, port = hostport.partition(":")
    return host, parse_port(port) if colon else None


def parse_port(text: object) -> int:
    if not re.fullmatch(r"\d{1,5}", str(text)) or int(str(text)) > 65535:
        raise ValueError(f"{text!r} is not a port")
    return int(str(text))
