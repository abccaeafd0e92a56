"""How long a model stays loaded after a request, as clients write it."""

from __future__ import annotations

import math
import re

from oprel.errors import InvalidRequestError

__all__ = ["keep_alive_s"]

_DURATION = re.compile(r"(?P<sign>[-+]?)(?P<steps>(?:(?:\d+\.?\d*|\.\d+)(?:ns|us|µs|ms|s|m|h))+|0)")
_STEP = re.compile(r"([\d.]+)(ns|us|µs|ms|s|m|h)")
_LONGEST = 100  # the time that the expression takes grows with the square of it
_UNITS_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def keep_alive_s(value: float | str | None) -> float | None:
    """Seconds that the model stays loaded after this request; inf for ever; None: the server's own setting."""
    if value is None:
        return None
    if isinstance(value, str):
        found = _DURATION.fullmatch(value) if len(value) <= _LONGEST else None
        if found is None:
            raise InvalidRequestError(
                f"'keep_alive' is {value[:_LONGEST]!r}; it must be seconds, or a duration such as '10m' or '1h30m'",
                param="keep_alive",
            )
        seconds = sum(float(number) * _UNITS_S[unit] for number, unit in _STEP.findall(found["steps"]))
        value = -1.0 if found["sign"] == "-" and seconds else seconds
    return math.inf if value < 0 else float(value)
