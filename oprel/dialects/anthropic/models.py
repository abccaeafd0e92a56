"""`/v1/models` and `/v1/models/{id}`, as Anthropic's clients read them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec
from msgspec import UNSET

from oprel.dialects.anthropic.errors import id_header
from oprel.dialects.anthropic.wire import ModelEntry, ModelList, ModelServing
from oprel.dialects.exchange import Answer, Head
from oprel.dialects.headers import json_headers
from oprel.dialects.rules import Endpoint, record
from oprel.errors import InvalidRequestError
from oprel.schema import Model

if TYPE_CHECKING:
    from oprel.dialects.services import Services
    from oprel.drivers.prospects import Prospect

__all__ = ["list_models", "retrieve_model"]

_MOST = 1000


async def list_models(services: Services, query: Mapping[str, str]) -> Answer:
    """Each model under its name, and once more under each alias. `query` may cut a page out: `limit`, and `after_id`
    or `before_id`; without a limit all are told."""
    models = await asyncio.to_thread(services.catalog.list)
    prospects = await services.scheduler.prospects(models)
    told = zip(models, prospects, strict=True)
    entries = {name: _entry(model, name, prospect) for model, prospect in told for name in _names(model)}
    page, has_more = _page(list(entries.values()), query)
    first, last = (page[0].id, page[-1].id) if page else (None, None)
    content = msgspec.json.encode(ModelList(page, has_more, first, last))
    yield Head(200, json_headers(content) + id_header())
    yield content


async def retrieve_model(services: Services, endpoints: Iterable[Endpoint], name: str) -> Answer:
    """`id` is the name that was asked for. What becomes of each field is told for those of `endpoints` that the model
    can be asked at."""
    model = await asyncio.to_thread(services.catalog.find, name)
    (prospect,) = await services.scheduler.prospects([model])
    entry = _entry(model, name, prospect)
    entry.oprel.parameters = record(endpoints, prospect.capabilities)
    content = msgspec.json.encode(entry)
    yield Head(200, json_headers(content) + id_header())
    yield content


def _page(entries: list[ModelEntry], query: Mapping[str, str]) -> tuple[list[ModelEntry], bool]:
    """The entries, and whether there are more in the direction that was asked for."""
    limit = _limit(query.get("limit"))
    if (after := query.get("after_id")) is not None:
        entries = entries[_position(entries, after, "after_id") + 1 :]
    elif (before := query.get("before_id")) is not None:
        entries = entries[: _position(entries, before, "before_id")]
        return entries[-limit:], len(entries) > limit
    return entries[:limit], len(entries) > limit


def _limit(text: str | None) -> int:
    if text is None:
        return _MOST
    if not (text.isascii() and text.isdigit() and len(text) <= 4 and 1 <= int(text) <= _MOST):
        raise InvalidRequestError(f"'limit' is {text[:40]!r}; it must be between 1 and {_MOST}", param="limit")
    return int(text)


def _position(entries: list[ModelEntry], id_: str, param: str) -> int:
    for at, entry in enumerate(entries):
        if entry.id == id_:
            return at
    raise InvalidRequestError(f"'{param}' is {id_[:80]!r}, which is no model here", param=param)


def _names(model: Model) -> Iterator[str]:
    yield model.name
    yield from model.aliases


def _entry(model: Model, name: str, prospect: Prospect) -> ModelEntry:
    parts = model.name.split("/")
    return ModelEntry(
        id=name,
        display_name=name,
        created_at=datetime.fromtimestamp(int(model.modified_at), UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        max_input_tokens=prospect.context_tokens or None,
        created=int(model.modified_at),
        owned_by=parts[-2] if len(parts) > 1 else "library",
        oprel=ModelServing(
            loaded=prospect.is_loaded,
            capabilities=prospect.capabilities.names,
            driver=prospect.driver or UNSET,
            context_tokens=prospect.context_tokens or UNSET,
            problem=prospect.problem or UNSET,
        ),
    )
