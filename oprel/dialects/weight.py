"""How much a body may hold, looked at before it is parsed.

What a parser makes of JSON is many times as large as the text, and it is made in one go: while ten million empty arrays
come into being no other request is served, whichever thread it is done in. So the marks that stand between values are
counted first, which costs next to nothing. Those inside texts count too; a text with so many is far beyond any context.
"""

from __future__ import annotations

from oprel.errors import InvalidRequestError

__all__ = ["MAX_CONTAINERS", "MAX_KEYS", "MAX_VALUES", "check_weight"]

MAX_VALUES = 1_000_000
MAX_KEYS = 400_000
MAX_CONTAINERS = 200_000

_STEP = 1 << 20


def check_weight(body: bytes) -> None:
    """Raises InvalidRequestError for a body with more commas than MAX_VALUES, more colons than MAX_KEYS, or more
    opening brackets and braces than MAX_CONTAINERS."""
    if len(body) <= MAX_CONTAINERS:
        return
    values = keys = containers = 0
    for start in range(0, len(body), _STEP):  # what is made of commas alone ends early
        end = start + _STEP
        values += body.count(b",", start, end)
        keys += body.count(b":", start, end)
        containers += body.count(b"[", start, end) + body.count(b"{", start, end)
        if values > MAX_VALUES:
            raise InvalidRequestError(f"the body holds more than {MAX_VALUES} values (its commas were counted)")
        if keys > MAX_KEYS:
            raise InvalidRequestError(f"the body holds more than {MAX_KEYS} keys (its colons were counted)")
        if containers > MAX_CONTAINERS:
            raise InvalidRequestError(
                f"the body holds more than {MAX_CONTAINERS} arrays and objects (its opening brackets were counted)"
            )
