"""The routes: thin. Each is there twice, so that `http://HOST/anthropic` is a base URL of its own: the lists of models
of this dialect and of OpenAI's have one path and two forms, and the server sends who names Anthropic's version there.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from litestar import Request, Router, get, post
from litestar.types import ASGIApp

from oprel.dialects.anthropic.errors import ERRORS
from oprel.dialects.anthropic.generation import count_tokens, messages
from oprel.dialects.anthropic.models import list_models, retrieve_model
from oprel.dialects.anthropic.rules import ENDPOINTS
from oprel.dialects.clients import client_key
from oprel.dialects.exchange import Exchange
from oprel.dialects.rules import Endpoint

if TYPE_CHECKING:
    from oprel.dialects.services import Services

__all__ = ["router"]

_OWN = "/anthropic"


def router(services: Services, endpoints: Sequence[Endpoint] = ENDPOINTS) -> Router:
    """`/v1/messages` and the counting of tokens, and the same with the models below `/anthropic`. `endpoints` are those
    that a model's record tells of."""
    exchange = partial(Exchange, send_timeout_s=services.settings.send_timeout)

    @post(["/v1/messages", f"{_OWN}/v1/messages"], status_code=200)
    async def create_message(request: Request[Any, Any, Any]) -> ASGIApp:
        raw = await request.body()
        return exchange(partial(messages, services, raw, client_key(request.scope)), ERRORS)

    @post(["/v1/messages/count_tokens", f"{_OWN}/v1/messages/count_tokens"], status_code=200)
    async def count_message_tokens(request: Request[Any, Any, Any]) -> ASGIApp:
        raw = await request.body()
        return exchange(partial(count_tokens, services, raw, client_key(request.scope)), ERRORS)

    @get(f"{_OWN}/v1/models")
    async def get_models(request: Request[Any, Any, Any]) -> ASGIApp:
        query = {name: request.query_params[name] for name in request.query_params}
        return exchange(partial(list_models, services, query), ERRORS)

    @get(f"{_OWN}/v1/models/{{model_id:path}}")
    async def get_model(request: Request[Any, Any, Any]) -> ASGIApp:
        name = str(request.path_params["model_id"]).removeprefix("/")
        return exchange(partial(retrieve_model, services, endpoints, name), ERRORS)

    return Router(
        path="/",
        route_handlers=[create_message, count_message_tokens, get_models, get_model],
        request_max_body_size=services.settings.max_body_bytes,
        include_in_schema=False,
    )
