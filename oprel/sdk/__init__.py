"""What a program imports; each name is loaded when it is first used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from oprel.sdk.async_client import AsyncClient
    from oprel.sdk.client import Client
    from oprel.sdk.model import Model
    from oprel.sdk.options import Config

__all__ = ["AsyncClient", "Client", "Config", "Model"]

_HOMES = {"AsyncClient": "async_client", "Client": "client", "Config": "options", "Model": "model"}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{home}"), name)
