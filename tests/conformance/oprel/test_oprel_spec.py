"""Oprel's own routes keep `specs/oprel.yaml`, and the document names all of them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from support.raw_http import RawAnswer, ask
from support.servers import ScriptedServer

from oprel.config import Settings
from oprel.testing import Script, specs

Start = Callable[..., ScriptedServer]


def checked(server: ScriptedServer, path: str, method: str = "GET", **more: object) -> RawAnswer:
    answer = ask(server.port, path, method, **more)  # type: ignore[arg-type]
    specs.validate("oprel", path, method, answer.status, answer.json if answer.body else None)
    return answer


def test_health(scripted_server: Start) -> None:
    server = scripted_server()
    for path in ("/health", "/ready"):
        assert checked(server, path).status == 200
        assert checked(server, path, "HEAD").status == 200
        assert checked(server, path, host="evil.example").status == 403


def test_not_ready(scripted_server: Start) -> None:
    settings = Settings(preload=("scripted",), load_timeout=3600)
    server = scripted_server(Script(start_delay_s=3600), settings=settings)
    assert checked(server, "/ready").status == 503
    assert checked(server, "/ready", "HEAD").status == 503


def test_shutdown(scripted_server: Start) -> None:
    keyed = scripted_server(settings=Settings(api_keys=("k",)))
    assert checked(keyed, "/oprel/shutdown", "POST").status == 401
    server = scripted_server(Script(endless=True, token_delay_s=0.02))
    page = [("Origin", "http://localhost:3000")]
    assert checked(server, "/oprel/shutdown", "POST", headers=page).status == 403
    assert checked(server, "/oprel/shutdown", "POST").status == 202


def test_every_route_of_ours_is_described(scripted_server: Start) -> None:
    from oprel.server.app import create_app

    app = create_app(scripted_server().services)
    described = set(specs.load("oprel")["paths"])
    others = set(specs.load("openai")["paths"]) | {f"/v1{path}" for path in specs.load("openai")["paths"]}
    served = {
        route.path
        for route in app.routes
        if not route.path.startswith(("/api", "/v1", "/anthropic")) and route.path != "/"
    }
    assert served - others == described


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
def test_a_spec_says_what_is_not_there(method: str) -> None:
    with pytest.raises(specs.SpecError):
        specs.validate("oprel", "/health", method, 200, {})


def test_the_document_and_the_page_are_served(scripted_server: Start) -> None:
    server = scripted_server()
    document = checked(server, "/openapi.json").json
    assert {"/health", "/openapi.json", "/api/chat", "/v1/chat/completions"} <= document["paths"].keys()
    page = ask(server.port, "/docs", "GET")
    assert (page.status, dict(page.headers)["content-type"]) == (200, "text/html; charset=utf-8")
    assert b"/v1/chat/completions" in page.body
    assert checked(scripted_server(settings=Settings(api_keys=("k",))), "/openapi.json").status == 401
