"""From a plan to an engine: the key is read, certificates are loaded, and the remote is asked what it is.

A remote that doesn't answer is no reason to fail: it may be there when the first request is.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import msgspec
from msgspec import Struct

from oprel.drivers.contract import DriverOptions
from oprel.drivers.openai.engine import Realized, RemoteEngine
from oprel.drivers.openai.failures import RemoteFailures
from oprel.drivers.openai.replica import Replica
from oprel.drivers.openai.servers import SERVERS, capabilities_of, server_by_owner
from oprel.errors import ConfigError, EngineStartError
from oprel.net import QuickClient, QuickError, tls_context
from oprel.schema import Plan, RemoteModel
from oprel.store.remote_listing import ListedModel, capability_words, read_listing

if TYPE_CHECKING:
    from oprel.config import Remote

__all__ = ["start_engine"]

_log = logging.getLogger("oprel.drivers.openai")

_ASK_LIMIT_S = 3.0
_OPENAI_HOST = "api.openai.com"


class Told(Struct, frozen=True):
    """What a remote told of itself; `kind` is a key of SERVERS. `is_guess`: nobody was there to tell anything."""

    kind: str
    model: ListedModel | None = None
    is_guess: bool = False


async def start_engine(plan: Plan, options: DriverOptions) -> RemoteEngine:
    """EngineStartError where the settings can't be used: no key where one is named, or certificates that can't be
    read."""
    where = plan.remote
    remote = next((one for one in options.remotes if where is not None and one.name == where.remote), None)
    if remote is None or where is None:
        raise EngineStartError(f"{plan.model!r}: its remote isn't configured any more", driver=plan.driver)
    key, tls = await _secrets(remote, plan)
    start = _Start(plan, remote, where, key, tls)
    try:
        told = await start.ask()
    except BaseException:
        await start.give_up()
        raise
    return start.engine(told, remote.timeout_s or options.stall_timeout_s)


async def _secrets(remote: Remote, plan: Plan) -> tuple[str | None, ssl.SSLContext | None]:
    is_secure = any(url.startswith("https:") for url in remote.urls)
    try:
        key = await asyncio.to_thread(remote.read_key)
    except ConfigError as error:
        raise EngineStartError(error.message, driver=plan.driver) from None
    try:
        tls = await asyncio.to_thread(tls_context, verify=remote.verify, ca_file=remote.ca_file) if is_secure else None
    except OSError as error:
        text = f"the certificates of remote {remote.name!r} can't be used: {remote.ca_file}: {error.strerror or error}"
        raise EngineStartError(text, driver=plan.driver) from None
    return key, tls


class _Start:
    """One remote's connections, and what is learned over them."""

    def __init__(
        self, plan: Plan, remote: Remote, where: RemoteModel, key: str | None, tls: ssl.SSLContext | None
    ) -> None:
        self._plan = plan
        self._remote = remote
        self._where = where
        self._key = key
        self._tls = tls
        self._clients = [self._client(url) for url in remote.urls]

    async def give_up(self) -> None:
        for client in self._clients:
            await client.aclose()

    def engine(self, told: Told, stall_timeout_s: float) -> RemoteEngine:
        plan, capabilities, quirks = self._realized(told)
        failures = RemoteFailures(self._remote, driver=plan.driver, model=plan.model, id=self._where.id)
        replicas = tuple(
            Replica(
                plan=plan,
                capabilities=capabilities,
                client=client,
                quirks=quirks,
                stall_timeout_s=stall_timeout_s,
                failures=failures,
            )
            for client in self._clients
        )
        return RemoteEngine(
            replicas,
            plan=plan,
            capabilities=capabilities,
            secret=self._key,
            ask_again=self._ask_again if told.is_guess else None,
        )

    async def _ask_again(self) -> Realized | None:
        told = await self.ask()
        return None if told.is_guess else self._realized(told)

    def _realized(self, told: Told) -> Realized:
        plan, server, model = self._plan, SERVERS[told.kind], told.model
        reasons = [*plan.reasons, ("server", f"it is asked as {told.kind}")]
        context = None if model is None else model.context_tokens
        if self._remote.context_tokens is None and context is not None and context != plan.context_tokens:
            plan = msgspec.structs.replace(plan, context_tokens=context)
            reasons.append(("context", f"the remote tells {context} tokens"))
        capabilities = capabilities_of(
            server,
            stated=self._remote.capabilities,
            told=frozenset() if model is None else model.capabilities,
            context_tokens=self._remote.context_tokens or context,
        )
        quirks = msgspec.structs.replace(server.quirks, model=self._where.id)
        return msgspec.structs.replace(plan, reasons=tuple(reasons)), capabilities, quirks

    async def ask(self) -> Told:
        """The first replica that answers tells for all. What is configured isn't asked."""
        remote, where = self._remote, self._where
        kind = None if remote.server == "auto" else remote.server
        if kind is None and all(urlsplit(url).hostname == _OPENAI_HOST for url in remote.urls):
            kind = "openai.com"
        if kind is not None and remote.context_tokens is not None and remote.capabilities is not None:
            return Told(kind)
        found = await self._first_listing()
        if found is None:
            return Told(kind or "openai", is_guess=True)
        url, listed = found
        model = next((entry for entry in listed if entry.id == where.id), None)
        if listed and model is None:
            _log.warning(
                "the remote %r doesn't list %r, as which %s is configured", remote.name, where.id, self._plan.model
            )
        if kind is None:
            kind = server_by_owner(entry.owner for entry in listed if model is None or entry is model)
        if kind is None:
            kind = "oprel" if listed and await self._is_oprel(url) else "openai"
        if kind == "oprel" and model is not None and remote.capabilities is None:
            model = msgspec.structs.replace(model, capabilities=await self._shown(url))
        return Told(kind, model)

    async def _first_listing(self) -> tuple[str, tuple[ListedModel, ...]] | None:
        """Of the first replica that lists anything, with its URL; no models where those that answer list none; None
        where nobody answers."""
        asking = [asyncio.ensure_future(_listing(client)) for client in self._clients]
        found: tuple[str, tuple[ListedModel, ...]] | None = None
        try:
            for answered in asyncio.as_completed(asking):
                url, listed = await answered
                if listed:
                    return url, listed
                if listed is not None:
                    found = url, listed
            return found
        finally:
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)

    async def _is_oprel(self, url: str) -> bool:
        return "oprel" in await self._from_root(url, "GET", "/api/version")

    async def _shown(self, url: str) -> frozenset[str]:
        """The model's capabilities, as another Oprel shows them."""
        shown = await self._from_root(url, "POST", "/api/show", msgspec.json.encode({"model": self._where.id}))
        return capability_words(shown.get("capabilities"))

    async def _from_root(self, url: str, method: str, path: str, body: bytes | None = None) -> dict[str, object]:
        """What stands beside OpenAI's API; empty where there is no such thing."""
        parts = urlsplit(url)
        client = self._client(f"{parts.scheme}://{parts.netloc}")
        try:
            answer = await client.request(method, path, body, timeout_s=_ASK_LIMIT_S)
            return msgspec.json.decode(answer.body, type=dict[str, object]) if answer.status == 200 else {}
        except (QuickError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return {}
        finally:
            await client.aclose()

    def _client(self, url: str) -> QuickClient:
        # Some front ends refuse who doesn't say a name, or compress for who doesn't say not to.
        headers = {"User-Agent": "oprel", "Accept-Encoding": "identity"}
        return QuickClient(url, api_key=self._key, tls=self._tls, headers=headers)


async def _listing(client: QuickClient) -> tuple[str, tuple[ListedModel, ...] | None]:
    """With its address; None where it can't be reached, none where it answers something else."""
    try:
        answer = await client.request("GET", "/models", timeout_s=_ASK_LIMIT_S)
        if answer.status == 200:
            return client.address, read_listing(answer.body)
        why = f"it answers {answer.status} to /models"
    except ValueError as error:
        why = str(error)
    except QuickError as error:
        _log.info("%s can't be asked what it has: %s", client.address, error)
        return client.address, None
    _log.info("%s doesn't tell its models: %s", client.address, why)
    return client.address, ()
