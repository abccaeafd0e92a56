"""`WWW-Authenticate` (RFC 9110, 11.6.1), read with limits: it comes from whoever answers."""

from __future__ import annotations

import re

from msgspec import Struct

__all__ = ["Challenge", "parse_challenge"]

_MAX_CHARS = 4096
_MAX_PARAMETERS = 16
_SCHEME = re.compile(r"\s*,?\s*([A-Za-z][A-Za-z0-9-]{0,30})(?:\s+|(?=,)|$)(?!=)")
_PARAMETER = re.compile(r'\s*,?\s*([A-Za-z_-]{1,40})\s*=\s*(?:"((?:[^"\\]|\\.){0,2000})"|([^\s",=]{1,2000}))\s*(?=,|$)')


class Challenge(Struct, frozen=True):
    """`scheme` is `bearer` or `basic`; `scopes` in their order."""

    scheme: str
    realm: str = ""
    service: str = ""
    scopes: tuple[str, ...] = ()


def parse_challenge(header: str) -> Challenge | None:
    """The first challenge that can be met, or None. Bearer comes before Basic, since its token tells less."""
    found = {challenge.scheme: challenge for challenge in reversed(_challenges(header[:_MAX_CHARS]))}
    return found.get("bearer") or found.get("basic")


def _challenges(text: str) -> list[Challenge]:
    challenges: list[Challenge] = []
    at = 0
    while (scheme := _SCHEME.match(text, at)) is not None:
        at = scheme.end()
        given: dict[str, str] = {}
        while (parameter := _PARAMETER.match(text, at)) is not None and len(given) < _MAX_PARAMETERS:
            at = parameter.end()
            name, quoted, plain = parameter.groups()
            given.setdefault(name.lower(), re.sub(r"\\(.)", r"\1", quoted) if quoted is not None else plain)
        challenges.append(
            Challenge(
                scheme=scheme[1].lower(),
                realm=given.get("realm", ""),
                service=given.get("service", ""),
                scopes=tuple(given.get("scope", "").split()),
            )
        )
    return challenges
