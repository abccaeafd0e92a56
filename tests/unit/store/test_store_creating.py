"""Making models in the store: quantizing, what another run finds, a full disk, a killed process."""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.store_checks import assert_valid_store
from support.tiny_gguf import CHAT_VALUES, gguf_bytes, write_tiny_gguf

from oprel.errors import InvalidRequestError, NoSpaceError, StoreError
from oprel.store import Catalog, Digest, ModelName, Store
from oprel.store.creating import Base, Creating
from oprel.store.disk import Disk
from oprel.store.recipes import GivenFile, Recipe

NAME = ModelName.parse("made")
FLOATS = gguf_bytes({**CHAT_VALUES, "general.file_type": 1})
SMALL = gguf_bytes({**CHAT_VALUES, "general.file_type": 7, "general.name": "small"})

Line = tuple[str, str | None, int | None, int | None]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "models", state_dir=tmp_path / "state")


def put(store: Store, data: bytes) -> Digest:
    with store.new_blob() as blob:
        blob.write(data)
        blob.finish()
        return blob.publish().digest


def made(store: Store, recipe: Recipe, *, base: Base | None = None, quantize: Any = None) -> list[Line]:
    lines: list[Line] = []

    def report(status: str, digest: str | None = None, total: int | None = None, completed: int | None = None) -> None:
        lines.append((status, digest, total, completed))

    Creating(store, recipe, report, quantize=quantize).run(base)
    return lines


def shrink(source: Path, target: Path, kind: str, progress: Callable[[float], None]) -> None:
    assert source.read_bytes() == FLOATS
    assert kind == "Q8_0"
    progress(0.5)
    target.write_bytes(SMALL)
    progress(1.0)


def test_floats_are_quantized_with_progress(store: Store) -> None:
    digest = put(store, FLOATS)
    recipe = Recipe(name=NAME, files=(GivenFile("f.gguf", digest),), quantize="Q8_0")
    lines = made(store, recipe, quantize=shrink)
    size, small = len(FLOATS), f"sha256:{hashlib.sha256(SMALL).hexdigest()}"
    assert lines == [
        ("parsing GGUF", None, None, None),
        ("quantizing F16 model to Q8_0", "0000000000000000000", size, 0),
        ("quantizing F16 model to Q8_0", "0000000000000000000", size, size // 2),
        ("quantizing F16 model to Q8_0", "0000000000000000000", size, size),
        ("verifying conversion", None, None, None),
        (f"creating new layer {small}", None, None, None),
        ("writing manifest", None, None, None),
    ]
    model = Catalog(store).find("made")
    assert (model.quantization, model.weights.digest, model.damage) == ("Q8_0", small[7:], None)
    assert_valid_store(store.models_dir)
    assert list((store.state_dir / "partial").iterdir()) == []


def test_what_has_the_type_already_stays(store: Store) -> None:
    digest = put(store, FLOATS)
    recipe = Recipe(name=NAME, files=(GivenFile("f.gguf", digest),), quantize="F16")
    assert [line[0] for line in made(store, recipe)] == [
        "parsing GGUF", f"using existing layer {digest}", "writing manifest"
    ]  # fmt: skip


def test_without_the_tool_it_is_refused(store: Store) -> None:
    recipe = Recipe(name=NAME, files=(GivenFile("f.gguf", put(store, FLOATS)),), quantize="Q8_0")
    with pytest.raises(InvalidRequestError, match="needs llama-quantize"):
        made(store, recipe)


def write_nothing(source: Path, target: Path, kind: str, progress: Callable[[float], None]) -> None:
    pass


def write_another(source: Path, target: Path, kind: str, progress: Callable[[float], None]) -> None:
    other = target.with_name("oprel-other.partial")
    other.write_bytes(SMALL)
    other.replace(target)


@pytest.mark.parametrize(("quantize", "error"), [(write_nothing, "can't be used"), (write_another, "in its place")])
def test_a_tool_that_makes_nonsense_leaves_nothing(store: Store, quantize: Any, error: str) -> None:
    recipe = Recipe(name=NAME, files=(GivenFile("f.gguf", put(store, FLOATS)),), quantize="Q8_0")
    with pytest.raises((StoreError, InvalidRequestError), match=error):
        made(store, recipe, quantize=quantize)
    assert assert_valid_store(store.models_dir) == 0
    assert list((store.state_dir / "partial").iterdir()) == []


class FullDisk(Disk):
    """Has no space left after so many writes."""

    def __init__(self, writes: int) -> None:
        self.writes = writes

    def write(self, descriptor: int, data: bytes | memoryview) -> None:
        if self.writes == 0:
            raise OSError(errno.ENOSPC, "full")
        self.writes -= 1
        super().write(descriptor, data)


@pytest.mark.parametrize("writes", range(6))
def test_a_full_disk_leaves_what_was_there(store: Store, tmp_path: Path, writes: int) -> None:
    store.import_gguf(write_tiny_gguf(tmp_path / "base.gguf"), "base")
    store.import_gguf(tmp_path / "base.gguf", "made")
    before = NAME.manifest_path(store.models_dir).read_bytes()
    full = Store(store.models_dir, state_dir=store.state_dir, disk=FullDisk(writes))
    found = Catalog(full).manifest_of(Catalog(full).find("base"))
    assert found is not None
    recipe = Recipe(name=NAME, base="base", system="S", template="T", parameters={"top_k": 1}, licenses=("L",))
    with pytest.raises(NoSpaceError):
        made(full, recipe, base=Base("base:latest", *found))
    assert assert_valid_store(store.models_dir) == 2
    assert NAME.manifest_path(store.models_dir).read_bytes() == before
    assert list((store.state_dir / "partial").iterdir()) == []
    assert made(store, recipe, base=Base("base:latest", *found))[-1][0] == "writing manifest"


def test_a_text_is_young_again_when_it_is_used_again(store: Store) -> None:
    blob, is_new = store.add_small_blob(b"text")
    assert is_new
    before = blob.digest.blob_path(store.models_dir).stat()
    assert store.add_small_blob(b"text") == (blob, False)
    after = blob.digest.blob_path(store.models_dir).stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert after.st_ctime_ns >= before.st_ctime_ns
    assert not store.refresh_blob(Digest("ab" * 32))


@pytest.mark.parametrize("text", ["system", "template"])
def test_texts_have_a_limit(text: str) -> None:
    with pytest.raises(InvalidRequestError, match=f"the {text} may have 1024 KiB at most"):
        Recipe(name=NAME, base="base", **{text: "x" * ((1 << 20) + 1)})  # type: ignore[arg-type]
