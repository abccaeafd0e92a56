"""What becomes of a field of a request, as data: honoured, refused by name, or accepted and ignored.

Each dialect has tables of these, which its page shows and its tests hold against the published document.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from msgspec import Struct

from oprel.errors import InvalidRequestError, UnsupportedError

__all__ = ["Rule", "apply"]


class Rule(Struct, frozen=True):
    """`low` and `high` are inclusive. `harmless`: values of a refused field that ask for nothing, so they pass.
    `note` says, for one who reads the documentation, what happens and why."""

    field: str
    treatment: Literal["honoured", "refused", "ignored"] = "honoured"
    low: float | None = None
    high: float | None = None
    harmless: tuple[object, ...] = ()
    note: str = ""


def apply(rules: Iterable[Rule], body: Struct) -> None:
    """Raises for the first field that is refused or out of range. None is "not given" everywhere."""
    for rule in rules:
        value = getattr(body, rule.field)
        if value is None:
            continue
        if rule.treatment == "refused" and value not in rule.harmless:
            raise UnsupportedError(
                f"'{rule.field}' is not supported: {rule.note}", capability=rule.field, param=rule.field
            )
        if rule.low is not None and rule.high is not None and not rule.low <= value <= rule.high:
            raise InvalidRequestError(
                f"'{rule.field}' is {value}; it must be between {rule.low} and {rule.high}", param=rule.field
            )
