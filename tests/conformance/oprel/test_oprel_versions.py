"""`NAME@sha256:…` where it may be written: OpenAI's API, Oprel's own client, and the command line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import ollama
import pytest
from support.tiny_gguf import write_tiny_gguf

from oprel.cli import main
from oprel.config import Settings
from oprel.errors import OprelError
from oprel.sdk.client import Client
from oprel.store import Catalog, Store
from oprel.testing import Script, ScriptedDriver, ScriptedRegistry
from oprel.testing.live import live_server


class Served(NamedTuple):
    url: str
    driver: ScriptedDriver
    old: str
    store: Store

    def loaded_from(self) -> list[Path]:
        """The folders that engines read their weights from."""
        return [Path(engine.plan.files[0].path).parent for engine in self.driver.engines]


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    store = Store(tmp_path / "models", state_dir=tmp_path / "state")
    for salt in ("old", "new"):
        store.import_gguf(write_tiny_gguf(tmp_path / f"{salt}.gguf", salt=salt), "m")
    catalog, driver = Catalog(store), ScriptedDriver(Script(text=("Hi",)))
    old = catalog.versions("m")[1].digest
    registry: Any = ScriptedRegistry(driver)
    with live_server(catalog=catalog, registry=registry, settings=Settings()) as server:
        yield Served(server.url, driver, old, store)


def test_openai(served: Served) -> None:
    """The answer's `model` is what was asked for, and the engine has the old version's files."""
    name = f"m@sha256:{served.old[:12]}"
    body = {"model": name, "messages": [{"role": "user", "content": "Hello"}]}
    answer = httpx.post(f"{served.url}/v1/chat/completions", json=body)
    assert (answer.status_code, answer.json()["model"]) == (200, name)
    assert served.loaded_from() == [served.store.versions.folder / "blobs"]
    assert httpx.post(f"{served.url}/v1/chat/completions", json=body | {"model": "m"}).status_code == 200
    assert served.loaded_from()[1:] == [served.store.models_dir / "blobs"]
    assert httpx.get(f"{served.url}/v1/models/{name}").json()["id"] == name


@pytest.mark.parametrize("text", ["m@sha256:" + "0" * 11, "m@md5:" + "0" * 12, "m@", "@sha256:" + "0" * 12])
def test_what_is_no_version_is_refused(served: Served, text: str) -> None:
    body = {"model": text, "messages": [{"role": "user", "content": "Hello"}]}
    assert httpx.post(f"{served.url}/v1/chat/completions", json=body).status_code == 400


def test_oprels_own_client(served: Served) -> None:
    name = f"m@sha256:{served.old}"
    with Client(served.url) as client:
        assert client.chat(name, [{"role": "user", "content": "Hello"}]).message.content == "Hi"
        with pytest.raises(OprelError, match="no version"):
            client.chat(f"m@sha256:{'0' * 12}", [{"role": "user", "content": "Hello"}])
    assert served.loaded_from() == [served.store.versions.folder / "blobs"]


def test_ollamas_client_gets_ollamas_refusal(served: Served) -> None:
    with (
        ollama.Client(host=served.url) as client,
        pytest.raises(ollama.ResponseError, match="invalid model name") as refused,
    ):
        client.generate(f"m@sha256:{served.old}", "Hello")
    assert refused.value.status_code == 400


def test_the_command_line(served: Served, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("OPREL_HOST", served.url)
    monkeypatch.setattr("sys.stdin", None)
    assert main(["generate", f"m@sha256:{served.old[:16]}", "Hello"]) == 0
    assert capsys.readouterr().out == "Hi\n"
    assert served.loaded_from() == [served.store.versions.folder / "blobs"]
