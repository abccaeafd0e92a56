"""Talking to one repository of one registry: where it is, who asks, and what its refusals come to."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

from oprel.errors import InvalidNameError, SourceError
from oprel.net.addresses import InsideError, origin_of
from oprel.net.outside import OutsideClient, OutsideResponse, require_ok
from oprel.sources.registry.bodies import error_text, read_body
from oprel.sources.registry.proof import DeniedError, Proof
from oprel.sources.registry.reach import Reach, api_base
from oprel.store import ModelName

__all__ = ["MANIFEST_TYPE", "RegistrySession", "check_login"]

MANIFEST_TYPE = "application/vnd.docker.distribution.manifest.v2+json"
MAX_ERROR_BYTES = 4 << 10
_INSIDE_HINT = (
    "A registry that is meant to be there is reached with 'insecure' (--insecure) by plain http, or by https once the "
    "setting trusted_registries names it."
)

Content = Callable[[], AsyncIterable[bytes]] | bytes | None


class RegistrySession:
    """`known` is an earlier session with the same repository, which may be over: who asks is shown as it was there."""

    def __init__(
        self, client: OutsideClient, name: ModelName, reach: Reach, *, known: RegistrySession | None = None
    ) -> None:
        self.name = name
        self.base = f"{api_base(name, is_insecure=reach.is_insecure)}/v2/{name.namespace}/{name.model}"
        self.authorization: str = "" if known is None else known.authorization
        self._client = client
        shown = None if known is None else known._proof
        self._proof: Proof = Proof(client, self.base, name.host, reach, known=shown)

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
        """The login goes to the registry's own origin only. A challenge is met there, by each way once."""
        is_own = origin_of(url) == origin_of(self.base)
        challenged: Mapping[str, str] | None = None
        while True:
            async with self._once(method, url, headers, content, follow, is_own=is_own) as response:
                is_refused = response.status == 401 or (challenged is not None and response.status == 403)
                if not is_own or not is_refused:
                    yield response
                    return
                is_first, challenged = challenged is None, _challenge_of(response) or challenged or {}
            self.authorization = await self._proof.meet(challenged, is_refused=not is_first)

    async def renew(self, challenged: Mapping[str, str]) -> dict[str, str]:
        """Meet the challenge of a 401; the headers for another try. Raises SourceError."""
        self.authorization = await self._proof.meet(challenged, is_refused=False)
        return self.headers

    async def failed(self, doing: str, response: OutsideResponse) -> SourceError:
        """What an answer of 400 or more comes to."""
        if response.status in (408, 425, 429) or response.status >= 500:
            require_ok(response)
        if response.status in (401, 403):
            return self._proof.denied()
        text = error_text(await read_body(response, MAX_ERROR_BYTES, is_cut=True))
        return SourceError(f"{doing}: {response.status}: {text}")

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
        try:
            async with self._client.stream(url, method=method, headers=sent, content=body, follow=follow) as response:
                yield response
        except InsideError as problem:
            if problem.origin == origin_of(self.base):
                raise SourceError(f"{problem.message} {_INSIDE_HINT}") from problem
            raise


def _challenge_of(response: OutsideResponse) -> Mapping[str, str] | None:
    """A refusal by 403 has none: then the one before still stands."""
    return response.headers if "www-authenticate" in response.headers else None


async def check_login(host: str, reach: Reach) -> None:
    """Whether the registry takes the login. Raises SourceError, InvalidNameError."""
    try:
        name = ModelName(host, "library", "any", "latest")
    except InvalidNameError:
        raise InvalidNameError(f"{host!r} isn't a registry's host; write it as HOST or HOST:PORT.", name=host) from None
    async with reach.client(name) as client:
        session = RegistrySession(client, name, reach)
        url = f"{api_base(name, is_insecure=reach.is_insecure)}/v2/"
        try:
            async with session.send("GET", url) as response:
                if response.status != 200:
                    raise await session.failed(f"log in to {host}", response)
        except DeniedError as problem:
            raise SourceError(f"unauthorized: {host} doesn't take this user with this password") from problem
