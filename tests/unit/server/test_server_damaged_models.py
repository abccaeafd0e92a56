"""A store with one damaged model: it is told as damaged wherever models are listed, and harms nothing else."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.asgi import Reply, call
from support.ollama_store import OllamaStore
from support.tiny_gguf import gguf_bytes
from support.tree_folders import write_folder

from oprel.config import Settings
from oprel.dialects.services import Services
from oprel.scheduler import Scheduler
from oprel.server.app import create_app
from oprel.sources import Puller
from oprel.store import Catalog, Trees
from oprel.testing import Script, ScriptedDriver, ScriptedRegistry

CONFIG = {"model_format": "gguf", "model_family": "llama", "model_type": "7B", "file_type": "Q4_0"}
WEIGHTS = gguf_bytes({"general.architecture": "llama", "general.name": "bad"})
Damage = Callable[[OllamaStore, Path], None]


def with_manifest(data: bytes) -> Damage:
    return lambda store, manifest: _write(manifest, data)


def with_layer(index: int, change: Callable[[Path], None]) -> Damage:
    """The blob of a layer; -1 is the config."""

    def damage(store: OllamaStore, manifest: Path) -> None:
        told = json.loads(manifest.read_bytes())
        change(store.blob_path([*told["layers"], told["config"]][index]["digest"]))

    return damage


def as_link_to(target: str) -> Damage:
    def damage(store: OllamaStore, manifest: Path) -> None:
        manifest.unlink()
        manifest.symlink_to(target)

    return damage


def as_folder(store: OllamaStore, manifest: Path) -> None:
    manifest.unlink()
    (manifest / "deeper").mkdir(parents=True)


def as_pipe(store: OllamaStore, manifest: Path) -> None:
    manifest.unlink()
    os.mkfifo(manifest)


def huge(store: OllamaStore, manifest: Path) -> None:
    os.truncate(manifest, 1 << 40)


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def _be_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _same_size(path: Path) -> None:
    path.write_bytes(b"?" * path.stat().st_size)


DAMAGES: dict[str, Damage] = {
    "no JSON": with_manifest(b"{"),
    "empty": with_manifest(b""),
    "zeros": with_manifest(bytes(1000)),
    "no UTF-8": with_manifest(b'{"schemaVersion":2,"mediaType":"\xff","config":{},"layers":[]}'),
    "another program's": with_manifest(b'{"schemaVersion":1,"fsLayers":[]}'),
    "deep": with_manifest(b"[" * 100_000),
    "huge": huge,
    "a folder": as_folder,
    "a pipe": as_pipe,
    "a link that leads nowhere": as_link_to("nothing"),
    "a link to itself": as_link_to("latest"),
    "a link to a device": as_link_to("/dev/zero"),
    "weights missing": with_layer(0, Path.unlink),
    "weights cut": with_layer(0, _cut),
    "weights a folder": with_layer(0, _be_folder),
    "weights something else": with_layer(0, _same_size),
    "template missing": with_layer(1, Path.unlink),
    "parameters no JSON": with_layer(2, _same_size),
    "config missing": with_layer(-1, Path.unlink),
    "config no JSON": with_layer(-1, _same_size),
}


class Place:
    def __init__(self, folder: Path) -> None:
        self.settings = Settings(
            models_dir=folder / "models", trees_dir=folder / "trees", state_dir=folder / "state", extra_models_dirs=()
        )
        self.store = OllamaStore(folder / "models")
        self.store.add("good", [("model", gguf_bytes())], config=CONFIG)
        self.manifest = self.store.add(
            "bad",
            [("model", WEIGHTS), ("template", b"{{ .Prompt }}"), ("params", b'{"top_k":5}')],
            config={**CONFIG, "architecture": "amd64"},
        )

    def ask(self, *requests: tuple[str, str, Any]) -> list[Reply]:
        """Of one server, one after the other."""

        async def run() -> list[Reply]:
            catalog = Catalog.from_settings(self.settings)
            driver = ScriptedDriver(Script())
            registry = ScriptedRegistry(driver)
            async with Scheduler(catalog=catalog, registry=registry, settings=self.settings) as scheduler:
                services = Services(self.settings, catalog, scheduler, Puller(catalog), "1")
                app = create_app(services)
                return [await call(app, method, path, body) for method, path, body in requests]

        return asyncio.run(run())


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


LISTINGS = ("/api/tags", "/v1/models", "/anthropic/v1/models")


def assert_listed(place: Place, name: str = "bad:latest") -> None:
    """It is in every listing, said to be damaged where there is room for that, and so are the others, whole."""
    asked: list[tuple[str, str, Any]] = [("GET", path, b"") for path in LISTINGS]
    asked += [("POST", "/api/show", {"model": each}) for each in (name, "good")]
    asked += [("GET", f"/v1/models/{each}", b"") for each in (name, "good:latest")]
    asked += [("GET", f"/anthropic/v1/models/{each}", b"") for each in (name, "good:latest")]
    replies = place.ask(*asked)
    for (_, path, _), reply in zip(asked, replies, strict=True):
        assert reply.status == 200, (path, reply.body)
    tags, openai, anthropic = (reply.json() for reply in replies[:3])
    listed = {model["name"]: model for model in tags["models"]}
    assert set(listed) == {name, "good:latest"}
    assert name in listed[name]["oprel"]["damage"]
    assert "oprel" not in listed["good:latest"]
    assert None not in _values(listed["good:latest"])
    empty = {key for key, value in listed[name].items() if value is None}
    assert empty == set()
    assert {model["id"] for model in openai["data"]} == {model["id"] for model in anthropic["data"]} == set(listed)
    problem = next(model["oprel"]["problem"] for model in openai["data"] if model["id"] == name)
    assert "damaged" in problem
    shown, good = replies[3].json(), replies[4].json()
    assert "damaged" in shown["oprel"]["problem"]
    assert good["details"]["family"] == "llama"


def _values(entry: dict[str, Any]) -> list[Any]:
    return [each for value in entry.values() for each in (value.values() if isinstance(value, dict) else [value])]


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_one_damaged_model_is_listed_as_that_and_harms_no_other(place: Place, damage: Damage) -> None:
    damage(place.store, place.manifest)
    assert_listed(place)


@pytest.mark.parametrize(
    "name", ["no JSON", "huge", "a folder", "a link to itself", "weights missing", "config missing"]
)
def test_it_is_refused_with_a_sentence_wherever_it_is_asked_for(place: Place, name: str) -> None:
    DAMAGES[name](place.store, place.manifest)
    said = [{"role": "user", "content": "Hi"}]
    requests: dict[str, dict[str, Any]] = {
        "/api/generate": {"prompt": "Hi", "stream": False},
        "/api/chat": {"messages": said, "stream": False},
        "/api/embed": {"input": "Hi"},
        "/api/embeddings": {"prompt": "Hi"},
        "/v1/chat/completions": {"messages": said},
        "/v1/completions": {"prompt": "Hi"},
        "/v1/embeddings": {"input": "Hi"},
        "/v1/responses": {"input": "Hi"},
        "/v1/rerank": {"query": "Hi", "documents": ["Ho"]},
        "/tokenize": {"content": "Hi"},
        "/v1/messages": {"messages": said, "max_tokens": 9},
        "/v1/messages/count_tokens": {"messages": said},
    }
    replies = place.ask(*(("POST", path, {"model": "bad", **body}) for path, body in requests.items()))
    for path, reply in zip(requests, replies, strict=True):
        assert (path, "damaged" in reply.body.decode()) == (path, True), reply.body


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_nothing_is_made_of_it_and_it_can_be_removed(place: Place, damage: Damage) -> None:
    damage(place.store, place.manifest)
    created, removed, tags = place.ask(
        ("POST", "/api/create", {"model": "other", "from": "bad", "system": "S", "stream": False}),
        ("DELETE", "/api/delete", {"model": "bad"}),
        ("GET", "/api/tags", b""),
    )
    assert (created.status, "damaged" in created.body.decode()) == (500, True)
    left = {model["name"] for model in tags.json()["models"]}
    if damage is as_folder:  # which no store has made
        assert (removed.status, "remove it by hand" in removed.body.decode()) == (400, True)
        assert left == {"bad:latest", "good:latest"}
    else:
        assert (removed.status, left) == (200, {"good:latest"})


@pytest.mark.parametrize("name", ["no JSON", "huge", "a folder", "a link to itself", "weights missing"])
def test_it_isnt_copied(place: Place, name: str) -> None:
    DAMAGES[name](place.store, place.manifest)
    copied, tags = place.ask(
        ("POST", "/api/copy", {"source": "bad", "destination": "other"}), ("GET", "/api/tags", b"")
    )
    assert copied.status >= 400, copied.body
    assert {model["name"] for model in tags.json()["models"]} == {"bad:latest", "good:latest"}


ODD_CONFIGS: dict[str, dict[str, object]] = {
    "no text": {"model_family": "\ud800"},
    "a number past 64 bits": {"context_length": 10**30, "embedding_length": 10**30},
    "numbers below zero": {"context_length": -1, "embedding_length": -(10**30)},
    "words that are numbers": {"model_family": 7},
    "lists of nothing": {"model_families": [], "capabilities": []},
    "nulls": dict.fromkeys(("model_format", "model_family", "model_families", "model_type", "file_type")),
    "long": {"model_family": "x" * 500_000},
    "another format": {"model_format": "safetensors"},
}


@pytest.mark.parametrize("config", ODD_CONFIGS.values(), ids=ODD_CONFIGS.keys())
def test_an_odd_config_fails_no_listing(place: Place, config: dict[str, object]) -> None:
    """Damaged or not, it is listed."""
    place.store.add("bad", [("model", WEIGHTS)], config={**CONFIG, **config})
    for reply in place.ask(*(("GET", path, b"") for path in LISTINGS), ("POST", "/api/show", {"model": "bad"})):
        assert (reply.status, reply.body.count(b"good:latest") > 0 or b"modelfile" in reply.body) == (200, True)


@pytest.fixture
def place_in_memory() -> Iterator[Place]:
    """On a file system that takes any time."""
    memory = Path("/dev/shm")  # the folder below is this test's own
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        yield Place(Path(folder))


@pytest.mark.parametrize("at", [-(2.0**40), -1.0, 2.0**33, 2.0**40])
def test_a_time_that_no_calendar_has_fails_no_listing(place_in_memory: Place, at: float) -> None:
    os.utime(place_in_memory.manifest, (at, at))
    asked = [*(("GET", path, b"") for path in LISTINGS), ("POST", "/api/show", {"model": "bad"})]
    for reply in place_in_memory.ask(*asked):
        assert reply.status == 200, reply.body


def folder_gone(trees: Trees) -> None:
    shutil.rmtree(next(path for path in trees.trees_dir.iterdir() if path.name != "manifests"))


def tree_config(trees: Trees) -> None:
    next(trees.trees_dir.glob("*/config.json")).unlink()


def tree_weights(trees: Trees) -> None:
    _cut(next(trees.trees_dir.glob("*/model.safetensors")))


def tree_manifest(data: bytes) -> Callable[[Trees], None]:
    return lambda trees: _write(next(trees.trees_dir.glob("manifests/*/*/bad/latest")), data)


TREE_DAMAGES: dict[str, Callable[[Trees], None]] = {
    "folder gone": folder_gone,
    "config gone": tree_config,
    "weights cut": tree_weights,
    "no JSON": tree_manifest(b"{"),
    "a model in one file": tree_manifest(
        b'{"schemaVersion":2,"mediaType":"","config":{"mediaType":"","digest":"sha256:%s","size":1},"layers":[]}'
        % (b"0" * 64)
    ),
}


@pytest.mark.parametrize("damage", TREE_DAMAGES.values(), ids=TREE_DAMAGES.keys())
def test_a_damaged_folder_is_listed_as_that(place: Place, tmp_path: Path, damage: Callable[[Trees], None]) -> None:
    (removed,) = place.ask(("DELETE", "/api/delete", {"model": "bad"}))
    assert removed.status == 200
    trees = Trees(place.settings.trees_dir, state_dir=place.settings.state_dir)
    trees.add(write_folder(tmp_path / "source"), "bad")
    damage(trees)
    assert_listed(place)
