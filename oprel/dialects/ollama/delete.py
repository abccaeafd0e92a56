"""DELETE /api/delete."""

from __future__ import annotations

import asyncio

from oprel.dialects.exchange import Answer, Head
from oprel.dialects.ollama import admission
from oprel.dialects.ollama.errors import refusal
from oprel.dialects.ollama.gojson import go_quoted
from oprel.dialects.ollama.wire import DeleteRequest, read
from oprel.dialects.services import Services
from oprel.errors import InvalidNameError

__all__ = ["delete"]


async def delete(services: Services, body: bytes) -> Answer:
    """An engine that runs the model keeps running. An alias stands for the model that it leads to."""
    asked, _ = read(body, DeleteRequest)
    raw = asked.model or asked.name
    if not raw:
        raise refusal("model_required")
    try:
        _, model = await admission.find(services, raw, patterns=False)
    except InvalidNameError:
        raise refusal("invalid_name", name=go_quoted(raw)) from None
    if model.remote is not None:
        raise refusal("remote_model", name=model.name)
    if not await asyncio.to_thread(services.catalog.delete, model.name):
        raise refusal("not_our_store", name=model.name)
    yield Head(200, ((b"content-length", b"0"),))
