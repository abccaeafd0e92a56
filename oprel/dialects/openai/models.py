"""`/v1/models` and `/v1/models/{id}`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import msgspec

from oprel.dialects.exchange import Answer, Head
from oprel.dialects.headers import json_headers
from oprel.dialects.openai.wire import ModelEntry, ModelList, ModelServing
from oprel.dialects.rules import Endpoint, record
from oprel.schema import Model

if TYPE_CHECKING:
    from oprel.dialects.services import Services
    from oprel.drivers.prospects import Prospect

__all__ = ["list_models", "retrieve_model"]


async def list_models(services: Services) -> Answer:
    """Each model under its name, and once more under each alias."""
    models = await asyncio.to_thread(services.catalog.list)
    prospects = await services.scheduler.prospects(models)
    told = zip(models, prospects, strict=True)
    entries = {name: _entry(model, name, prospect) for model, prospect in told for name in _names(model)}
    content = msgspec.json.encode(ModelList("list", list(entries.values())))
    yield Head(200, json_headers(content))
    yield content


async def retrieve_model(services: Services, endpoints: Iterable[Endpoint], name: str) -> Answer:
    """`id` is the name that was asked for. What becomes of each field is told for those of `endpoints` that the model
    can be asked at."""
    model = await asyncio.to_thread(services.catalog.find, name)
    (prospect,) = await services.scheduler.prospects([model])
    entry = _entry(model, name, prospect)
    entry.oprel.parameters = record(endpoints, prospect.capabilities)
    content = msgspec.json.encode(entry)
    yield Head(200, json_headers(content))
    yield content


def _names(model: Model) -> Iterator[str]:
    yield model.name
    yield from model.aliases


def _entry(model: Model, name: str, prospect: Prospect) -> ModelEntry:
    serving = ModelServing(
        driver=prospect.driver,
        capabilities=prospect.capabilities.names,
        context_tokens=prospect.context_tokens,
        loaded=prospect.is_loaded,
        problem=prospect.problem,
    )
    return ModelEntry(name, "model", int(model.modified_at), _owner(model.name), serving)


def _owner(name: str) -> str:
    """The namespace: what stands before the last part of a name, without a registry; Ollama's own is "library"."""
    parts = name.split("/")
    return parts[-2] if len(parts) > 1 else "library"
