"""Showing a registry who asks. Its challenge is met with the user's login, or as nobody; where that isn't enough, with
the signature of this machine's key, as Ollama's registry wants it.

A signature covers the token service's whole URL, time and nonce included, so that it is of no use anywhere else.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from base64 import b64encode
from collections.abc import Mapping
from hashlib import sha256
from urllib.parse import parse_qsl, urlencode

import httpx
import msgspec
from msgspec import Struct

from oprel.errors import SourceError
from oprel.net.addresses import parse_url
from oprel.net.outside import OutsideClient, require_ok
from oprel.sources.registry.bodies import read_body
from oprel.sources.registry.challenge import Challenge, parse_challenge
from oprel.sources.registry.logins import Login
from oprel.sources.registry.machine_key import Signer
from oprel.sources.registry.reach import Reach

__all__ = ["DeniedError", "Proof"]

MAX_TOKEN_BYTES = 64 << 10
_REALMS = {"registry-1.docker.io": "auth.docker.io"}  # https only; any other realm must be the registry's own host
_ACCOUNTS = {"registry.ollama.ai": "https://ollama.com/settings/keys"}
_NO_BODY = b64encode(sha256(b"").hexdigest().encode()).decode("ascii")


class DeniedError(SourceError):
    """The registry knows who asks, or that nobody does, and that isn't enough."""


class Proof:
    """`base` is any URL of the registry, `host` how its users call it; `known` is what an earlier session with it
    found to be needed."""

    def __init__(
        self, client: OutsideClient, base: str, host: str, reach: Reach, *, known: Proof | None = None
    ) -> None:
        self._client = client
        self._asked = parse_url(base)
        self._host = host
        self._reach = reach
        self._signer: Signer | None = None if known is None else known._signer

    async def meet(self, challenged: Mapping[str, str], *, is_refused: bool) -> str:
        """The value of `Authorization` that meets a 401's challenge; `is_refused`: the value that this gave for the
        same request wasn't enough. Raises DeniedError when there is no better one,
        SourceError."""
        challenge = parse_challenge(challenged.get("www-authenticate", ""))
        if challenge is None:
            raise self.denied()
        if challenge.scheme == "basic":
            if self._reach.login is None or is_refused:
                raise self.denied()
            return _basic(self._reach.login)
        return f"Bearer {await self._token(challenge, is_refused=is_refused)}"

    def denied(self) -> DeniedError:
        """Says what the user can do about it; a public key is no secret."""
        hints = []
        if self._signer is not None:
            account = _ACCOUNTS.get(self._asked.host, self._host)
            hints.append(f"add this machine's key to your account at {account}: {self._signer.public}")
        if self._reach.login is not None:
            hints.append("log in again")
        elif self._asked.host not in _ACCOUNTS:
            hints.append(f"log in with: oprel login {self._host}")
        return DeniedError(f"unauthorized: access denied ({'; or '.join(hints)})".removesuffix(" ()"))

    async def _token(self, challenge: Challenge, *, is_refused: bool) -> str:
        realm = self._realm(challenge)
        if self._signer is None and not is_refused:
            login = self._reach.login
            if token := await self._ask(_url(realm, challenge), "" if login is None else _basic(login)):
                return token
        is_own = realm.netloc == self._asked.netloc  # Docker's token service has no use for a signature
        if self._reach.key is None or not is_own or (self._signer is not None and is_refused):
            raise self.denied()
        if self._signer is None:
            self._signer = await asyncio.to_thread(self._reach.key.signer)
        url = _url(realm, challenge, ts=str(int(time.time())), nonce=secrets.token_urlsafe(16))
        token = await self._ask(url, self._signer.sign(f"GET,{url},{_NO_BODY}"))
        if not token:
            raise self.denied()
        return token

    def _realm(self, challenge: Challenge) -> httpx.URL:
        realm, asked = parse_url(challenge.realm), self._asked
        is_own = realm.netloc == asked.netloc and (realm.scheme == "https" or asked.scheme == "http")
        is_known = realm.scheme == "https" and _REALMS.get(asked.host) == realm.netloc.decode("ascii")
        if not is_own and not is_known:
            ours, theirs = asked.netloc.decode("ascii", "replace"), realm.netloc.decode("ascii", "replace")
            raise SourceError(f'realm host "{theirs}" does not match original host "{ours}"')
        return realm

    async def _ask(self, url: str, authorization: str) -> str:
        """A token; empty where the service refuses one."""
        headers = {"Authorization": authorization} if authorization else {}
        async with self._client.stream(url, headers=headers, follow=False) as response:
            if response.status in (401, 403):
                return ""
            require_ok(response)
            return _token_in(await read_body(response, MAX_TOKEN_BYTES))


def _url(realm: httpx.URL, challenge: Challenge, **more: str) -> str:
    query = [*parse_qsl(realm.query.decode("ascii", "replace"), keep_blank_values=True), *more.items()]
    query += [("service", challenge.service)] if challenge.service else []
    query += [("scope", scope) for scope in challenge.scopes]
    return str(realm.copy_with(query=urlencode(sorted(query)).encode("ascii") or None, fragment=None))


def _basic(login: Login) -> str:
    return "Basic " + b64encode(f"{login.user}:{login.password}".encode()).decode()


class _Token(Struct):
    token: str = ""
    access_token: str = ""


def _token_in(data: bytes) -> str:
    try:
        answer = msgspec.json.decode(data, type=_Token)
    except (msgspec.MsgspecError, RecursionError, ValueError):
        raise SourceError("The registry's token service gives an answer that can't be read.") from None
    token = answer.token or answer.access_token
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise SourceError("The registry's token service gives no token that can be used.")
    return token
