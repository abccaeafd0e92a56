"""Oprel's own routes: whether the server lives, whether it is ready, its API as a document and a page, and its end."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from litestar import Request, Response, Router, get, post, route

from oprel.dialects.services import Services
from oprel.errors import PermissionDeniedError
from oprel.server.access import is_loopback
from oprel.server.lifetime import Lifetime

__all__ = ["Health", "own_routes"]


class Health(msgspec.Struct):
    """What `/health`, `/ready` and `/oprel/shutdown` answer: which server this is and how it does."""

    status: str
    server: str
    version: str


def own_routes(services: Services, lifetime: Lifetime) -> Router:
    """`/health` answers 200 as long as the process can; `/ready` when models that were to be loaded at start are, and
    not while the server is stopping."""

    def answer(status: str, code: int = 200, headers: dict[str, str] | None = None) -> Response[bytes]:
        body = msgspec.json.encode(Health(status=status, server="oprel", version=services.version))
        return Response(body, status_code=code, headers=headers, media_type="application/json")

    @route("/health", http_method=["GET", "HEAD"])
    async def health() -> Response[bytes]:
        return answer("stopping" if lifetime.is_draining else "ok")

    @route("/ready", http_method=["GET", "HEAD"])
    async def ready() -> Response[bytes]:
        if lifetime.is_draining:
            return answer("stopping", 503)
        if not services.scheduler.is_ready:
            return answer("loading", 503, {"retry-after": "1"})
        return answer("ready")

    @get("/openapi.json")
    async def openapi() -> Response[bytes]:
        from oprel.server.documents import openapi_json

        return Response(await asyncio.to_thread(openapi_json), media_type="application/json")

    @get("/docs")
    async def docs() -> Response[bytes]:
        from oprel.server.page import api_page

        return Response(
            await asyncio.to_thread(api_page),
            media_type="text/html",
            headers={"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'"},
        )

    @post("/oprel/shutdown")
    async def shutdown(request: Request[Any, Any, Any]) -> Response[bytes]:
        _may_stop(request, has_keys=bool(services.settings.api_keys))
        lifetime.stop_requested.set()
        return answer("stopping", 202)

    return Router("/", route_handlers=[health, ready, openapi, docs, shutdown])


def _may_stop(request: Request[Any, Any, Any], *, has_keys: bool) -> None:
    """A program on this machine, or one with a key (which the gate has checked by now); never a page in a browser."""
    if "origin" in request.headers:
        raise PermissionDeniedError("a page in a browser can't stop the server: use `oprel stop`")
    client = request.scope["client"]
    if not has_keys and (client is None or not is_loopback(client[0])):
        raise PermissionDeniedError("only a program on the server's machine can stop it, for it has no keys")
