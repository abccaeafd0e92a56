"""The routes: thin. A body of any content type is read whole, and an `Exchange` answers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from litestar import Request, Router, get, post
from litestar.types import ASGIApp

from oprel.dialects.clients import client_key
from oprel.dialects.exchange import Exchange
from oprel.dialects.openai.embeddings import embeddings
from oprel.dialects.openai.errors import ERRORS, OpenAIErrors
from oprel.dialects.openai.generation import chat_completions, completions
from oprel.dialects.openai.models import list_models, retrieve_model
from oprel.dialects.openai.rerank import rerank
from oprel.dialects.openai.responses import response_handlers
from oprel.dialects.openai.rules import ENDPOINTS
from oprel.dialects.openai.tokens import detokenize, tokenize
from oprel.dialects.rules import Endpoint

if TYPE_CHECKING:
    from oprel.dialects.services import Services

__all__ = ["router"]


def router(services: Services, endpoints: Sequence[Endpoint] = ENDPOINTS) -> Router:
    """`/v1`: chat completions, completions, embeddings, models, responses, reranking; and what such servers have beside
    it: `/rerank`, `/tokenize`, `/detokenize`. `endpoints` are those that a model's record tells of."""
    exchange = partial(Exchange, send_timeout_s=services.settings.send_timeout)
    completion_errors, embedding_errors = OpenAIErrors("prompt"), OpenAIErrors("input")

    @post("/chat/completions", status_code=200)
    async def create_chat_completion(request: Request[Any, Any, Any]) -> ASGIApp:
        raw = await request.body()
        return exchange(partial(chat_completions, services, raw, client_key(request.scope)), ERRORS)

    @post("/completions", status_code=200)
    async def create_completion(request: Request[Any, Any, Any]) -> ASGIApp:
        raw = await request.body()
        return exchange(partial(completions, services, raw, client_key(request.scope)), completion_errors)

    @post("/embeddings", status_code=200)
    async def create_embedding(request: Request[Any, Any, Any]) -> ASGIApp:
        raw = await request.body()
        return exchange(partial(embeddings, services, raw, client_key(request.scope)), embedding_errors)

    @get("/models")
    async def get_models() -> ASGIApp:
        return exchange(partial(list_models, services), ERRORS)

    @get("/models/{model_id:path}")
    async def get_model(request: Request[Any, Any, Any]) -> ASGIApp:
        name = str(request.path_params["model_id"]).removeprefix("/")
        return exchange(partial(retrieve_model, services, endpoints, name), ERRORS)

    @post(["/rerank", "/v1/rerank"], status_code=200)
    async def create_ranking(request: Request[Any, Any, Any]) -> ASGIApp:
        raw = await request.body()
        return exchange(partial(rerank, services, raw, client_key(request.scope)), OpenAIErrors("documents"))

    @post("/tokenize", status_code=200)
    async def get_tokens(request: Request[Any, Any, Any]) -> ASGIApp:
        raw = await request.body()
        return exchange(partial(tokenize, services, raw, client_key(request.scope)), OpenAIErrors("content"))

    @post("/detokenize", status_code=200)
    async def get_text(request: Request[Any, Any, Any]) -> ASGIApp:
        raw = await request.body()
        return exchange(partial(detokenize, services, raw, client_key(request.scope)), OpenAIErrors("tokens"))

    published = Router(
        path="/v1",
        route_handlers=[
            create_chat_completion,
            create_completion,
            create_embedding,
            get_models,
            get_model,
            *response_handlers(services),
        ],
        request_max_body_size=services.settings.max_body_bytes,
        include_in_schema=False,
    )
    return Router(
        path="/",
        route_handlers=[published, create_ranking, get_tokens, get_text],
        request_max_body_size=services.settings.max_body_bytes,
        include_in_schema=False,
    )
