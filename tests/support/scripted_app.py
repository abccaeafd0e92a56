"""A dialect's routes over a real scheduler and a scripted engine, in this process."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from litestar import Litestar, Router

from oprel.config import Settings
from oprel.scheduler import Scheduler
from oprel.schema import Model
from oprel.testing import Script, ScriptedCatalog, ScriptedDriver, ScriptedEngine, ScriptedRegistry, scripted_model
from support.asgi import Reply, call

__all__ = ["CHAT", "EMBED", "ScriptedApp", "scripted_app"]

CHAT = "tiny"
EMBED = "mini"


@dataclass
class ScriptedApp:
    app: Litestar
    driver: ScriptedDriver
    scheduler: Scheduler
    catalog: ScriptedCatalog

    @property
    def engine(self) -> ScriptedEngine:
        """The engine that was started last."""
        return self.driver.engines[-1]

    async def post(self, path: str, body: Any, **options: Any) -> Reply:
        return await call(self.app, "POST", path, body, **options)

    async def get(self, path: str) -> Reply:
        return await call(self.app, "GET", path)


@asynccontextmanager
async def scripted_app(
    router: Callable[[Any], Router],
    script: Script | None = None,
    *,
    models: tuple[Model, ...] = (),
    settings: Settings | None = None,
) -> AsyncIterator[ScriptedApp]:
    """Serves a chat model `tiny` and an embedding model `mini`, and `models`. Nothing is running afterwards."""
    settings = settings or Settings()
    catalog = ScriptedCatalog(
        scripted_model(f"{CHAT}:latest"),
        scripted_model(f"{EMBED}:latest", capabilities=frozenset({"embedding"})),
        *models,
    )
    driver = ScriptedDriver(script or Script())
    async with Scheduler(catalog=catalog, registry=ScriptedRegistry(driver), settings=settings) as scheduler:
        services = SimpleNamespace(settings=settings, catalog=catalog, scheduler=scheduler, puller=None, version="1")
        app = Litestar(route_handlers=[router(services)], openapi_config=None, logging_config=None)
        yield ScriptedApp(app, driver, scheduler, catalog)
    assert all(engine.running == 0 for engine in driver.engines), "a request is still running"
