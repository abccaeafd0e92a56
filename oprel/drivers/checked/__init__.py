"""Drivers of third parties behind a wrapper that holds them to the contract: what breaks it is caught and named, and
the server goes on. Drivers that ship with Oprel aren't wrapped: their hot path pays nothing for this."""

from oprel.drivers.checked.driver import CheckedDriver, Limits
from oprel.drivers.checked.engine import CheckedEngine

__all__ = ["CheckedDriver", "CheckedEngine", "Limits"]
