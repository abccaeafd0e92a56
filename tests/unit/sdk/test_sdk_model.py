"""A model as an object, by a server and in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.servers import ScriptedPuller, ScriptedServer, wait_until

import oprel
from oprel import Config, Model
from oprel.config import Settings
from oprel.errors import InvalidRequestError, OprelError, SourceError
from oprel.schema import ChatRequest
from oprel.sources import PullWish
from oprel.testing import Script

Start = Callable[..., ScriptedServer]


def echo(request: Any) -> tuple[str, ...]:
    if not isinstance(request, ChatRequest):
        return ("?",)
    return tuple(f"[{message.role}:{message.text}]" for message in request.messages)


def settings_of(server: ScriptedServer, tmp_path: Path) -> Settings:
    return Settings(host="127.0.0.1", port=server.port, state_dir=tmp_path / "state", models_dir=tmp_path / "models")


class TestByServer:
    def test_generate(self, scripted_server: Start, tmp_path: Path) -> None:
        with Model("scripted", settings=settings_of(scripted_server(Script(text=echo)), tmp_path)) as model:
            assert model.generate("hi") == "[user:hi]"
            assert model.generate("hi", system_prompt="be brief") == "[system:be brief][user:hi]"

    def test_a_stream(self, scripted_server: Start, tmp_path: Path) -> None:
        with Model("scripted", settings=settings_of(scripted_server(), tmp_path)) as model:
            assert list(model.generate("hi", stream=True)) == ["Hello", ",", " world", "!"]

    def test_a_conversation(self, scripted_server: Start, tmp_path: Path) -> None:
        with Model("scripted", settings=settings_of(scripted_server(Script(text=echo)), tmp_path)) as model:
            model.generate("one", conversation_id="a", system_prompt="s")
            second = model.generate("two", conversation_id="a")
            assert second == "[system:s][user:one][assistant:[system:s][user:one]][user:two]"
            assert model.generate("other", conversation_id="b") == "[user:other]"
            model.forget("a")
            assert model.generate("new", conversation_id="a") == "[user:new]"

    def test_defaults(self, scripted_server: Start, tmp_path: Path) -> None:
        server = scripted_server()
        with Model("scripted", settings=settings_of(server, tmp_path), config=Config(top_k=7)) as model:
            model.generate("hi")
            model.generate("hi", max_tokens=3, temperature=0.1)
        first, second = (call.request.sampling for call in server.driver.engines[0].calls)  # type: ignore[union-attr]
        assert (first.max_tokens, first.top_k) == (512, 7)
        assert (second.max_tokens, second.temperature) == (3, 0.1)

    def test_load_and_unload(self, scripted_server: Start, tmp_path: Path) -> None:
        server = scripted_server()
        model = Model("scripted", settings=settings_of(server, tmp_path))
        model.load()
        assert len(server.driver.alive) == 1
        model.unload()
        assert server.driver.alive == []
        model.unload()  # twice is once
        with model:
            assert len(server.driver.alive) == 1
        assert server.driver.alive == []

    def test_more_memory_than_allowed(self, scripted_server: Start, tmp_path: Path) -> None:
        server = scripted_server(Script(bytes_by_device=(("cpu", 200 * 1024 * 1024),)))
        model = Model("scripted", max_memory_mb=100, settings=settings_of(server, tmp_path))
        with pytest.raises(oprel.MemoryError, match="max_memory_mb=100"):
            model.load()
        assert server.driver.alive == []
        model.unload()

    def test_a_model_that_is_not_there_is_pulled(self, scripted_server: Start, tmp_path: Path) -> None:
        puller = ScriptedPuller(error=SourceError("no such package"))
        model = Model("absent", settings=settings_of(scripted_server(puller=puller), tmp_path))
        with pytest.raises(OprelError, match="no such package"):
            model.load()
        assert puller.pulled == ["absent"]
        model.unload = lambda: None  # type: ignore[method-assign]
        assert model._way is not None
        model._way.close()

    def test_low_quality_needs_a_word(self) -> None:
        with pytest.raises(InvalidRequestError, match="allow_low_quality=True"):
            Model("hf.co/owner/repo", quantization="Q2_K")
        assert (
            Model("hf.co/owner/repo", quantization="Q2_K", allow_low_quality=True).model_id == "hf.co/owner/repo:Q2_K"
        )
        assert Model("hf.co/owner/repo", quantization="Q4_K_M").model_id == "hf.co/owner/repo:Q4_K_M"

    def test_two_tags_are_one_too_many(self) -> None:
        with pytest.raises(InvalidRequestError, match="names 'Q4_0' already"):
            Model("hf.co/owner/repo:Q4_0", quantization="Q4_K_M")
        assert Model("qwen2.5:3b", quantization="q8_0").model_id == "qwen2.5:3b-q8_0"

    def test_what_may_be_taken_is_told_to_the_server_that_pulls(self, scripted_server: Start, tmp_path: Path) -> None:
        puller = ScriptedPuller(error=SourceError("no"))
        settings = settings_of(scripted_server(puller=puller), tmp_path)
        model = Model("absent", settings=settings, allow_low_quality=True, max_memory_mb=700)
        with pytest.raises(OprelError, match="no"):
            model.load()
        assert puller.wishes == [PullWish(allow_low_quality=True, max_memory_bytes=700 << 20)]
        model.unload = lambda: None  # type: ignore[method-assign]
        assert model._way is not None
        model._way.close()


class TestInProcess:
    """The same rooms without a server; the real engine is proven in tests/conformance/oprel."""

    @pytest.fixture
    def scripted(self, monkeypatch: pytest.MonkeyPatch) -> Any:
        from support.servers import scripted_catalog

        from oprel.dialects.services import Services
        from oprel.scheduler import Scheduler
        from oprel.testing import ScriptedDriver, ScriptedRegistry, scripted_model

        driver = ScriptedDriver(Script(text=echo))
        puller = ScriptedPuller(error=SourceError("no such package"))

        def compose(settings: Settings) -> Services:
            catalog: Any = scripted_catalog(scripted_model())
            registry: Any = ScriptedRegistry(driver)
            scheduler = Scheduler(catalog=catalog, registry=registry, settings=settings)
            return Services(settings, catalog, scheduler, puller, "0")  # type: ignore[arg-type]

        monkeypatch.setattr("oprel.sdk.direct.compose", compose)
        return driver

    def test_generate(self, scripted: Any) -> None:
        with Model("scripted", use_server=False, settings=Settings()) as model:
            assert len(scripted.alive) == 1
            assert model.generate("hi", system_prompt="s") == "[system:s][user:hi]"
            assert list(model.generate("hi", stream=True)) == ["[user:hi]"]
            sampling = scripted.engines[0].calls[0].request.sampling
            assert (sampling.max_tokens, sampling.temperature, sampling.top_k) == (512, 0.7, 40)
        assert scripted.alive == []

    def test_load_options_of_a_config(self, scripted: Any) -> None:
        with Model("scripted", use_server=False, settings=Settings(), config=Config(ctx_size=1024, n_threads=2)):
            assert scripted.starts[0].context_tokens == 1024
            assert scripted.starts[0].threads == 2

    def test_a_stream_that_is_left_stops_the_engine(self, scripted: Any) -> None:
        scripted.script = Script(endless=True, token_delay_s=0.01)
        with Model("scripted", use_server=False, settings=Settings()) as model:
            stream = model.generate("hi", stream=True)
            next(stream)
            stream.close()
            wait_until(lambda: scripted.engines[0].calls[0].ended == "closed", what="the engine to stop")

    def test_errors_come_through(self, scripted: Any) -> None:
        scripted.script = Script(text=("a", "b"), dies_at=1)
        with Model("scripted", use_server=False, settings=Settings()) as model, pytest.raises(oprel.BackendError):
            model.generate("hi")

    def test_what_is_not_there_is_pulled(self, scripted: Any) -> None:
        model = Model("absent", use_server=False, settings=Settings())
        with pytest.raises(SourceError, match="no such package"):
            model.load()
        assert model._way is not None
        model._way.close()
