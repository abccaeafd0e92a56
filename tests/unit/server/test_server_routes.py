"""What the server serves, and what the documents describe, are the same."""

from __future__ import annotations

import re
from collections.abc import Callable

from litestar import Litestar
from litestar.routes import HTTPRoute
from support.servers import ScriptedServer

from oprel.dialects.ollama.routes import RAW_ROUTES, ROUTES
from oprel.server.app import create_app
from oprel.server.documents import base_paths, documents, load

Operation = tuple[str, str]

METHODS = ("get", "head", "post", "put", "patch", "delete")
NOTHING = "/api/{}"  # answers what is not there


def nameless(path: str) -> str:
    return re.sub(r"\{[^}]*\}", "{}", path)


def described() -> set[Operation]:
    return {
        (method.upper(), nameless(base + path))
        for name in documents()
        for path, item in load(name)["paths"].items()
        for base in base_paths(load(name), item)
        for method in METHODS
        if method in item
    }


def served(app: Litestar) -> set[Operation]:
    """Without OPTIONS, and without the methods that are there to be refused in Ollama's words."""
    routes = [route for route in app.routes if isinstance(route, HTTPRoute)]
    found = {(method, nameless(route.path)) for route in routes for method in route.methods if method != "OPTIONS"}
    ollama = {(method, nameless(each.path)) for each in (*ROUTES, *RAW_ROUTES) for method in each.methods}
    paths = {path for _, path in ollama}
    return {(method, path) for method, path in found if path not in paths and path != NOTHING} | ollama


def test_each_route_is_described_and_each_description_served(
    scripted_server: Callable[..., ScriptedServer],
) -> None:
    app = create_app(scripted_server().services)
    assert served(app) == described()
