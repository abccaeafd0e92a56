"""Debian's docker-registry between two stores: what one pushes, the other pulls, byte for byte."""

from __future__ import annotations

import asyncio
import io
import json
import random
import urllib.request
from collections.abc import AsyncGenerator, Callable, Iterator
from pathlib import Path
from typing import Any

import bcrypt
import pytest
from support.docker_registry import DockerRegistry, running_docker_registry
from support.store_checks import assert_valid_store, snapshot
from support.tiny_gguf import write_tiny_gguf

from oprel.cli import main
from oprel.errors import ModelNotFoundError, SourceError
from oprel.sources import Puller, PullProgress
from oprel.sources.registry import Login, Logins, Reach, check_login
from oprel.store import Catalog, ModelName, Store
from oprel.store.manifests import CONFIG_TYPE, MANIFEST_TYPE, MEDIA, Layer, encode_config, encode_manifest

USER, PASSWORD = "alice", "open sesame"


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("oprel.net.outside.getproxies", dict)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerRegistry]:
    with running_docker_registry(tmp_path_factory.mktemp("registry")) as running:
        yield running


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerRegistry]:
    hashed = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)).decode()
    with running_docker_registry(tmp_path_factory.mktemp("guarded"), htpasswd=f"{USER}:{hashed}\n") as running:
        yield running


class Place:
    """A store with what uses it."""

    def __init__(self, folder: Path) -> None:
        self.store = Store(folder / "models", state_dir=folder / "state")
        self.logins = folder / "state/logins.json"
        self.puller = Puller(Catalog(self.store), logins=self.logins)

    def pull(self, name: str) -> list[PullProgress]:
        return asyncio.run(_lines(self.puller.pull(name, insecure=True)))

    def push(self, name: str) -> list[PullProgress]:
        return asyncio.run(_lines(self.puller.push(name, insecure=True)))

    def manifest(self, name: str) -> bytes:
        return ModelName.parse(name).manifest_path(self.store.models_dir).read_bytes()

    def put(self, name: str, folder: Path, *, size: int = 300_000, salt: str = "") -> None:
        """A model with each kind of layer that Ollama writes, some of them shared, weights larger than one read; name
        and `salt` make the weights."""
        gguf = write_tiny_gguf(folder / f"{random.random()}.gguf", salt=name + salt)  # noqa: S311
        with gguf.open("ab") as handle:
            handle.write(random.Random(name + salt).randbytes(size))  # noqa: S311
        self.store.import_gguf(gguf, "imported")
        weights = json.loads(self.manifest("imported"))["layers"][0]
        layers = [Layer(MEDIA["model"], weights["digest"], weights["size"])]
        for kind, text in (
            ("template", "{{ .Prompt }}"),
            ("system", "Be brief."),
            ("params", '{"stop":["<|im_end|>"]}'),
            ("license", "yours"),
            ("license", "mine"),
        ):
            layers.append(self._layer(MEDIA[kind], text.encode()))
        config = encode_config(family="llama", parameter_size="1K", quantization="F32", layers=tuple(layers))
        top = self._layer(CONFIG_TYPE, config)
        self.store.write_manifest(ModelName.parse(name), encode_manifest(top.blob, tuple(layers)))

    def _layer(self, media: str, data: bytes) -> Layer:
        with self.store.new_blob() as blob:
            blob.write(data)
            blob.finish()
            ref = blob.publish()
        return Layer(media, str(ref.digest), ref.size_bytes)


async def _lines(steps: AsyncGenerator[PullProgress, None]) -> list[PullProgress]:
    return [step async for step in steps]


def statuses(lines: list[PullProgress]) -> list[str]:
    """Each once."""
    return list(dict.fromkeys(line.status for line in lines))


def layers_of(manifest: bytes) -> list[dict[str, Any]]:
    parsed = json.loads(manifest)
    return [*parsed["layers"], parsed["config"]]


def test_what_was_pushed_is_pulled_byte_for_byte(registry: DockerRegistry, tmp_path: Path) -> None:
    here, there = Place(tmp_path / "here"), Place(tmp_path / "there")
    name = f"{registry.host}/team/model:v1"
    here.put(name, tmp_path)
    short = [layer["digest"][7:19] for layer in layers_of(here.manifest(name))]

    assert statuses(here.push(name)) == [
        "retrieving manifest", *(f"pushing {digest}" for digest in short), "pushing manifest", "success"
    ]  # fmt: skip
    pulled = there.pull(name)
    assert statuses(pulled) == [
        "pulling manifest", *(f"pulling {digest}" for digest in short), "verifying sha256 digest", "writing manifest",
        "success",
    ]  # fmt: skip
    assert there.manifest(name) == here.manifest(name)
    assert assert_valid_store(there.store.models_dir) == 1
    for layer in layers_of(here.manifest(name)):
        path = f"blobs/{layer['digest'].replace(':', '-')}"
        assert (there.store.models_dir / path).read_bytes() == (here.store.models_dir / path).read_bytes()
        assert PullProgress(f"pulling {layer['digest'][7:19]}", layer["digest"], layer["size"], layer["size"]) in pulled


def test_the_registry_holds_what_ollama_writes(registry: DockerRegistry, tmp_path: Path) -> None:
    """Media types, and the manifest to the byte."""
    place = Place(tmp_path)
    name = f"{registry.host}/team/types:v1"
    place.put(name, tmp_path)
    place.push(name)
    request = urllib.request.Request(f"{registry.url}/v2/team/types/manifests/v1", headers={"Accept": MANIFEST_TYPE})
    with urllib.request.urlopen(request, timeout=10) as answer:
        body = answer.read()
        assert answer.headers["Content-Type"] == "application/vnd.docker.distribution.manifest.v2+json"
    assert body == place.manifest(name)
    parsed = json.loads(body)
    assert parsed["mediaType"] == "application/vnd.docker.distribution.manifest.v2+json"
    assert parsed["config"]["mediaType"] == "application/vnd.docker.container.image.v1+json"
    assert [layer["mediaType"].removeprefix("application/vnd.ollama.image.") for layer in parsed["layers"]] == [
        "model", "template", "system", "params", "license", "license"
    ]  # fmt: skip


def test_layers_that_are_there_are_not_sent_again(
    registry: DockerRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from oprel.sources.registry.upload import Upload

    begun: list[str] = []
    real = Upload.run

    async def noted(self: Any, mount_from: str | None) -> None:
        begun.append(str(self._blob.digest))
        await real(self, mount_from)

    monkeypatch.setattr(Upload, "run", noted)
    place = Place(tmp_path)
    first = f"{registry.host}/team/shared:v1"
    place.put(first, tmp_path)
    place.push(first)
    assert len(begun) == 7
    place.push(first)
    assert len(begun) == 7
    second = ModelName.parse(f"{registry.host}/team/shared:v2")
    place.store.write_manifest(second, place.manifest(first))
    assert statuses(place.push(str(second)))[-1] == "success"
    assert len(begun) == 7


def test_a_blob_larger_than_a_part_goes_in_parts(
    registry: DockerRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("oprel.sources.registry.upload.PART_BYTES", 1 << 20)
    here, there = Place(tmp_path / "here"), Place(tmp_path / "there")
    name = f"{registry.host}/team/large:v1"
    here.put(name, tmp_path, size=(3 << 20) + 17)
    here.push(name)
    there.pull(name)
    assert there.manifest(name) == here.manifest(name)
    assert assert_valid_store(there.store.models_dir) == 1


def test_a_second_pull_fetches_nothing(registry: DockerRegistry, tmp_path: Path) -> None:
    place = Place(tmp_path)
    name = f"{registry.host}/team/twice:v1"
    place.put(name, tmp_path)
    place.push(name)
    lines = place.pull(name)
    fetched = [line for line in lines if line.digest is not None]
    assert all(line.completed == line.total for line in fetched)
    assert len(fetched) == 7


def test_an_unknown_model_is_not_there(registry: DockerRegistry, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="pull model manifest: file does not exist"):
        Place(tmp_path).pull(f"{registry.host}/team/none:v1")


@pytest.mark.parametrize(
    "spoil",
    [lambda data: data[:-1] + bytes([data[-1] ^ 1]), lambda data: data[:-10], lambda data: data + b"more"],
    ids=["other bytes", "too short", "too long"],
)
def test_a_registry_whose_files_are_damaged_spoils_nothing(
    registry: DockerRegistry, tmp_path: Path, spoil: Callable[[bytes], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("oprel.sources.retries.wait_before_retry", lambda state: 0.0)
    here, there = Place(tmp_path / "here"), Place(tmp_path / "there")
    name = f"{registry.host}/team/spoiled:v1"
    here.put(name, tmp_path)
    here.push(name)
    there.pull(name)
    here.put(name, tmp_path, salt=str(tmp_path))
    here.push(name)
    digest = layers_of(here.manifest(name))[0]["digest"][7:]
    (path,) = registry.root.glob(f"data/docker/registry/v2/blobs/sha256/*/{digest}/data")
    path.write_bytes(spoil(path.read_bytes()))
    before = snapshot(there.store.models_dir)
    with pytest.raises(SourceError):
        there.pull(name)
    assert snapshot(there.store.models_dir) == before


def test_a_login_is_needed_and_enough(guarded: DockerRegistry, tmp_path: Path) -> None:
    """Basic authentication: refused without, with a wrong and with the right password."""
    here, there = Place(tmp_path / "here"), Place(tmp_path / "there")
    name = f"{guarded.host}/team/secret:v1"
    here.put(name, tmp_path)
    with pytest.raises(SourceError, match="unauthorized: access denied"):
        here.push(name)
    Logins(here.logins).keep(guarded.host, Login(USER, "wrong"))
    with pytest.raises(SourceError, match="unauthorized: access denied") as denied:
        here.push(name)
    assert "wrong" not in str(denied.value)
    for place in (here, there):
        Logins(place.logins).keep(guarded.host, Login(USER, PASSWORD))
    here.push(name)
    assert statuses(there.pull(name))[-1] == "success"
    assert there.manifest(name) == here.manifest(name)
    assert here.logins.stat().st_mode & 0o777 == 0o600


def test_a_wrong_login_is_told_when_it_is_made(guarded: DockerRegistry) -> None:
    asyncio.run(check_login(guarded.host, Reach(is_insecure=True, login=Login(USER, PASSWORD))))
    with pytest.raises(SourceError, match="unauthorized"):
        asyncio.run(check_login(guarded.host, Reach(is_insecure=True, login=Login(USER, "no"))))


def test_a_login_by_the_command_line_serves_pushes_and_pulls(
    guarded: DockerRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Over plain http on loopback, each of two homes by itself, until it logs out."""
    here, there = Place(tmp_path / "here"), Place(tmp_path / "there")
    name = f"{guarded.host}/team/hidden:v1"
    here.put(name, tmp_path)

    def oprel(place: Place, *arguments: str, piped: str = "") -> int:
        monkeypatch.setenv("OPREL_STATE_DIR", str(place.logins.parent))
        monkeypatch.setattr("sys.stdin", io.StringIO(piped))
        return main(arguments)

    login = ("login", guarded.host, "-u", USER, "--password-stdin", "--insecure")
    assert oprel(here, *login, piped="wrong\n") == 1
    assert "doesn't take this user with this password" in capsys.readouterr().err
    assert not here.logins.exists()
    assert oprel(here, *login, piped=f"{PASSWORD}\n") == 0
    assert here.logins.stat().st_mode & 0o777 == 0o600
    here.push(name)
    with pytest.raises(SourceError, match=f"log in with: oprel login {guarded.host}"):
        there.pull(name)
    assert oprel(there, *login, piped=f"{PASSWORD}\n") == 0
    there.pull(name)
    assert there.manifest(name) == here.manifest(name)
    assert oprel(there, "logout", guarded.host) == 0
    with pytest.raises(SourceError, match="unauthorized"):
        there.pull(name)


def test_a_blob_is_taken_from_the_repository_that_the_manifest_names(registry: DockerRegistry, tmp_path: Path) -> None:
    """The registry takes it over by itself: no byte is sent."""
    here = Place(tmp_path)
    parent, child = f"{registry.host}/team/parent:v1", f"{registry.host}/team/child:v1"
    here.put(parent, tmp_path)
    here.push(parent)
    parsed = json.loads(here.manifest(parent))
    parsed["layers"][0]["from"] = parent
    here.store.write_manifest(ModelName.parse(child), json.dumps(parsed).encode())
    lines = here.push(child)
    weights = [line for line in lines if line.digest == parsed["layers"][0]["digest"]]
    assert [line.completed for line in weights] == [weights[0].total]
