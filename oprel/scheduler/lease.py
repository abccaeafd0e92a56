"""What the scheduler gives out: leases, and the listing of what is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from msgspec import Struct

from oprel.drivers import Engine
from oprel.schema import Model, Plan, events

__all__ = ["Lease", "LoadedModel"]


@dataclass(frozen=True, slots=True)
class Lease:
    """One request's hold on a ready engine, and on one of its slots.

    `plan` is what was realized. Seconds: `load_s` from the request's arrival until the engine was ready (above 0 even
    when it was ready before), `queued_s` from then until a slot was free. `warnings` are what the client should be
    told about how the model was loaded.
    """

    engine: Engine
    model: Model
    plan: Plan
    load_s: float
    queued_s: float
    warnings: tuple[events.Warning, ...] = ()


class LoadedModel(Struct, frozen=True):
    """`name` is the model's own, whichever alias asked for it; `expires_at` is Unix time, inf for ever, and moves while
    requests run; the sizes are the plan's, corrected by what was measured."""

    model: Model
    name: str
    plan: Plan
    size_bytes: int
    vram_bytes: int
    expires_at: float
    slots: int
    slots_in_use: int
    queued: int
    state: Literal["starting", "ready", "draining"]
    warnings: tuple[events.Warning, ...] = ()
