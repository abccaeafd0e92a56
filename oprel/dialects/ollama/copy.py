"""POST /api/copy."""

from __future__ import annotations

import asyncio

from oprel.dialects.exchange import Answer, Head
from oprel.dialects.ollama.errors import refusal
from oprel.dialects.ollama.gojson import go_quoted
from oprel.dialects.ollama.wire import CopyRequest, read
from oprel.dialects.services import Services
from oprel.errors import InvalidNameError, ModelNotFoundError
from oprel.schema import Model
from oprel.store import ModelName

__all__ = ["copy"]


async def copy(services: Services, body: bytes) -> Answer:
    """An alias stands for the model that it leads to. A destination that is there already stands for the copy now.
    Both names are read before anything is looked for."""
    asked, _ = read(body, CopyRequest)
    source = await _find(services, asked.source)
    try:
        destination = ModelName.parse(asked.destination)
    except InvalidNameError:
        raise refusal("invalid_destination", name=go_quoted(asked.destination)) from None
    if source is None:
        raise refusal("no_such_source", name=go_quoted(asked.source))
    if source.remote is not None:
        raise refusal("remote_model", name=source.name)
    await asyncio.to_thread(services.catalog.copy, source, destination)
    yield Head(200, ((b"content-length", b"0"),))


async def _find(services: Services, raw: str) -> Model | None:
    try:
        if "@" in raw:
            raise InvalidNameError("a version can't be copied", name=raw)
        return await asyncio.to_thread(services.catalog.find, raw)
    except InvalidNameError:
        raise refusal("invalid_source", name=go_quoted(raw)) from None
    except ModelNotFoundError:
        return None
