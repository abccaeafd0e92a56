"""The remote driver: models that other servers run, planned without looking at this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from oprel.drivers.contract import Driver, Engine
from oprel.errors import UnsupportedError
from oprel.schema import (
    ALL_SAMPLING,
    Availability,
    Capabilities,
    Hardware,
    LoadOptions,
    Model,
    Plan,
    Support,
    promised,
)

if TYPE_CHECKING:
    from oprel.config import Remote

__all__ = ["ASSUMED_CONTEXT_TOKENS", "OpenAIDriver"]

# Where neither the settings nor the remote say: only how long a prompt may take to be read depends on it.
ASSUMED_CONTEXT_TOKENS = 131_072


class OpenAIDriver(Driver):
    """For models of the `[remote.NAME]` tables and for no others."""

    name = "openai"
    can = Capabilities(
        chat=True,
        complete=True,
        embed=True,
        vision=True,
        audio=True,
        tools=True,
        thinking=True,
        json_schema=True,
        grammar=True,
        logprobs=True,
        infill=True,
        sampling=ALL_SAMPLING,
    )

    def availability(self, hardware: Hardware) -> Availability:
        if not self.options.remotes:
            reason = "no remote is configured: add a table [remote.NAME] with its url to config.toml"
            return Availability(usable=False, reason=reason)
        named = ", ".join(f"{remote.name} ({_count(remote)})" for remote in self.options.remotes)
        return Availability(usable=True, reason=f"remotes: {named}")

    def supports(self, model: Model) -> Support:
        if model.format != "remote" or model.remote is None:
            return Support(supported=False, reason="it asks models on other servers, and this is none of them")
        if self._remote_of(model) is None:
            return Support(supported=False, reason=f"there is no [remote.{model.remote.remote}] in the settings")
        return Support(supported=True, reason=f"it is {model.remote.id!r} of the remote {model.remote.remote!r}")

    def capabilities(self, model: Model, hardware: Hardware) -> Capabilities:
        """As far as the settings and the remote's listing say; which kind of server it is, is asked at the start."""
        remote = self._remote_of(model)
        if remote is None:
            return promised(model, self.can)
        from oprel.drivers.openai.servers import SERVERS, capabilities_of

        return capabilities_of(
            SERVERS.get(remote.server, SERVERS["openai"]),
            stated=remote.capabilities,
            told=model.capabilities,
            context_tokens=remote.context_tokens or model.context_tokens,
        )

    def plan(self, model: Model, options: LoadOptions, hardware: Hardware) -> Plan:
        remote = self._remote_of(model)
        if remote is None or not self.supports(model).supported:
            raise UnsupportedError(
                f"{model.name!r} can't run on a remote: {self.supports(model).reason}",
                capability="format",
                model=model.name,
                driver=self.name,
            )
        context = model.context_tokens or ASSUMED_CONTEXT_TOKENS
        slots = remote.slots * len(remote.urls)
        return Plan(
            driver=self.name,
            engine=remote.name,
            model=model.name,
            model_digest=model.digest,
            files=(),
            options=options,
            gpu_layers=0,
            layers=None,
            bytes_by_device=(),
            context_tokens=context,
            slots=slots,
            threads=0,
            argv=(),
            device="remote",
            embedding=model.is_embedding,
            chat=not model.capabilities or "completion" in model.capabilities,
            reasons=_reasons(remote, model, options),
            remote=model.remote,
        )

    async def start(self, plan: Plan) -> Engine:
        # The HTTP client's imports are for those who start something.
        from oprel.drivers.openai.start import start_engine

        return await start_engine(plan, self.options)

    def _remote_of(self, model: Model) -> Remote | None:
        wanted = model.remote.remote if model.remote is not None else None
        return next((remote for remote in self.options.remotes if remote.name == wanted), None)


def _reasons(remote: Remote, model: Model, options: LoadOptions) -> tuple[tuple[str, str], ...]:
    where = " and ".join(remote.urls)
    identifier = model.remote.id if model.remote is not None else ""
    reasons = [
        ("remote", f"it is {identifier!r} at {where}, as [remote.{remote.name}] says; it takes no memory here"),
        ("slots", f"{remote.slots} requests at once for each of {_count(remote)}; the rest queue here"),
    ]
    if remote.context_tokens is not None:
        reasons.append(("context", f"[remote.{remote.name}] says so"))
    elif model.context_tokens is not None:
        reasons.append(("context", "the remote tells it"))
    else:
        text = (
            f"nobody says how long it is: context in [remote.{remote.name}] would; it is only used to set time limits"
        )
        reasons.append(("context", text))
    key = remote.key_place
    reasons.append(("key", f"from {key}" if key is not None else "none is configured"))
    if not remote.verify:
        reasons.append(("certificate", "not verified, as verify = false says: anybody on the way can read along"))
    if key is not None and any(_is_open(url) for url in remote.urls):
        reasons.append(("plain_http", "the key travels unencrypted to an http URL"))
    if any(value is not None for value in (options.context_tokens, options.gpu_layers, options.kv_cache_type)):
        reasons.append(("options", "how it is loaded is the remote's business: load options have no effect"))
    return tuple(reasons)


def _is_open(url: str) -> bool:
    """Whether others may read what goes there."""
    parts = urlsplit(url)
    return parts.scheme == "http" and parts.hostname not in ("localhost", "127.0.0.1", "::1")


def _count(remote: Remote) -> str:
    count = len(remote.urls)
    return f"{count} replica{'' if count == 1 else 's'}"
