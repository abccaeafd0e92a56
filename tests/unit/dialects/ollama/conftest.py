"""The app on a real socket, over scripted engines; every answer is held against `specs/ollama.yaml`."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import httpx
import pytest
from support.servers import ScriptedServer, scripted_server

from oprel.config import Settings
from oprel.schema import Model
from oprel.sources import PullProgress, PullWish
from oprel.store import GgufMetadata
from oprel.testing import Script, ScriptedCatalog, scripted_model, specs

LIMIT_S = 20


class ScriptedPuller:
    """Tells `steps`, then raises `failure` where there is one; `asked` are the names."""

    def __init__(self) -> None:
        self.steps: list[PullProgress] = []
        self.failure: Exception | None = None
        self.asked: list[tuple[str, bool]] = []
        self.wishes: list[PullWish | None] = []

    async def pull(
        self, name: str, *, insecure: bool = False, wish: PullWish | None = None
    ) -> AsyncGenerator[PullProgress, None]:
        self.asked.append((name, insecure))
        self.wishes.append(wish)
        for step in self.steps:
            yield step
        if self.failure is not None:
            raise self.failure

    push = pull


class Served:
    """A client that checks what it gets, and the parts behind the server."""

    def __init__(self, server: ScriptedServer) -> None:
        self.url = server.url
        self.driver = server.driver
        self.catalog = server.catalog
        self.puller: Any = server.services.puller
        self.client = httpx.Client(base_url=self.url, timeout=LIMIT_S)

    def ask(
        self, path: str, body: Any = None, *, method: str = "POST", check: bool = True, **headers: str
    ) -> httpx.Response:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        response = self.client.request(method, path, content=b"" if method == "GET" else content, headers=sent)
        if check:
            validate(path, method, response)
        return response

    def json(self, path: str, body: Any = None, *, method: str = "POST") -> Any:
        response = self.ask(path, body, method=method)
        assert response.status_code == 200, response.text
        return response.json()

    def lines(self, path: str, body: Any) -> list[Any]:
        response = self.ask(path, body)
        assert response.status_code == 200, response.text
        assert response.headers["content-type"] == "application/x-ndjson"
        return [json.loads(line) for line in response.content.splitlines()]

    def refused(self, path: str, body: Any, *, method: str = "POST") -> tuple[int, str]:
        response = self.ask(path, body, method=method)
        assert response.status_code >= 400, response.text
        assert response.headers["content-type"].startswith("application/json")
        return response.status_code, response.json()["error"]

    @property
    def engine(self) -> Any:
        (engine,) = self.driver.engines
        return engine

    @property
    def request(self) -> Any:
        """What the only engine was asked last."""
        return self.engine.calls[-1].request


def validate(path: str, method: str, response: httpx.Response) -> None:
    if response.headers.get("content-type") == "application/x-ndjson":
        assert response.content.endswith(b"\n")
        for line in response.content.splitlines():
            specs.validate_event("ollama", path, method, json.loads(line))
        return
    body = response.json() if response.content else None
    specs.validate("ollama", path, method, response.status_code, body)


Serve = Callable[..., Served]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """`serve(script, *models)` starts a server; `scripts` and `metadata` by model name, the rest are settings."""
    with ExitStack() as stack:

        def start(
            script: Script | None = None,
            *models: Model,
            scripts: Mapping[str, Script] | None = None,
            metadata: Mapping[str, GgufMetadata] | None = None,
            catalog: Any = None,
            **settings: Any,
        ) -> Served:
            server = scripted_server(
                script,
                scripts=scripts,
                catalog=catalog or ScriptedCatalog(*(models or (scripted_model("tiny:latest"),)), metadata=metadata),
                settings=Settings(**settings),
                puller=ScriptedPuller(),
            )
            served = Served(stack.enter_context(server))
            stack.callback(served.client.close)
            return served

        yield start
