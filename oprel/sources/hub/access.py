"""Where the hub is, and by which token: as `huggingface_hub` is set up on this machine.

| what | from |
|---|---|
| endpoint | `HF_ENDPOINT` (a mirror; may be plain http, and inside this network), else https://huggingface.co |
| token | `HF_TOKEN`, `HUGGING_FACE_HUB_TOKEN`, the file that `hf auth login` writes (`HF_TOKEN_PATH`, `HF_HOME`) |
| none | `HF_HUB_DISABLE_IMPLICIT_TOKEN` set: the token isn't sent |
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from msgspec import Struct

from oprel.errors import ConfigError
from oprel.net.addresses import host_of, origin_of
from oprel.net.outside import OutsideClient

__all__ = ["DEFAULT_ENDPOINT", "HubAccess", "read_hub_access"]

DEFAULT_ENDPOINT = "https://huggingface.co"
_MAX_TOKEN_BYTES = 4096
_TRUE = frozenset({"1", "on", "yes", "true"})


class HubAccess(Struct, frozen=True):
    """`is_configured`: somebody named this endpoint, so it may be where no other address may lead."""

    endpoint: str = DEFAULT_ENDPOINT
    token: str | None = None
    is_configured: bool = False

    def __repr__(self) -> str:  # a token is in no log
        return f"HubAccess({self.endpoint!r}, {'with' if self.token else 'without'} a token)"

    def client(self) -> OutsideClient:
        """The hardened client, which takes `headers` along to the endpoint's own origin only."""
        origin = origin_of(self.endpoint)
        return OutsideClient(
            trusted=(origin,) if self.is_configured else (),
            trusted_hosts=(host_of(self.endpoint),) if self.is_configured else (),
        )

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}


def read_hub_access(environment: Mapping[str, str] | None = None) -> HubAccess:
    """Blocking: reads the token's file, and imports what knows where that is. Raises ConfigError."""
    given = os.environ if environment is None else environment
    endpoint = given.get("HF_ENDPOINT", "").strip().rstrip("/")
    if endpoint and not origin_of(endpoint):
        raise ConfigError("HF_ENDPOINT isn't an http or https address")
    return HubAccess(endpoint or DEFAULT_ENDPOINT, _token(given), is_configured=bool(endpoint))


def _token(given: Mapping[str, str]) -> str | None:
    if given.get("HF_HUB_DISABLE_IMPLICIT_TOKEN", "").lower() in _TRUE:
        return None
    text = given.get("HF_TOKEN") or given.get("HUGGING_FACE_HUB_TOKEN") or _from_file(_token_file(given))
    token = "".join(text.split())
    if not token:
        return None
    if len(token) > _MAX_TOKEN_BYTES or not token.isascii() or not token.isprintable():
        raise ConfigError("the hub's token (HF_TOKEN, or the file of `hf auth login`) isn't one line of ASCII")
    return token


def _token_file(given: Mapping[str, str]) -> Path:
    if path := given.get("HF_TOKEN_PATH"):
        return Path(path).expanduser()
    if home := given.get("HF_HOME"):
        return Path(home).expanduser() / "token"
    from huggingface_hub import constants

    return Path(constants.HF_TOKEN_PATH)


def _from_file(path: Path) -> str:
    try:
        with path.open("rb") as handle:
            return handle.read(_MAX_TOKEN_BYTES + 1).decode("utf-8", errors="replace")
    except OSError:  # nobody has logged in
        return ""
