"""The app: wiring, keys, origins, limits, health; and `oprel serve`. Names are loaded when they are first used: a
program that only asks whether a server is there needs no web framework."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from oprel.server.app import create_app
    from oprel.server.running import serve

__all__ = ["create_app", "serve"]


def __getattr__(name: str) -> Any:
    home = {"create_app": "app", "serve": "running"}.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{home}"), name)
