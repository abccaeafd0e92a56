"""The driver contract as tests, and engines that keep it by a script: what tests of drivers and clients stand on.

pytest imports this package at every start (its plugin is an entry point), so names are loaded when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from oprel.testing.catalog import ScriptedCatalog, ScriptedRegistry, scripted_model
    from oprel.testing.clock import FakeClock, eventually
    from oprel.testing.scripted import Call, Script, ScriptedDriver, ScriptedEngine

__all__ = [
    "Call",
    "FakeClock",
    "Script",
    "ScriptedCatalog",
    "ScriptedDriver",
    "ScriptedEngine",
    "ScriptedRegistry",
    "eventually",
    "scripted_model",
]

_HOMES = {
    "Call": "scripted",
    "FakeClock": "clock",
    "Script": "scripted",
    "ScriptedCatalog": "catalog",
    "ScriptedDriver": "scripted",
    "ScriptedEngine": "scripted",
    "ScriptedRegistry": "catalog",
    "eventually": "clock",
    "scripted_model": "catalog",
}


def __getattr__(name: str) -> Any:
    if (home := _HOMES.get(name)) is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{home}"), name)
