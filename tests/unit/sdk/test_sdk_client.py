"""The clients against a real socket: answers, streams, errors, both ways of waiting."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.servers import ScriptedPuller, ScriptedServer, wait_until
from support.servers import scripted_server as start_scripted_server

import oprel
from oprel import AsyncClient, Client, Config, Message
from oprel.config import Settings
from oprel.errors import (
    AuthenticationError,
    BackendError,
    BusyError,
    ContextLengthError,
    InvalidRequestError,
    NoSpaceError,
    PayloadTooLargeError,
    SourceError,
    UnsupportedError,
)
from oprel.schema import ChatRequest
from oprel.sdk.failures import as_ours
from oprel.sources import PullProgress
from oprel.testing import Script

Start = Callable[..., ScriptedServer]

HI = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def server() -> Any:
    with start_scripted_server() as server:
        yield server


@pytest.fixture
def client(server: ScriptedServer) -> Any:
    with Client(server.url) as client:
        yield client


class TestAnswers:
    def test_chat(self, client: Client) -> None:
        answer = client.chat("scripted", HI)
        assert isinstance(answer, oprel.ChatResponse)
        assert answer.message.content == "Hello, world!"
        assert (answer.done, answer.done_reason, answer.model) == (True, "stop", "scripted")
        assert answer.eval_count == 4

    def test_by_key_as_well(self, client: Client) -> None:
        answer = client.chat("scripted", HI)
        assert answer["message"]["content"] == "Hello, world!"
        assert answer.get("done_reason") == "stop"
        assert answer.get("nothing", 1) == 1
        assert "message" in answer
        assert "logprobs" not in answer
        with pytest.raises(KeyError):
            answer["nothing"]

    def test_chat_as_a_stream(self, client: Client) -> None:
        parts = list(client.chat("scripted", HI, stream=True))
        assert [part.message.content for part in parts] == ["Hello", ",", " world", "!", ""]
        assert [part.done for part in parts] == [False, False, False, False, True]

    def test_messages_may_be_objects(self, client: Client, server: ScriptedServer) -> None:
        answer = client.chat("scripted", [Message(role="system", content="s"), *HI])
        assert client.chat("scripted", [*HI, answer.message, *HI]).done
        request = server.driver.engines[0].calls[-1].request
        assert isinstance(request, ChatRequest)
        assert [message.role for message in request.messages] == ["user", "assistant", "user"]

    def test_generate(self, client: Client) -> None:
        assert client.generate("scripted", "hi").response == "Hello, world!"
        assert "".join(part.response for part in client.generate("scripted", "hi", stream=True)) == "Hello, world!"

    def test_generate_nothing_loads_and_unloads(self, client: Client, server: ScriptedServer) -> None:
        assert client.generate("scripted").done_reason == "load"
        assert [running.name for running in client.ps().models] == ["scripted:latest"]
        assert client.generate("scripted", keep_alive=0).done_reason == "unload"
        assert client.ps().models == []

    def test_embed(self, client: Client) -> None:
        answer = client.embed("embedder", ["a", "b"])
        assert [len(vector) for vector in answer.embeddings] == [8, 8]
        assert len(client.embed("embedder", "a").embeddings) == 1

    def test_list_and_show(self, client: Client) -> None:
        models = client.list().models
        assert {model.name for model in models} == {"scripted:latest", "embedder:latest"}
        assert models[0].size == 104857600
        assert models[0].modified_at is not None
        shown = client.show("scripted")
        assert shown.details.parameter_size == "135M"
        assert shown.modelfile is not None

    def test_options_of_a_config(self, client: Client, server: ScriptedServer) -> None:
        client.chat("scripted", HI, options=Config(temperature=0.25, top_k=3, repeat_penalty=1.5))
        sampling = server.driver.engines[-1].calls[-1].request.sampling  # type: ignore[union-attr]
        assert (sampling.temperature, sampling.top_k, sampling.repeat_penalty) == (0.25, 3, 1.5)

    def test_what_only_a_servers_start_can_set_is_refused_by_name(self, client: Client) -> None:
        with pytest.raises(UnsupportedError, match="kv_cache_type can't be set by a request"):
            client.chat("scripted", HI, options=Config(kv_cache_type="q8_0"))

    def test_pull(self, scripted_server: Start) -> None:
        puller = ScriptedPuller([PullProgress("pulling manifest"), PullProgress("success")])
        with Client(scripted_server(puller=puller).url) as client:
            assert client.pull("thing") is None
            assert [part.status for part in client.pull("thing", stream=True)] == ["pulling manifest", "success"]
        assert puller.pulled == ["thing", "thing"]

    def test_health_and_version(self, client: Client) -> None:
        assert client.server_version() == "0.0.0+scripted"
        with Client("http://127.0.0.1:1") as nobody:
            assert not nobody.is_there()


class TestErrors:
    def test_a_model_that_is_not_there(self, client: Client) -> None:
        asks: list[Callable[[], object]] = [
            lambda: client.chat("absent", HI),
            lambda: client.show("absent"),
            lambda: client.embed("absent", "a"),
            lambda: list(client.chat("absent", HI, stream=True)),
        ]
        for ask in asks:
            with pytest.raises(oprel.ModelNotFoundError) as caught:
                ask()
            assert caught.value.model == "absent"

    def test_bad_options(self, client: Client) -> None:
        with pytest.raises(oprel.OprelError, match="temperature"):
            client.chat("scripted", HI, options={"temperature": "hot"})

    def test_nobody_there(self) -> None:
        with Client("http://127.0.0.1:1") as client, pytest.raises(oprel.BackendError, match="oprel serve"):
            client.list()

    def test_a_stream_that_fails_in_the_middle(self, scripted_server: Start) -> None:
        server = scripted_server(Script(text=("a", "b", "c"), dies_at=2))
        with Client(server.url) as client:
            parts = client.chat("scripted", HI, stream=True)
            assert [next(parts).message.content, next(parts).message.content] == ["a", "b"]
            with pytest.raises(oprel.BackendError):
                next(parts)

    def test_a_pull_that_fails(self, scripted_server: Start) -> None:
        puller = ScriptedPuller([PullProgress("pulling manifest")], error=SourceError("the index is not there"))
        with Client(scripted_server(puller=puller).url) as client, pytest.raises(SourceError, match="not there"):
            client.pull("thing")

    def test_keys(self, scripted_server: Start, monkeypatch: pytest.MonkeyPatch) -> None:
        server = scripted_server(settings=Settings(api_keys=("secret",)))
        monkeypatch.delenv("OPREL_API_KEY", raising=False)
        with Client(server.url) as client, pytest.raises(AuthenticationError, match="needs a key"):
            client.list()
        with Client(server.url, api_key="secret") as client:
            assert client.list().models
        monkeypatch.setenv("OPREL_API_KEY", "secret")
        with Client(server.url) as client:
            assert client.list().models

    @pytest.mark.parametrize(
        ("status", "message", "kind"),
        [
            (400, "x", InvalidRequestError),
            (400, "the prompt is longer than the context length", ContextLengthError),
            (401, "x", AuthenticationError),
            (404, "x", oprel.ModelNotFoundError),
            (413, "x", PayloadTooLargeError),
            (500, "x", BackendError),
            (500, "model requires more system memory (8.0 GiB) than is available (2.0 GiB)", oprel.MemoryError),
            (502, "x", SourceError),
            (503, "x", BusyError),
            (507, "x", NoSpaceError),
        ],
    )
    def test_a_status_is_an_error_of_the_tree(self, status: int, message: str, kind: type) -> None:
        assert type(as_ours(status, message)) is kind

    def test_an_address_that_is_none(self) -> None:
        with pytest.raises(oprel.OprelError, match="is no address"):
            Client("ftp://x")


class TestAsync:
    def test_everything_at_once(self, server: ScriptedServer) -> None:
        async def use() -> list[str]:
            async with AsyncClient(server.url) as client:
                answer, generated, embedded, models, shown = await asyncio.gather(
                    client.chat("scripted", HI),
                    client.generate("scripted", "hi"),
                    client.embed("embedder", "a"),
                    client.list(),
                    client.show("scripted"),
                )
                assert answer.message.content == generated.response == "Hello, world!"
                assert len(embedded.embeddings) == 1
                assert len(models.models) == 2
                assert shown.details.format == "gguf"
                parts = [part.message.content or "" async for part in await client.chat("scripted", HI, stream=True)]
                more = [part.response async for part in await client.generate("scripted", "hi", stream=True)]
                assert parts == more
                assert (await client.ps()).models
                return parts

        assert asyncio.run(use()) == ["Hello", ",", " world", "!", ""]

    def test_errors(self, server: ScriptedServer) -> None:
        async def use() -> None:
            async with AsyncClient(server.url) as client:
                with pytest.raises(oprel.ModelNotFoundError):
                    await client.chat("absent", HI)
                with pytest.raises(oprel.ModelNotFoundError):
                    async for _ in await client.chat("absent", HI, stream=True):
                        pass
            async with AsyncClient("http://127.0.0.1:1") as nobody:
                with pytest.raises(BackendError):
                    await nobody.list()

        asyncio.run(use())

    def test_a_stream_that_is_left_stops_its_engine(self, scripted_server: Start) -> None:
        server = scripted_server(Script(endless=True, token_delay_s=0.01))

        async def use() -> None:
            async with AsyncClient(server.url) as client:
                stream = await client.chat("scripted", HI, stream=True)
                await anext(stream)
                await stream.aclose()  # type: ignore[attr-defined]

        asyncio.run(use())
        wait_until(lambda: server.driver.engines[0].calls[0].ended, limit_s=5, what="the engine to stop")
        assert server.driver.engines[0].calls[0].ended == "closed"


class TestModuleLevel:
    @pytest.fixture(autouse=True)
    def here(self, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
        from oprel.sdk import defaults

        for name in ("OLLAMA_HOST", "OPREL_API_KEY", "OPREL_CONFIG", "XDG_CONFIG_HOME"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setenv("OPREL_HOST", server.url)
        yield
        for client in defaults._clients.values():
            client.close()
        defaults._clients.clear()

    def test_functions_use_the_server_of_the_settings(self) -> None:
        assert oprel.chat("scripted", HI).message.content == "Hello, world!"
        assert oprel.generate("scripted", "hi").response == "Hello, world!"
        assert len(oprel.embed("embedder", "a").embeddings) == 1
        assert len(oprel.list().models) == 2
        assert oprel.show("scripted").details.format == "gguf"
        assert [part.message.content for part in oprel.chat("scripted", HI, stream=True)][:2] == ["Hello", ","]

    def test_hardware(self) -> None:
        told = oprel.get_hardware_info()
        assert told["cores"] >= 1
        assert told["ram_total_bytes"] > 0
        assert isinstance(told["gpus"], (list, tuple))
