"""What becomes of a field of a request, as data: honoured, refused by name, or accepted and ignored.

Each dialect has tables of these, which its page shows and its tests hold against the published document.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from msgspec import Struct

from oprel.errors import InvalidRequestError, UnsupportedError
from oprel.schema import ALL_SAMPLING, Capabilities

__all__ = ["Rule", "Treatment", "apply", "treatments"]

Treatment = Literal["honoured", "partly", "refused", "ignored"]
"""What becomes of a field on one model's engine; "partly": tools where a call must come, for it can be forced."""


class Rule(Struct, frozen=True):
    """`low` and `high` are inclusive. `harmless`: values of a refused field that ask for nothing, so they pass.
    `note` says, for one who reads the documentation, what happens and why. `needs` is the capability of the engine, or
    the sampling field, without which an honoured field is refused after all."""

    field: str
    treatment: Literal["honoured", "refused", "ignored"] = "honoured"
    low: float | None = None
    high: float | None = None
    harmless: tuple[object, ...] = ()
    note: str = ""
    needs: str = ""


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


def treatments(rules: Iterable[Rule], capabilities: Capabilities) -> dict[str, Treatment]:
    """What becomes of each field on an engine that can do `capabilities`, by the field's name."""
    return {rule.field: _treatment(rule, capabilities) for rule in rules}


def _treatment(rule: Rule, capabilities: Capabilities) -> Treatment:
    if rule.treatment != "honoured" or not rule.needs:
        return rule.treatment
    if rule.needs in ALL_SAMPLING:
        return "honoured" if rule.needs in capabilities.sampling else "refused"
    if getattr(capabilities, rule.needs):
        return "honoured"
    return "partly" if rule.needs == "tools" and capabilities.can_call("required") else "refused"
