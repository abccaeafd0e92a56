"""What becomes of a field of a request, as data: honoured, emulated, refused by name, or accepted and ignored.

Each dialect has tables of these. Its page shows them, its tests hold them against the published document, the check at
the edge applies them, and the record of a model tells them for the engine that the model runs on.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from msgspec import Struct

from oprel.errors import InvalidRequestError, UnsupportedError
from oprel.schema import ALL_SAMPLING, Capabilities

__all__ = [
    "KEEP_ALIVE",
    "LOADING",
    "Endpoint",
    "Record",
    "Rule",
    "Treatment",
    "apply",
    "fields_of_sampling",
    "record",
    "treatments",
]

Treatment = Literal["honoured", "emulated", "partly", "refused", "ignored"]
"""What becomes of a field on one model's engine. "emulated": Oprel does it itself, whatever the engine can. "partly":
some of its values are refused (tools where no call must come, for only one that must can be forced)."""

Record = dict[str, dict[str, Treatment]]
"""Treatments by endpoint and field."""


class Rule(Struct, frozen=True):
    """`low` and `high` are inclusive. `harmless`: values of a refused field that ask for nothing, so they pass.
    `note` says, for one who reads the documentation, what happens and why. `needs` is the capability of the engine, or
    the sampling field, without which an honoured field comes to `lacking` after all."""

    field: str
    treatment: Literal["honoured", "emulated", "refused", "ignored"] = "honoured"
    low: float | None = None
    high: float | None = None
    harmless: tuple[object, ...] = ()
    note: str = ""
    needs: str = ""
    lacking: Literal["partly", "refused", "ignored"] = "refused"


class Endpoint(Struct, frozen=True):
    """A path, and what a body sent there may hold. A model can be asked there whose engine has one of `one_of` and all
    of `needs`."""

    path: str
    rules: tuple[Rule, ...]
    one_of: tuple[str, ...]
    needs: tuple[str, ...] = ()

    def serves(self, capabilities: Capabilities) -> bool:
        return any(getattr(capabilities, name) for name in self.one_of) and all(
            getattr(capabilities, name) for name in self.needs
        )


_INT32 = 2**31 - 1

# How the model is loaded, and for how long: what OpenAI's and Anthropic's documents have no field for.
KEEP_ALIVE = Rule(
    "keep_alive", note="Oprel's own: seconds, or a duration such as `10m`; negative: for ever, as far as may be"
)
LOADING = (
    KEEP_ALIVE,
    Rule("num_ctx", low=4, high=_INT32, note="Oprel's own: the context to load the model with, in tokens"),
    Rule("options", note="Oprel's own: Ollama's options, for what the request doesn't say itself"),
)


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


def record(endpoints: Iterable[Endpoint], capabilities: Capabilities) -> Record:
    """Of the endpoints that a model can be asked at whose engine can do `capabilities`."""
    return {
        endpoint.path: treatments(endpoint.rules, capabilities)
        for endpoint in endpoints
        if endpoint.serves(capabilities)
    }


def treatments(rules: Iterable[Rule], capabilities: Capabilities) -> dict[str, Treatment]:
    """What becomes of each field on an engine that can do `capabilities`, by the field's name."""
    return {rule.field: _treatment(rule, capabilities) for rule in rules}


def fields_of_sampling(rules: Iterable[Rule]) -> dict[str, str]:
    """What a dialect calls the fields of `Sampling`, where it calls them otherwise."""
    return {rule.needs: rule.field for rule in rules if rule.needs in ALL_SAMPLING and rule.needs != rule.field}


def _treatment(rule: Rule, capabilities: Capabilities) -> Treatment:
    if rule.treatment not in ("honoured", "emulated") or not rule.needs:
        return rule.treatment
    if rule.needs in ALL_SAMPLING:
        return rule.treatment if rule.needs in capabilities.sampling else rule.lacking
    if getattr(capabilities, rule.needs):
        return rule.treatment
    if rule.needs == "tools" and not capabilities.can_call("required"):
        return "refused"
    return rule.lacking
