"""Talking to one repository of one registry: where it is, who asks, and what its refusals come to."""

from __future__ import annotations

import asyncio
from base64 import b64encode
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import TypeVar
from urllib.parse import urlencode

import msgspec
from msgspec import Struct
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt

from oprel.errors import SourceError
from oprel.net.addresses import origin_of, parse_url
from oprel.net.outside import OutsideClient, OutsideResponse, TransientSourceError, require_ok
from oprel.sources.registry.challenge import Challenge, parse_challenge
from oprel.sources.registry.logins import Login
from oprel.sources.retries import ATTEMPTS, wait_before_retry
from oprel.store import ModelName
from oprel.version import __version__

__all__ = ["MANIFEST_TYPE", "Reach", "RegistrySession", "check_login", "read_body"]

MANIFEST_TYPE = "application/vnd.docker.distribution.manifest.v2+json"
MAX_TOKEN_BYTES = 64 << 10
MAX_ERROR_BYTES = 4 << 10
_API_HOSTS = {"docker.io": "registry-1.docker.io"}
_REALMS = {"registry-1.docker.io": "auth.docker.io"}  # https only; any other realm must be the registry's own host

Content = Callable[[], AsyncIterable[bytes]] | bytes | None
T = TypeVar("T")


class Reach(Struct, frozen=True):
    """How a registry may be reached. `is_insecure`: plain http, as its user asked for. `trusted` are the hosts that
    configuration names: they may be inside the network. `login` is the user's there."""

    is_insecure: bool = False
    trusted: tuple[str, ...] = ()
    login: Login | None = None

    def client(self, name: ModelName) -> OutsideClient:
        base = api_base(name, is_insecure=self.is_insecure)
        is_named = self.is_insecure or name.host.lower() in {host.lower() for host in self.trusted}
        return OutsideClient(trusted=(origin_of(base),) if is_named else (), user_agent=f"oprel/{__version__}")


class RegistrySession:
    """`authorization` may come from an earlier session with the same repository."""

    def __init__(self, client: OutsideClient, name: ModelName, reach: Reach, *, authorization: str = "") -> None:
        self.name = name
        self.base = f"{api_base(name, is_insecure=reach.is_insecure)}/v2/{name.namespace}/{name.model}"
        self.authorization = authorization
        self._client = client
        self._reach = reach

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": self.authorization} if self.authorization else {}

    @asynccontextmanager
    async def send(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        content: Content = None,
        follow: bool = False,
    ) -> AsyncIterator[OutsideResponse]:
        """The login goes to the registry's own origin only. A challenge is met once."""
        is_own = origin_of(url) == origin_of(self.base)
        async with self._once(method, url, headers, content, follow, is_own=is_own) as response:
            if response.status != 401 or not is_own:
                yield response
                return
            challenged = response.headers
        await self.renew(challenged)
        async with self._once(method, url, headers, content, follow, is_own=True) as response:
            if response.status in (401, 403):
                raise self._denied()
            yield response

    async def renew(self, challenged: Mapping[str, str]) -> dict[str, str]:
        """Meet the challenge of a 401; the headers for another try. Raises SourceError."""
        challenge = parse_challenge(challenged.get("www-authenticate", ""))
        if challenge is None:
            raise self._denied()
        if challenge.scheme == "basic":
            if self._reach.login is None:
                raise self._denied()
            self.authorization = _basic(self._reach.login)
        else:
            self.authorization = f"Bearer {await self._token(challenge)}"
        return self.headers

    async def failed(self, doing: str, response: OutsideResponse) -> SourceError:
        """What an answer of 400 or more comes to."""
        if response.status in (408, 425, 429) or response.status >= 500:
            require_ok(response)
        if response.status in (401, 403):
            return self._denied()
        text = _error_text(await read_body(response, MAX_ERROR_BYTES, is_cut=True))
        return SourceError(f"{doing}: {response.status}: {text}")

    async def retried(self, work: Callable[[], Awaitable[T]]) -> T:
        """`work` again, with back-off, while another try may help."""
        async for attempt in AsyncRetrying(
            stop=stop_after_attempt(ATTEMPTS),
            wait=wait_before_retry,
            retry=retry_if_exception_type(TransientSourceError),
            sleep=asyncio.sleep,
            reraise=True,
        ):
            with attempt:
                return await work()
        raise AssertionError("tenacity raises when it gives up")

    @asynccontextmanager
    async def _once(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str] | None,
        content: Content,
        follow: bool,
        *,
        is_own: bool,
    ) -> AsyncIterator[OutsideResponse]:
        sent = {**(headers or {}), **(self.headers if is_own else {})}
        body = content() if callable(content) else content
        async with self._client.stream(url, method=method, headers=sent, content=body, follow=follow) as response:
            yield response

    async def _token(self, challenge: Challenge) -> str:
        realm = parse_url(challenge.realm)
        asked = parse_url(self.base)
        is_own = realm.netloc == asked.netloc and (realm.scheme == "https" or asked.scheme == "http")
        is_known = realm.scheme == "https" and _REALMS.get(asked.host) == realm.netloc.decode("ascii")
        if not is_own and not is_known:
            ours, theirs = asked.netloc.decode("ascii", "replace"), realm.netloc.decode("ascii", "replace")
            raise SourceError(f'realm host "{theirs}" does not match original host "{ours}"')
        query = [("service", challenge.service)] if challenge.service else []
        query += [("scope", scope) for scope in challenge.scopes]
        joint = "&" if realm.query else "?"
        headers = {"Authorization": _basic(self._reach.login)} if self._reach.login is not None else {}
        url = f"{challenge.realm}{joint}{urlencode(query)}"
        async with self._client.stream(url, headers=headers, follow=False) as response:
            if response.status in (401, 403):
                raise self._denied()
            require_ok(response)
            return _token_in(await read_body(response, MAX_TOKEN_BYTES))

    def _denied(self) -> SourceError:
        hint = f"log in with: oprel login {self.name.host}" if self._reach.login is None else "log in again"
        return SourceError(f"unauthorized: access denied ({hint})")


def api_base(name: ModelName, *, is_insecure: bool) -> str:
    """Raises SourceError for a host that isn't one."""
    host = _API_HOSTS.get(name.host.lower(), name.host)
    base = f"{'http' if is_insecure else 'https'}://{host}"
    parse_url(base)
    return base


async def read_body(response: OutsideResponse, limit_bytes: int, *, is_cut: bool = False) -> bytes:
    """Raises SourceError for a longer one, unless `is_cut`: then what comes first is enough."""
    data = bytearray()
    async for chunk in response.chunks(max_bytes=1 << 62 if is_cut else limit_bytes):
        data += chunk
        if is_cut and len(data) >= limit_bytes:
            break
    return bytes(data[:limit_bytes])


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


class _Problem(Struct):
    code: str = ""
    message: str = ""


class _Problems(Struct):
    errors: list[_Problem] = []


def _error_text(data: bytes) -> str:
    """The protocol's own errors in words; nothing else is passed on, since who answers may not be a registry at all
    but something that only this machine can reach."""
    try:
        problems = msgspec.json.decode(data, type=_Problems).errors
    except (msgspec.MsgspecError, RecursionError, ValueError):
        problems = []
    words = "; ".join(" ".join((each.message or each.code).split())[:300] for each in problems[:5])
    return words if words.isprintable() and words else "the registry gives no reason"


async def check_login(host: str, reach: Reach) -> None:
    """Whether the registry takes the login. Raises SourceError, InvalidNameError."""
    name = ModelName(host, "library", "any", "latest")
    async with reach.client(name) as client:
        session = RegistrySession(client, name, reach)
        url = f"{api_base(name, is_insecure=reach.is_insecure)}/v2/"
        async with session.send("GET", url) as response:
            if response.status != 200:
                raise await session.failed(f"log in to {host}", response)
