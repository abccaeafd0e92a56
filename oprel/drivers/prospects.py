"""What would serve a model, and why, told before anything is loaded."""

from __future__ import annotations

from typing import Protocol

import msgspec
from msgspec import Struct

from oprel.drivers.contract import Driver
from oprel.drivers.templated import plan_for
from oprel.errors import OprelError
from oprel.schema import Capabilities, Hardware, LoadOptions, Model, Plan, promised

__all__ = ["Drivers", "Prospect", "look_ahead"]


class Drivers(Protocol):
    """What is asked of the registry."""

    def choose(self, model: Model, hardware: Hardware, wanted: str = "auto") -> tuple[Driver, str]: ...

    def others(self, model: Model, hardware: Hardware, chosen: str | None) -> tuple[tuple[str, str], ...]: ...


class Prospect(Struct, frozen=True):
    """`driver` None: nothing can serve the model, and `reason` says why. `others` are the drivers that were not chosen,
    each with its reason. `plan` None: there is none, and `problem` says why. `capabilities` are the engine's own once
    the model `is_loaded`, and the driver's promise before."""

    driver: str | None
    reason: str
    others: tuple[tuple[str, str], ...]
    capabilities: Capabilities
    plan: Plan | None = None
    problem: str | None = None
    is_loaded: bool = False

    @property
    def context_tokens(self) -> int | None:
        """For one request."""
        return self.plan.context_tokens if self.plan is not None else self.capabilities.context_tokens


def look_ahead(
    drivers: Drivers, model: Model, hardware: Hardware, *, options: LoadOptions, wanted: str = "auto"
) -> Prospect:
    """Never raises for what can't be: it is part of the answer. Touches no file of the model; may block on drivers."""
    if model.damage is not None:
        return _nothing(model, f"the model can't be loaded: {model.damage}", ())
    try:
        driver, reason = drivers.choose(model, hardware, wanted)
    except OprelError as error:
        return _nothing(model, error.message, drivers.others(model, hardware, None))
    plan: Plan | None = None
    problem: str | None = None
    try:
        plan = plan_for(model, driver.plan(model, options, hardware))
    except OprelError as error:
        problem = error.message
    except Exception as error:  # a driver that breaks the contract
        problem = f"the driver {driver.name!r} failed to plan it: {error!r}"
    return Prospect(
        driver=driver.name,
        reason=reason,
        others=drivers.others(model, hardware, driver.name),
        capabilities=_capabilities(driver, model, hardware, plan),
        plan=plan,
        problem=problem,
    )


def _nothing(model: Model, reason: str, others: tuple[tuple[str, str], ...]) -> Prospect:
    return Prospect(driver=None, reason=reason, others=others, capabilities=promised(model), problem=reason)


def _capabilities(driver: Driver, model: Model, hardware: Hardware, plan: Plan | None) -> Capabilities:
    """With what only the plan tells: the context, and a template that was given with the options."""
    found = driver.capabilities(model, hardware)
    if plan is None:
        return found
    return msgspec.structs.replace(found, chat=found.chat or plan.chat, context_tokens=plan.context_tokens)
