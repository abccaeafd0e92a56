"""`/v1/models` and `/v1/models/{id}`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import msgspec

from oprel.dialects.exchange import Answer, Head
from oprel.dialects.headers import json_headers
from oprel.dialects.openai import rules
from oprel.dialects.openai.wire import ModelEntry, ModelList, ModelServing
from oprel.dialects.rules import Treatment, treatments
from oprel.schema import Capabilities, Model

if TYPE_CHECKING:
    from oprel.dialects.services import Services
    from oprel.drivers.prospects import Prospect

__all__ = ["list_models", "parameters_of", "retrieve_model"]

_ENDPOINTS: Mapping[str, tuple[str, tuple[rules.Rule, ...]]] = {
    "/v1/chat/completions": ("chat", rules.CHAT),
    "/v1/responses": ("chat", rules.RESPONSES),
    "/v1/completions": ("complete", rules.COMPLETIONS),
    "/v1/embeddings": ("embed", rules.EMBEDDINGS),
    "/v1/rerank": ("rerank", rules.RERANK),
}


async def list_models(services: Services) -> Answer:
    """Each model under its name, and once more under each alias."""
    models = await asyncio.to_thread(services.catalog.list)
    prospects = await services.scheduler.prospects(models)
    told = zip(models, prospects, strict=True)
    entries = {name: _entry(model, name, prospect) for model, prospect in told for name in _names(model)}
    content = msgspec.json.encode(ModelList("list", list(entries.values())))
    yield Head(200, json_headers(content))
    yield content


async def retrieve_model(services: Services, name: str) -> Answer:
    """`id` is the name that was asked for."""
    model = await asyncio.to_thread(services.catalog.find, name)
    (prospect,) = await services.scheduler.prospects([model])
    entry = _entry(model, name, prospect)
    entry.oprel.parameters = parameters_of(prospect.capabilities)
    content = msgspec.json.encode(entry)
    yield Head(200, json_headers(content))
    yield content


def parameters_of(capabilities: Capabilities) -> dict[str, dict[str, Treatment]]:
    """By endpoint that the model can be asked at: what becomes of each field. The tables are those of the
    documentation, and of the check at the edge."""
    return {
        endpoint: treatments(table, capabilities)
        for endpoint, (capability, table) in _ENDPOINTS.items()
        if getattr(capabilities, capability)
    }


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
