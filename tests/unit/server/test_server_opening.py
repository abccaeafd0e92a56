"""What a server does with a store when it opens: counts the models at once, and looks into them afterwards."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from support.ollama_store import OllamaStore
from support.tiny_gguf import gguf_bytes

from oprel.config import Settings
from oprel.dialects.services import Services
from oprel.scheduler import Scheduler
from oprel.server.opening import look_into_models, opening_lines
from oprel.sources import Puller
from oprel.store import Catalog
from oprel.testing import Script, ScriptedDriver, ScriptedRegistry


def test_models_are_counted_first_and_looked_into_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ollamas = OllamaStore(tmp_path / "models")
    for number in range(3):
        ollamas.add(f"m{number}", [("model", gguf_bytes({"general.architecture": "llama", "n": number}))])
    ollamas.manifest("broken", b"")
    settings = Settings(models_dir=ollamas.root, state_dir=tmp_path / "state", trees_dir=tmp_path / "trees")
    catalog = Catalog.from_settings(settings)
    scheduler = Scheduler(catalog=catalog, registry=ScriptedRegistry(ScriptedDriver(Script())), settings=settings)
    services = Services(settings, catalog, scheduler, Puller(catalog), "1")
    headers = tmp_path / "state" / "gguf"

    models = catalog.list(described=False)
    first, _ = opening_lines(settings, services.version, models)
    assert "serves 4 models" in first
    assert not headers.exists()
    asyncio.run(look_into_models(services, models))
    assert len(list(headers.iterdir())) == 3

    def refuse(path: Path, *, model: str = "") -> None:
        raise AssertionError("a listing has to wait for a header")

    monkeypatch.setattr("oprel.store.metadata_cache.read_gguf", refuse)
    assert [model.damage is None for model in catalog.list()].count(True) == 3
