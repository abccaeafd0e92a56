"""GET /api/version, /api/tags and /api/ps."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterator, Sequence
from typing import Any

from msgspec import Struct

from oprel.dialects.ollama.durations import FOREVER_S, local_time
from oprel.dialects.ollama.names import displayed
from oprel.dialects.services import Services
from oprel.scheduler import LoadedModel
from oprel.schema import Model

__all__ = ["OLLAMA_VERSION", "Details", "details", "ps", "shown_capabilities", "tags", "version"]

# The version of the interface that is kept; clients compare it with what they need.
OLLAMA_VERSION = "0.33.0"
# Clients cut the first twelve digits off, whatever there is.
_NO_DIGEST = "0" * 64
_PRESUMED = frozenset({"completion"})


class Details(Struct, frozen=True, omit_defaults=True):
    parent_model: str
    format: str
    family: str
    families: Sequence[str] | None
    parameter_size: str
    quantization_level: str
    context_length: int = 0
    embedding_length: int = 0


class Damage(Struct, frozen=True):
    """What Oprel tells beside Ollama's fields of a model that can't be loaded."""

    damage: str


class Listed(Struct, frozen=True, omit_defaults=True):
    name: str
    model: str
    modified_at: str
    size: int
    digest: str
    details: Details
    capabilities: Sequence[str] = ()
    oprel: Damage | None = None


class OprelState(Struct, frozen=True):
    """What Oprel tells beside Ollama's fields."""

    driver: str
    engine: str
    device: str
    state: str
    slots: int
    slots_in_use: int
    queued: int
    warnings: Sequence[str]


class Running(Struct, frozen=True):
    name: str
    model: str
    size: int
    digest: str
    details: Details
    expires_at: str
    size_vram: int
    context_length: int
    oprel: OprelState


def version(services: Services) -> dict[str, str]:
    return {"version": OLLAMA_VERSION, "oprel": services.version}


async def tags(services: Services) -> dict[str, Any]:
    models = await asyncio.to_thread(services.catalog.list)
    return {"models": [item for model in models for item in _listed(model)]}


def _listed(model: Model) -> Iterator[Listed]:
    """A model stands under its own name and under each of its aliases; a damaged one too, with empty values where
    nothing is known of it."""
    for name in dict.fromkeys((displayed(model.name), *map(displayed, model.aliases))):
        yield Listed(
            name=name,
            model=name,
            modified_at=local_time(model.modified_at),
            size=model.size_bytes,
            digest=model.digest or _NO_DIGEST,
            details=details(model, parent=model.parent, lengths=True),
            capabilities=tuple(sorted(shown_capabilities(model))),
            oprel=None if model.damage is None else Damage(model.damage),
        )


def shown_capabilities(model: Model) -> frozenset[str]:
    """What isn't known of a model elsewhere is shown as what most can."""
    return model.capabilities or (_PRESUMED if model.remote is not None else frozenset())


def details(model: Model, *, parent: str = "", lengths: bool = False) -> Details:
    return Details(
        parent_model=parent,
        format=model.format,
        family=next(iter(model.families), model.architecture),  # a folder's architecture is a class
        families=model.families or None,
        parameter_size=model.parameter_size,
        quantization_level=model.quantization,
        context_length=(model.context_tokens or 0) if lengths else 0,
        embedding_length=(model.embedding_length or 0) if lengths else 0,
    )


def ps(services: Services) -> dict[str, Any]:
    return {"models": [_running(loaded) for loaded in services.scheduler.loaded()]}


def _running(loaded: LoadedModel) -> Running:
    # The name that people use for it, which /api/tags has too; no plan yet while it starts.
    name, plan = displayed(next(iter(loaded.model.aliases), loaded.name)), loaded.plan
    return Running(
        name=name,
        model=name,
        size=loaded.size_bytes,
        digest=loaded.model.digest,
        details=details(loaded.model),
        expires_at=local_time(_shown_time(loaded.expires_at)),
        size_vram=loaded.vram_bytes,
        context_length=plan.context_tokens if plan else 0,
        oprel=OprelState(
            driver=plan.driver if plan else "",
            engine=plan.engine if plan else "",
            device=plan.device if plan else "",
            state=loaded.state,
            slots=loaded.slots,
            slots_in_use=loaded.slots_in_use,
            queued=loaded.queued,
            warnings=[f"{warning.code}; {warning.text}" for warning in loaded.warnings],
        ),
    )


def _shown_time(expires_at: float) -> float:
    """For ever is shown as about 292 years from now, the longest time that Go can say."""
    return time.time() + FOREVER_S if math.isinf(expires_at) else expires_at
