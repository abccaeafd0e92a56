"""The official Python client's copy, delete and list, and its view of a damaged model, on a real store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import ollama
import pytest
from support.checking_proxy import checking_proxy
from support.ollama_store import OllamaStore
from support.store_checks import assert_ollamas_shape, assert_valid_store
from support.tiny_gguf import gguf_bytes, write_tiny_gguf

from oprel.config import Settings
from oprel.store import Catalog, ModelName, Store
from oprel.testing import Script, ScriptedDriver, ScriptedRegistry
from oprel.testing.live import live_server


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    """A store of Oprel's with one model, and one of Ollama's with another."""
    store = Store(tmp_path / "models", state_dir=tmp_path / "state")
    store.import_gguf(write_tiny_gguf(tmp_path / "tiny.gguf"), "Tiny:1b")
    theirs = OllamaStore(tmp_path / "theirs")
    theirs.add("other", [("model", gguf_bytes())])
    return Catalog(store, extra_dirs=[theirs.root])


@pytest.fixture
def client(catalog: Catalog) -> Iterator[ollama.Client]:
    registry = ScriptedRegistry(ScriptedDriver(Script(text=("Hi",))))
    with (
        live_server(catalog=catalog, registry=registry, settings=Settings()) as server,  # type: ignore[arg-type]
        checking_proxy(server.url) as proxy,
    ):
        with ollama.Client(host=proxy.url, timeout=60) as client:
            yield client
        proxy.check()


def listed(client: ollama.Client) -> set[str]:
    return {model.model or "" for model in client.list().models}


def test_copy_list_delete(client: ollama.Client, catalog: Catalog) -> None:
    assert client.copy("tiny:1b", "me/mine").status == "success"
    assert listed(client) == {"Tiny:1b", "other:latest", "me/mine:latest"}
    digests = {model.model: model.digest for model in client.list().models}
    assert digests["Tiny:1b"] == digests["me/mine:latest"]
    assert client.delete("TINY:1B").status == "success"
    assert listed(client) == {"other:latest", "me/mine:latest"}
    assert catalog.find("me/mine").damage is None
    assert client.delete("me/mine").status == "success"
    assert_valid_store(catalog.store.models_dir)
    assert_ollamas_shape(catalog.store.models_dir)


def test_a_model_of_a_store_that_is_only_read_can_be_copied_into_ours(client: ollama.Client, catalog: Catalog) -> None:
    client.copy("other", "ours")
    assert assert_valid_store(catalog.store.models_dir) == 2
    with pytest.raises(ollama.ResponseError, match="only read here"):
        client.delete("other")


REFUSALS = {
    "copy of what isn't here": (lambda c: c.copy("absent", "x"), 404, 'model "absent" not found'),
    "copy of no name": (lambda c: c.copy("a b", "x"), 400, 'source "a b" is invalid'),
    "copy to no name": (lambda c: c.copy("tiny:1b", "../x"), 400, 'destination "../x" is invalid'),
    "delete of what isn't here": (lambda c: c.delete("absent"), 404, "model 'absent' not found"),
    "delete of no name": (lambda c: c.delete("a b"), 400, 'name "a b" is invalid'),
}


@pytest.mark.parametrize(("ask", "status", "text"), REFUSALS.values(), ids=REFUSALS.keys())
def test_refusals(client: ollama.Client, ask: object, status: int, text: str) -> None:
    with pytest.raises(ollama.ResponseError) as refused:
        ask(client)  # type: ignore[operator]
    assert (refused.value.status_code, refused.value.error) == (status, text)


def test_a_running_model_keeps_running_when_it_is_deleted(client: ollama.Client) -> None:
    assert client.generate("tiny:1b", "Hello", keep_alive="10m").response == "Hi"
    client.delete("tiny:1b")
    assert [model.model for model in client.ps().models] == ["Tiny:1b"]


def test_a_damaged_model_is_listed_beside_the_others(client: ollama.Client, catalog: Catalog) -> None:
    client.copy("tiny:1b", "bad")
    ModelName.parse("bad").manifest_path(catalog.store.models_dir).write_bytes(b"\0" * 300)
    assert listed(client) == {"Tiny:1b", "other:latest", "bad:latest"}
    with pytest.raises(ollama.ResponseError, match="damaged"):
        client.generate("bad", "Hello")
    assert client.generate("tiny:1b", "Hello").response == "Hi"
    assert client.delete("bad").status == "success"


def test_a_flipped_bit_is_refused_with_its_digest(client: ollama.Client, catalog: Catalog) -> None:
    weights = Path(catalog.find("tiny:1b").weights.path)
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(ollama.ResponseError, match=f"{weights.name} doesn't hold what its name says"):
        client.generate("tiny:1b", "Hello")
