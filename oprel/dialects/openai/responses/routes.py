"""The routes of `/v1/responses`."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from litestar import Request, delete, get, post
from litestar.handlers import HTTPRouteHandler
from litestar.types import ASGIApp

from oprel.dialects.clients import client_key
from oprel.dialects.exchange import Exchange
from oprel.dialects.openai.errors import ERRORS
from oprel.dialects.openai.responses.creation import create_response
from oprel.dialects.openai.responses.errors import ResponseErrors
from oprel.dialects.openai.responses.keeping import ResponseStore
from oprel.dialects.openai.responses.retrieval import (
    cancel_response,
    delete_response,
    list_input_items,
    retrieve_response,
)

if TYPE_CHECKING:
    from oprel.dialects.services import Services

__all__ = ["response_handlers"]


def response_handlers(services: Services) -> list[HTTPRouteHandler]:
    exchange = partial(Exchange, send_timeout_s=services.settings.send_timeout)
    store = ResponseStore(services.settings.state_dir / "responses")

    @post("/responses", status_code=200)
    async def create(request: Request[Any, Any, Any]) -> ASGIApp:
        raw = await request.body()
        errors = ResponseErrors()
        return exchange(partial(create_response, services, store, errors, raw, client_key(request.scope)), errors)

    @get("/responses/{response_id:str}")
    async def retrieve(request: Request[Any, Any, Any]) -> ASGIApp:
        return exchange(partial(retrieve_response, store, _id(request), request.query_params), ERRORS)

    @delete("/responses/{response_id:str}", status_code=200)
    async def remove(request: Request[Any, Any, Any]) -> ASGIApp:
        return exchange(partial(delete_response, store, _id(request)), ERRORS)

    @get("/responses/{response_id:str}/input_items")
    async def input_items(request: Request[Any, Any, Any]) -> ASGIApp:
        return exchange(partial(list_input_items, store, _id(request), request.query_params), ERRORS)

    @post("/responses/{response_id:str}/cancel", status_code=200)
    async def cancel(request: Request[Any, Any, Any]) -> ASGIApp:
        return exchange(partial(cancel_response, store, _id(request)), ERRORS)

    return [create, retrieve, remove, input_items, cancel]


def _id(request: Request[Any, Any, Any]) -> str:
    return str(request.path_params["response_id"])
