"""What every dialect is given to do its work with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from oprel.config import Settings
    from oprel.drivers.registry import Registry
    from oprel.scheduler import Scheduler
    from oprel.sources import Puller
    from oprel.store import Catalog
    from oprel.store.running_mark import RunningMark

__all__ = ["Services"]


@dataclass(frozen=True, slots=True)
class Services:
    """One for a server's life; `version` is Oprel's. `registry` None: a server whose scheduler has its own drivers.
    `mark` tells the next server whether this one ended as it should."""

    settings: Settings
    catalog: Catalog
    scheduler: Scheduler
    puller: Puller
    version: str
    registry: Registry | None = None
    mark: RunningMark | None = None
