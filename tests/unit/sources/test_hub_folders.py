"""Pulling folders of safetensors from a hub."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.hub import HubServer, running_hub
from support.tree_folders import write_folder, write_safetensors

from oprel.errors import SourceError
from oprel.schema import Hardware
from oprel.sources import Puller, PullProgress
from oprel.store import Catalog, Store, Trees

REPO = "tiny-org/Tiny-1B"
HARDWARE = Hardware("Linux", "x86_64", 4, 4, 16 << 30, 16 << 30)


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with running_hub() as server:
        yield server


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("oprel.sources.retries.wait_before_retry", lambda state: 0.0)


@pytest.fixture
def trees(tmp_path: Path) -> Trees:
    return Trees(tmp_path / "trees", state_dir=tmp_path / "state")


@pytest.fixture
def catalog(tmp_path: Path, trees: Trees) -> Catalog:
    return Catalog(Store(tmp_path / "models", state_dir=tmp_path / "state"), shelves=(trees,))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "source")


def files_of(folder: Path) -> dict[str, bytes | Path]:
    return {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}


def pull(catalog: Catalog, trees: Trees | None, hub: HubServer, name: str = REPO) -> list[PullProgress]:
    async def run() -> list[PullProgress]:
        puller = Puller(catalog, clock=lambda: 0.0, trees=trees, read_access=hub.access, hardware=lambda: HARDWARE)
        async with asyncio.timeout(60):
            return [line async for line in puller.pull(name)]

    return asyncio.run(run())


def notes(lines: list[PullProgress]) -> str:
    return " ".join(line.note for line in lines if line.note is not None)


@pytest.mark.parametrize("name", [REPO, f"hf.co/{REPO}", f"huggingface.co/{REPO}:latest"])
def test_a_repository_becomes_a_folder(hub: HubServer, catalog: Catalog, trees: Trees, folder: Path, name: str) -> None:
    repo = hub.add(REPO, {**files_of(folder), "README.md": b"# Tiny", "picture.png": b"png"})
    lines = pull(catalog, trees, hub, name)
    assert lines[-1].status == "success"
    model = catalog.find(name)
    assert (model.name, model.format, model.damage) == (f"hf.co/{REPO}:latest", "safetensors", None)
    assert model.chat_template is not None
    assert trees.verify(model.name) is None
    assert sorted(Path(file.path).name for file in model.files) == [
        "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    (version,) = catalog.versions(model.name)
    assert (version.action, version.source, version.revision) == ("pull", f"hf.co/{REPO}", repo.commit())
    assert list((trees.trees_dir / ".hub").iterdir()) == []


def test_pickles_and_programs_are_not_fetched_and_told_by_name(
    hub: HubServer, catalog: Catalog, trees: Trees, folder: Path
) -> None:
    hub.add(REPO, {**files_of(folder), "pytorch_model.bin": b"\x80\x04", "original/x.pth": b"x", "modeling.py": b"x"})
    lines = pull(catalog, trees, hub)
    assert "'pytorch_model.bin' is a pickle" in notes(lines)
    assert "'original/x.pth' is a pickle" in notes(lines)
    assert "'modeling.py' is a program" in notes(lines)
    asked = [path for path, _ in hub.requests if "/resolve/" in path]
    assert not [path for path in asked if path.endswith((".bin", ".pth", ".py"))]


def test_a_model_that_wants_its_own_code_is_refused_before_its_weights(
    hub: HubServer, catalog: Catalog, trees: Trees, tmp_path: Path
) -> None:
    hub.add(REPO, files_of(write_folder(tmp_path / "own", auto_map={"AutoModel": "modeling.X"})))
    with pytest.raises(SourceError, match="asks for code of its own"):
        pull(catalog, trees, hub)
    assert hub.cdn.requests == []
    assert catalog.list() == ()


def test_only_the_weights_of_the_index_are_fetched(
    hub: HubServer, catalog: Catalog, trees: Trees, folder: Path
) -> None:
    (folder / "model.safetensors").unlink()
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    for number, shard in enumerate(shards):
        write_safetensors(folder / shard, {f"w{number}": ("BF16", (16, 64))})
    write_safetensors(folder / "consolidated.safetensors", {"all": ("BF16", (32, 64))})
    write_safetensors(folder / "original/model.safetensors", {"all": ("F32", (32, 64))})
    write_safetensors(folder / "2_Dense/model.safetensors", {"dense": ("F32", (8, 8))})
    index = {"weight_map": {f"w{number}": shard for number, shard in enumerate(shards)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    hub.add(REPO, files_of(folder))
    pull(catalog, trees, hub)
    model = catalog.find(REPO)
    root = trees.folder_of(model)
    weights = [str(Path(file.path).relative_to(root)) for file in model.files if file.role == "weights"]
    assert sorted(weights) == ["2_Dense/model.safetensors", *shards]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda files: files.pop("config.json"), "no config.json"),
        (lambda files: files.pop("model.safetensors"), "holds no weights that can be used"),
        (lambda files: files.update({"config.json": b"[["}), "can't be read"),
        (
            lambda files: files.update({"model.safetensors.index.json": b'{"weight_map": {"w": "gone.safetensors"}}'}),
            "'gone.safetensors' of its index is missing",
        ),
        (lambda files: files.update({"model.safetensors": b"x" * 100}), "can't be used"),
        (lambda files: files.update({"a\\b.json": b"{}"}), "isn't a name that a file may have"),
        (lambda files: files.update({"../b.json": b"{}"}), "isn't a name that a file may have"),
    ],
    ids=["no-config", "no-weights", "bad-config", "incomplete", "bad-weights", "backslash", "dots"],
)
def test_what_makes_no_model_is_refused(
    hub: HubServer, catalog: Catalog, trees: Trees, folder: Path, change: Any, problem: str
) -> None:
    files = files_of(folder)
    change(files)
    hub.add(REPO, files)
    with pytest.raises(SourceError, match=problem):
        pull(catalog, trees, hub)
    assert catalog.list() == ()


def test_a_small_file_must_have_the_git_digest_of_the_listing(
    hub: HubServer, catalog: Catalog, trees: Trees, folder: Path
) -> None:
    repo = hub.add(REPO, files_of(folder))
    data = (folder / "tokenizer.json").read_bytes()
    hub.special[hub.resolve_path(repo, "tokenizer.json")] = lambda handler: handler.answer(200, b"x" * len(data))
    with pytest.raises(SourceError, match=r"'tokenizer\.json' .* isn't what the hub's listing says"):
        pull(catalog, trees, hub)
    assert catalog.list() == ()


def test_a_branch_holds_one_size_of_exl2(hub: HubServer, catalog: Catalog, trees: Trees, tmp_path: Path) -> None:
    quantized = write_folder(tmp_path / "4bpw", quantization_config={"quant_method": "exl2", "bits": 4.0})
    hub.add(REPO, {"README.md": b"#", "measurement.json": b"{}"}, branches={"4.0bpw": files_of(quantized)})
    with pytest.raises(SourceError, match=f"If they are in a branch, name it: hf.co/{REPO}:BRANCH"):
        pull(catalog, trees, hub)
    with pytest.raises(SourceError, match=r"no GGUF files, and no branch '3\.0bpw'"):
        pull(catalog, trees, hub, f"{REPO}:3.0bpw")
    pull(catalog, trees, hub, f"{REPO}:4.0bpw")
    model = catalog.find(f"{REPO}:4.0bpw")
    assert (model.name, model.format) == (f"hf.co/{REPO}:4.0bpw", "exl2")


def test_a_failed_pull_goes_on_with_the_file_it_was_at(
    hub: HubServer, catalog: Catalog, trees: Trees, folder: Path
) -> None:
    write_safetensors(folder / "model.safetensors", {"a": ("BF16", (64, 64))})
    write_safetensors(folder / "3_Late/model.safetensors", {"b": ("BF16", (64, 64))})
    repo = hub.add(REPO, files_of(folder))
    late = hub.resolve_path(repo, "model.safetensors")
    hub.special[late] = lambda handler: handler.answer(404, b"")
    with pytest.raises(SourceError, match="has changed"):
        pull(catalog, trees, hub)
    assert catalog.list() == ()
    del hub.special[late]
    hub.cdn.requests.clear()
    pull(catalog, trees, hub)
    assert len(hub.cdn.requests) == 1
    assert catalog.find(REPO).damage is None


def test_without_a_place_for_folders_none_is_fetched(hub: HubServer, catalog: Catalog, folder: Path) -> None:
    hub.add(REPO, files_of(folder))
    with pytest.raises(SourceError, match="no place for them"):
        pull(catalog, None, hub)
    assert hub.cdn.requests == []
