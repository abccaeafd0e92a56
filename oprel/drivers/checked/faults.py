"""The one sentence that names a driver and what it did."""

from __future__ import annotations

import logging

from oprel.drivers.calls import Hung, Raised
from oprel.errors import OprelError

__all__ = ["Broken", "broke", "log", "own_error"]

log = logging.getLogger("oprel.drivers")


class Broken(Exception):
    """The contract was broken in the way that the text says (a clause: "its chat() yielded …")."""


def broke(driver: str, what: object) -> str:
    return f"the driver {driver!r} broke the driver contract: {what}"


def own_error(failure: Raised | Hung) -> OprelError | None:
    """The error of our tree that the driver raised, as it may."""
    error = failure.error if isinstance(failure, Raised) else None
    return error if isinstance(error, OprelError) else None
