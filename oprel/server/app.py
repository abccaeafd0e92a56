"""The app: the dialects' routes and our own, behind the gate."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from litestar import Litestar, Request, Response
from litestar.datastructures import State
from litestar.exceptions import HTTPException
from litestar.types import ExceptionHandlersMap

from oprel.dialects import anthropic, ollama, openai
from oprel.dialects.services import Services
from oprel.errors import OprelError
from oprel.server.choosing import ByVersion
from oprel.server.gate import Gate
from oprel.server.lifetime import Lifetime
from oprel.server.refusals import refusal, unknown_route
from oprel.server.routes import own_routes

__all__ = ["create_app"]

_log = logging.getLogger("oprel.server")

# Dialects don't know each other; a model's record tells of all of them.
_ENDPOINTS = (*openai.ENDPOINTS, *anthropic.ENDPOINTS, *ollama.ENDPOINTS)


def create_app(services: Services) -> Litestar:
    """`app.state` holds its `gate` and `lifetime`. The app's lifespan starts and stops the scheduler."""
    lifetime = Lifetime(services)

    @asynccontextmanager
    async def live(app: Litestar) -> AsyncGenerator[None, None]:
        async with lifetime:
            yield

    app = Litestar(
        route_handlers=[
            openai.router(services, _ENDPOINTS),
            ollama.router(services),
            anthropic.router(services, _ENDPOINTS),
            own_routes(services, lifetime),
        ],
        lifespan=[live],
        exception_handlers=_exception_handlers(),
        openapi_config=None,
        logging_config=None,
        request_max_body_size=None,  # the gate knows how much, and tells it in the dialect's words
        state=State({"lifetime": lifetime}),
    )
    # Around everything, so that a path without a route is guarded as well; Litestar's own middleware stands inside
    # its routing.
    gate = Gate(ByVersion(app.asgi_handler), services.settings, lifetime)
    app.asgi_handler = gate
    app.state["gate"] = gate
    return app


def _exception_handlers() -> ExceptionHandlersMap:
    """For what escapes a route; dialects render their own errors."""
    return {OprelError: _ours, HTTPException: _routing, Exception: _defect}


def _ours(request: Request[Any, Any, Any], error: OprelError) -> Response[bytes]:
    return refusal(error, request.scope["path"]).as_response()


def _routing(request: Request[Any, Any, Any], error: HTTPException) -> Response[bytes]:
    return unknown_route(error, request.scope["path"]).as_response()


def _defect(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    _log.error("a request failed for a reason that is a defect of this server", exc_info=error)
    return _ours(request, OprelError("internal error: the server's log has the details"))
