"""The Ollama dialect on a real socket, over scripted engines; every answer is held against `specs/ollama.yaml`."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx
import pytest
import uvicorn
from litestar import Litestar

from oprel.config import Settings
from oprel.dialects.ollama import router
from oprel.dialects.services import Services
from oprel.scheduler import Scheduler
from oprel.schema import Model
from oprel.sources import PullProgress
from oprel.testing import Script, ScriptedCatalog, ScriptedDriver, ScriptedRegistry, scripted_model, specs

LIMIT_S = 20


class ScriptedPuller:
    """Tells `steps`, then raises `failure` where there is one; `asked` are the names."""

    def __init__(self) -> None:
        self.steps: list[PullProgress] = []
        self.failure: Exception | None = None
        self.asked: list[tuple[str, bool]] = []

    async def pull(self, name: str, *, insecure: bool = False) -> AsyncGenerator[PullProgress, None]:
        self.asked.append((name, insecure))
        for step in self.steps:
            yield step
        if self.failure is not None:
            raise self.failure


class Served:
    """A client that checks what it gets, and the parts behind the server."""

    def __init__(self, url: str, services: Services, driver: ScriptedDriver, catalog: ScriptedCatalog) -> None:
        self.url = url
        self.services = services
        self.driver = driver
        self.catalog = catalog
        self.puller: Any = services.puller
        self.client = httpx.Client(base_url=url, timeout=LIMIT_S)

    def ask(self, path: str, body: Any = None, *, method: str = "POST", check: bool = True) -> httpx.Response:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        response = self.client.request(method, path, content=b"" if method == "GET" else content)
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
    """`serve(script, *models)` starts a server; `settings` are fields of Settings, `scripts` by model name."""
    with ExitStack() as stack:

        def start(script: Script | None = None, *models: Model, **settings: Any) -> Served:
            return stack.enter_context(_served(script, models or (scripted_model("tiny:latest"),), settings))

        yield start


@contextmanager
def _served(script: Script | None, models: tuple[Model, ...], settings: dict[str, Any]) -> Iterator[Served]:
    driver = ScriptedDriver(script, scripts=settings.pop("scripts", None))
    catalog = ScriptedCatalog(*models, metadata=settings.pop("metadata", None))
    chosen = Settings(**settings)
    scheduler = Scheduler(catalog=catalog, registry=ScriptedRegistry(driver), settings=chosen)
    services = Services(chosen, catalog, scheduler, ScriptedPuller(), "1.2.3")  # type: ignore[arg-type]
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
        started = threading.Event()
        box: list[tuple[asyncio.AbstractEventLoop, uvicorn.Server]] = []
        thread = threading.Thread(target=lambda: asyncio.run(_run(services, listening, started, box)), daemon=True)
        thread.start()
        assert started.wait(LIMIT_S)
        served = Served(f"http://127.0.0.1:{port}", services, driver, catalog)
        try:
            yield served
        finally:
            served.client.close()
            box[0][1].should_exit = True
            thread.join(LIMIT_S)
            assert not thread.is_alive()
    assert driver.alive == []


async def _run(services: Services, listening: socket.socket, started: threading.Event, box: list[Any]) -> None:
    app = Litestar([router(services)], openapi_config=None, logging_config=None)
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off", timeout_graceful_shutdown=5))
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    box.append((asyncio.get_running_loop(), server))
    async with services.scheduler:
        serving = asyncio.ensure_future(server.serve(sockets=[listening]))
        while not server.started and not serving.done():
            await asyncio.sleep(0.01)
        started.set()
        await serving
