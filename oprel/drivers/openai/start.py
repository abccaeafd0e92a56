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
from oprel.drivers.openai.engine import RemoteEngine
from oprel.drivers.openai.failures import RemoteFailures
from oprel.drivers.openai.replica import Replica
from oprel.drivers.openai.servers import SERVERS, capabilities_of, server_by_owner
from oprel.errors import ConfigError, EngineStartError
from oprel.net import QuickClient, QuickError, tls_context
from oprel.schema import Plan, RemoteModel
from oprel.store.remote_listing import ListedModel, read_listing

if TYPE_CHECKING:
    from oprel.config import Remote

__all__ = ["start_engine"]

_log = logging.getLogger("oprel.drivers.openai")

_ASK_LIMIT_S = 3.0
_OPENAI_HOST = "api.openai.com"


class Told(Struct, frozen=True):
    """What a remote told of itself; `kind` is a key of SERVERS."""

    kind: str
    model: ListedModel | None = None


async def start_engine(plan: Plan, options: DriverOptions) -> RemoteEngine:
    """EngineStartError where the settings can't be used: no key where one is named, or certificates that can't be
    read."""
    where = plan.remote
    remote = next((one for one in options.remotes if where is not None and one.name == where.remote), None)
    if remote is None or where is None:
        raise EngineStartError(f"{plan.model!r}: its remote isn't configured any more", driver=plan.driver)
    key, tls = await _secrets(remote, plan)
    clients = [_client(url, key, tls) for url in remote.urls]
    try:
        told = await _ask(remote, where, clients, key, tls)
    except BaseException:
        for client in clients:
            await client.aclose()
        raise
    return _engine(plan, remote, where, clients, told, key, options.stall_timeout_s)


async def _secrets(remote: Remote, plan: Plan) -> tuple[str | None, ssl.SSLContext | None]:
    is_secure = any(url.startswith("https:") for url in remote.urls)
    try:
        key = await asyncio.to_thread(remote.read_key)
    except ConfigError as error:
        raise EngineStartError(f"{error.message}", driver=plan.driver) from None
    try:
        tls = await asyncio.to_thread(tls_context, verify=remote.verify, ca_file=remote.ca_file) if is_secure else None
    except OSError as error:
        text = f"the certificates of remote {remote.name!r} can't be used: {remote.ca_file}: {error.strerror or error}"
        raise EngineStartError(text, driver=plan.driver) from None
    return key, tls


def _client(url: str, key: str | None, tls: ssl.SSLContext | None) -> QuickClient:
    # Some front ends refuse who doesn't say a name, or compress for who doesn't say not to.
    headers = {"User-Agent": "oprel", "Accept-Encoding": "identity"}
    return QuickClient(url, api_key=key, tls=tls, headers=headers)


def _engine(
    plan: Plan,
    remote: Remote,
    where: RemoteModel,
    clients: list[QuickClient],
    told: Told,
    key: str | None,
    stall_timeout_s: float,
) -> RemoteEngine:
    server, model = SERVERS[told.kind], told.model
    reasons = [*plan.reasons, ("server", f"it is asked as {told.kind}")]
    context = None if model is None else model.context_tokens
    if remote.context_tokens is None and context is not None and context != plan.context_tokens:
        plan = msgspec.structs.replace(plan, context_tokens=context)
        reasons.append(("context", f"the remote tells {context} tokens"))
    plan = msgspec.structs.replace(plan, reasons=tuple(reasons))
    known = remote.context_tokens or context
    capabilities = capabilities_of(
        server,
        stated=remote.capabilities,
        told=frozenset() if model is None else model.capabilities,
        context_tokens=known,
    )
    failures = RemoteFailures(remote, driver=plan.driver, model=plan.model, id=where.id)
    replicas = tuple(
        Replica(
            plan=plan,
            capabilities=capabilities,
            client=client,
            quirks=msgspec.structs.replace(server.quirks, model=where.id),
            stall_timeout_s=remote.timeout_s or stall_timeout_s,
            failures=failures,
        )
        for client in clients
    )
    return RemoteEngine(replicas, plan=plan, capabilities=capabilities, secret=key)


async def _ask(
    remote: Remote, where: RemoteModel, clients: list[QuickClient], key: str | None, tls: ssl.SSLContext | None
) -> Told:
    """The first replica that answers tells for all. What is configured isn't asked."""
    kind = None if remote.server == "auto" else remote.server
    if kind is None and all(urlsplit(url).hostname == _OPENAI_HOST for url in remote.urls):
        kind = "openai.com"
    if kind is not None and remote.context_tokens is not None and remote.capabilities is not None:
        return Told(kind)
    listed = await _first_listing(clients)
    model = next((entry for entry in listed if entry.id == where.id), None)
    if listed and model is None:
        _log.warning("the remote %r doesn't list %r, which %s is", remote.name, where.id, "is configured")
    if kind is None:
        kind = server_by_owner(entry.owner for entry in listed if model is None or entry is model)
    if kind is None:
        kind = "oprel" if listed and await _is_oprel(remote.urls[0], key, tls) else "openai"
    return Told(kind, model)


async def _first_listing(clients: list[QuickClient]) -> tuple[ListedModel, ...]:
    asking = [asyncio.ensure_future(_listing(client)) for client in clients]
    try:
        for answered in asyncio.as_completed(asking):
            if listed := await answered:
                return listed
        return ()
    finally:
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)


async def _listing(client: QuickClient) -> tuple[ListedModel, ...]:
    try:
        answer = await client.request("GET", "/models", timeout_s=_ASK_LIMIT_S)
        if answer.status == 200:
            return read_listing(answer.body)
        why = f"it answers {answer.status} to /models"
    except (QuickError, ValueError) as error:
        why = str(error)
    _log.info("%s doesn't tell its models: %s", client.address, why)
    return ()


async def _is_oprel(url: str, key: str | None, tls: ssl.SSLContext | None) -> bool:
    parts = urlsplit(url)
    client = _client(f"{parts.scheme}://{parts.netloc}", key, tls)
    try:
        answer = await client.request("GET", "/api/version", timeout_s=_ASK_LIMIT_S)
        return answer.status == 200 and "oprel" in msgspec.json.decode(answer.body, type=dict[str, object])
    except (QuickError, msgspec.DecodeError, UnicodeDecodeError):
        return False
    finally:
        await client.aclose()
