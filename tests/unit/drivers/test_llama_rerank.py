"""A reranker on the real engine: one score for each document, in their order, whatever batch they came in."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import msgspec
import pytest
from support.llama_models import driver_for
from support.rerank_gguf import write_reranker

from oprel.drivers import Engine
from oprel.errors import InvalidRequestError, UnsupportedError
from oprel.hardware import detect_hardware
from oprel.schema import EmbedRequest, LoadOptions, Model, RerankRequest
from oprel.store import Catalog, Store

pytest.importorskip("xllamacpp")


@pytest.fixture(scope="module")
def ranker(embed_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("ranker")
    store = Store(folder / "models", state_dir=folder / "state")
    store.import_gguf(write_reranker(embed_path, folder / "ranker.gguf"), "ranker")
    return Catalog(store).find("ranker")


def run(model: Model, run_dir: Path, test: Callable[[Engine], Coroutine[Any, Any, None]]) -> None:
    async def go() -> None:
        driver = driver_for(run_dir)
        hardware = msgspec.structs.replace(detect_hardware(), engines=driver.probe())
        engine = await driver.start(driver.plan(model, LoadOptions(), hardware))
        try:
            async with asyncio.timeout(60):
                await test(engine)
        finally:
            await engine.stop()

    asyncio.run(go())


def test_a_reranker_is_known_for_one(ranker: Model, tmp_path: Path) -> None:
    async def test(engine: Engine) -> None:
        assert engine.capabilities.names == ("rerank", "tokenize")
        with pytest.raises(UnsupportedError):
            await engine.embed(EmbedRequest(("a",)))
        with pytest.raises(InvalidRequestError):
            await engine.rerank(RerankRequest("a", ()))

    run(ranker, tmp_path, test)


def test_scores_belong_to_their_documents(ranker: Model, tmp_path: Path) -> None:
    async def test(engine: Engine) -> None:
        documents = tuple(f"document {number}" for number in range(70))  # more than one batch
        forwards = await engine.rerank(RerankRequest("which?", documents))
        backwards = await engine.rerank(RerankRequest("which?", documents[::-1]))
        assert len(set(forwards.scores)) > 60
        assert backwards.scores == pytest.approx(forwards.scores[::-1], abs=1e-3)
        assert forwards.prompt_tokens == backwards.prompt_tokens > 70 * 4

    run(ranker, tmp_path, test)
