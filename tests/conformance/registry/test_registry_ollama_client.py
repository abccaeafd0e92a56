"""The official `ollama` client pushes and pulls through our server, with progress, by way of docker-registry."""

from __future__ import annotations

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
