"""The routes: each reads its body and hands an answer to the exchange.

What isn't routed is answered here as well, in plain text: 404 for an unknown path under `/api`, 405 for a known path
asked with another method.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from litestar import Request, Router, route
from litestar.enums import HttpMethod
from litestar.handlers import HTTPRouteHandler
from litestar.types import ASGIApp
from msgspec import Struct

from oprel.dialects.clients import client_key
from oprel.dialects.exchange import Answer, Exchange, Head
from oprel.dialects.ollama import listing
from oprel.dialects.ollama.blobs import BlobQuestion, BlobUpload
from oprel.dialects.ollama.chat import chat
from oprel.dialects.ollama.copy import copy
from oprel.dialects.ollama.create import create
from oprel.dialects.ollama.delete import delete
from oprel.dialects.ollama.embed import embed, embeddings
from oprel.dialects.ollama.errors import Endpoint, OllamaErrors
from oprel.dialects.ollama.generate import generate
from oprel.dialects.ollama.generation import whole
from oprel.dialects.ollama.gojson import dumps
from oprel.dialects.ollama.names import accept_versions
from oprel.dialects.ollama.pull import pull, push
from oprel.dialects.ollama.show import show
from oprel.dialects.services import Services
from oprel.store import Store

__all__ = ["RAW_ROUTES", "ROUTES", "Asked", "RawRoute", "Route", "router"]

_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")


class Asked(Struct, frozen=True):
    """A request as the answers below see it. `is_page`: a browser sent it, of whatever page."""

    services: Services
    errors: OllamaErrors
    body: bytes
    client: str
    user_agent: str = ""
    is_page: bool = False


class Route(Struct, frozen=True):
    path: str
    methods: tuple[str, ...]
    answer: Callable[[Asked], Answer]
    endpoint: Endpoint = "other"


class RawRoute(Struct, frozen=True):
    path: str
    methods: tuple[str, ...]
    app: Callable[[Store, str], ASGIApp]


async def _root(asked: Asked) -> Answer:
    yield _text_head(200, b"Ollama is running")
    yield b"Ollama is running"


async def _version(asked: Asked) -> Answer:
    for part in whole(dumps(listing.version(asked.services))):
        yield part


async def _tags(asked: Asked) -> Answer:
    for part in whole(dumps(await listing.tags(asked.services))):
        yield part


async def _ps(asked: Asked) -> Answer:
    for part in whole(dumps(listing.ps(asked.services))):
        yield part


async def _show(asked: Asked) -> Answer:
    for part in whole(await show(asked.services, asked.body, user_agent=asked.user_agent)):
        yield part


async def _unknown_path(asked: Asked) -> Answer:
    yield _text_head(404, b"404 page not found")
    yield b"404 page not found"


ROUTES: Sequence[Route] = (
    Route("/", ("GET", "HEAD"), _root),
    Route("/api/version", ("GET", "HEAD"), _version),
    Route("/api/tags", ("GET", "HEAD"), _tags),
    Route("/api/ps", ("GET",), _ps),
    Route("/api/show", ("POST",), _show, "show"),
    Route("/api/generate", ("POST",), lambda a: generate(a.services, a.body, a.errors, client=a.client), "generate"),
    Route("/api/chat", ("POST",), lambda a: chat(a.services, a.body, a.errors, client=a.client), "chat"),
    Route("/api/embed", ("POST",), lambda a: embed(a.services, a.body, a.errors, client=a.client), "embed"),
    Route(
        "/api/embeddings", ("POST",), lambda a: embeddings(a.services, a.body, a.errors, client=a.client), "embeddings"
    ),
    Route("/api/copy", ("POST",), lambda a: copy(a.services, a.body)),
    Route("/api/delete", ("DELETE",), lambda a: delete(a.services, a.body), "delete"),
    Route("/api/create", ("POST",), lambda a: create(a.services, a.body), "create"),
    Route("/api/pull", ("POST",), lambda a: pull(a.services, a.body, a.errors, is_page=a.is_page), "pull"),
    Route("/api/push", ("POST",), lambda a: push(a.services, a.body, a.errors, is_page=a.is_page), "push"),
)

# These read their body as it comes; `digest` is the last part of the path.
RAW_ROUTES: Sequence[RawRoute] = (
    RawRoute("/api/blobs/{digest}", ("HEAD",), BlobQuestion),
    RawRoute("/api/blobs/{digest}", ("POST",), BlobUpload),
)


def router(services: Services) -> Router:
    handlers = [_handler(services, each) for each in ROUTES]
    handlers += [_raw_handler(services, each) for each in RAW_ROUTES]
    known: dict[str, tuple[str, ...]] = {}
    for path, methods in [(each.path, each.methods) for each in ROUTES] + [(r.path, r.methods) for r in RAW_ROUTES]:
        known[path] = (*known.get(path, ()), *methods)
    handlers += [_handler(services, _wrong_method(path, methods)) for path, methods in known.items()]
    handlers.append(_handler(services, Route("/api/{rest:path}", _METHODS, _unknown_path)))
    return Router(path="/", route_handlers=handlers, include_in_schema=False)


def _handler(services: Services, each: Route) -> HTTPRouteHandler:
    methods = [HttpMethod(method) for method in each.methods]

    @route(each.path, http_method=methods, name=f"ollama {each.path}", status_code=200)
    async def handle(request: Request[Any, Any, Any]) -> ASGIApp:
        # A body is read whatever its type says: `curl -d` calls JSON a form.
        body = await request.body() if each.methods in (("POST",), ("DELETE",)) else b""
        errors = OllamaErrors(each.endpoint)
        read = request.headers
        user_agent = read.get("user-agent", "")
        accept_versions(user_agent)
        is_page = "origin" in read or read.get("sec-fetch-site", "none") != "none"
        asked = Asked(services, errors, body, client_key(request.scope), user_agent, is_page)
        return Exchange(lambda: each.answer(asked), errors, send_timeout_s=services.settings.send_timeout)

    return handle


def _raw_handler(services: Services, each: RawRoute) -> HTTPRouteHandler:
    methods = [HttpMethod(method) for method in each.methods]
    path = each.path.replace("}", ":str}")

    @route(path, http_method=methods, name=f"ollama {each.methods[0]} {each.path}", status_code=200)
    async def handle(request: Request[Any, Any, Any]) -> ASGIApp:
        return each.app(services.catalog.store, request.path_params["digest"])

    return handle


def _wrong_method(path: str, known: tuple[str, ...]) -> Route:
    allowed = ", ".join(known).encode()
    text = b"405 method not allowed"

    async def answer(asked: Asked) -> Answer:
        yield Head(405, (*_text_head(405, text).headers, (b"allow", allowed)))
        yield text

    return Route(path.replace("}", ":str}"), tuple(method for method in _METHODS if method not in known), answer)


def _text_head(status: int, text: bytes) -> Head:
    content_type = b"text/plain; charset=utf-8" if status == 200 else b"text/plain"
    return Head(status, ((b"content-type", content_type), (b"content-length", b"%d" % len(text))))
