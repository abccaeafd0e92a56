"""The official `ollama` client pushes and pulls through our server, with progress, by way of docker-registry."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import ollama
import pytest
from support.docker_registry import DockerRegistry, running_docker_registry
from support.servers import scripted_server
from support.tiny_gguf import write_tiny_gguf

from oprel.sources import Puller
from oprel.store import Catalog, ModelName, Store


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DockerRegistry]:
    monkeypatch.setattr("oprel.net.outside.getproxies", dict)
    with running_docker_registry(tmp_path / "registry") as running:
        yield running


def closed_after(request: pytest.FixtureRequest, url: str) -> ollama.Client:
    client = ollama.Client(url)
    request.addfinalizer(client._client.close)
    return client


def statuses(parts: list[ollama.ProgressResponse]) -> list[str]:
    """In their order, each as often as it came anew."""
    told = [part.status or "" for part in parts]
    return [status for at, status in enumerate(told) if at == 0 or told[at - 1] != status]


def test_a_models_life(registry: DockerRegistry, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Uploaded, created, copied, pushed, deleted, pulled, and pulled in another version: each step's words to the
    letter."""
    store = Store(tmp_path / "models", state_dir=tmp_path / "state")
    catalog = Catalog(store)
    name = f"{registry.host}/team/made:v1"
    with scripted_server(catalog=catalog, puller=Puller(catalog)) as server:
        client = closed_after(request, server.url)
        weights = client.create_blob(write_tiny_gguf(tmp_path / "m.gguf"))

        def create(system: str) -> list[ollama.ProgressResponse]:
            return list(client.create("made", files={"m.gguf": weights}, system=system, stream=True))

        brief = f"sha256:{hashlib.sha256(b'Be brief.').hexdigest()}"
        assert statuses(create("Be brief.")) == [
            "parsing GGUF", f"using existing layer {weights}", f"creating new layer {brief}", "writing manifest",
            "success",
        ]  # fmt: skip
        assert client.copy("made", name).status == "success"
        digests = digests_of(store, name)
        short = [digest[7:19] for digest in digests]

        pushed = list(client.push(name, insecure=True, stream=True))
        assert statuses(pushed) == [
            "retrieving manifest", *(f"pushing {digest}" for digest in short), "pushing manifest", "success"
        ]  # fmt: skip
        assert complete(pushed) == digests

        for each in ("made", name):
            assert client.delete(each).status == "success"
        with pytest.raises(ollama.ResponseError) as missing:
            list(client.push(name, insecure=True, stream=True))
        assert missing.value.error == f"model '{name}' not found"

        expected = ["verifying sha256 digest", "writing manifest", "success"]
        pulled = list(client.pull(name, insecure=True, stream=True))
        assert statuses(pulled) == ["pulling manifest", *(f"pulling {digest}" for digest in short), *expected]
        assert complete(pulled) == digests
        assert [model.model for model in client.list().models] == [name]

        create("Be long.")
        client.copy("made", name)
        assert digests_of(store, name) != digests
        again = list(client.pull(name, insecure=True, stream=True))
        assert statuses(again) == statuses(pulled), "what is replaced is kept as an old version: nothing is removed"
        assert digests_of(store, name) == digests


def digests_of(store: Store, name: str) -> list[str]:
    manifest = json.loads(ModelName.parse(name).manifest_path(store.models_dir).read_bytes())
    return [layer["digest"] for layer in (*manifest["layers"], manifest["config"])]


def complete(parts: list[ollama.ProgressResponse]) -> list[str]:
    """Of which it was told that all is there, in that order."""
    return list(dict.fromkeys(part.digest for part in parts if part.digest and part.completed == part.total))


def test_push_and_pull_with_progress(registry: DockerRegistry, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    name = f"{registry.host}/team/model:v1"
    here = Store(tmp_path / "here", state_dir=tmp_path / "here-state")
    there = Store(tmp_path / "there", state_dir=tmp_path / "there-state")
    here.import_gguf(write_tiny_gguf(tmp_path / "m.gguf"), name)

    with scripted_server(puller=Puller(Catalog(here))) as server:
        client = closed_after(request, server.url)
        pushed = list(client.push(name, insecure=True, stream=True))
        assert client.push(name, insecure=True).status == "success"
    assert pushed[0].status == "retrieving manifest"
    assert [part.status for part in pushed][-2:] == ["pushing manifest", "success"]
    assert any(part.digest and part.completed == part.total for part in pushed)

    with scripted_server(puller=Puller(Catalog(there))) as server:
        client = closed_after(request, server.url)
        pulled = list(client.pull(name, insecure=True, stream=True))
        assert client.pull(name, insecure=True).status == "success"
        with pytest.raises(ollama.ResponseError, match="pull model manifest: file does not exist"):
            client.pull(f"{registry.host}/team/none", insecure=True)
    assert pulled[0].status == "pulling manifest"
    assert pulled[-1].status == "success"
    path = ModelName.parse(name)
    assert path.manifest_path(there.models_dir).read_bytes() == path.manifest_path(here.models_dir).read_bytes()
