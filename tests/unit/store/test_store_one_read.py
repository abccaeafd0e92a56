"""What is on the same disk becomes a model for one read and no second copy; where neither blocks nor names can be
shared, for one read and one write. Counted by the kernel, up to the first look before a load."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.crashing import DyingDisk
from support.tiny_gguf import CHAT_VALUES, gguf_bytes
from support.tree_folders import write_folder, write_safetensors

from oprel.sources import Puller
from oprel.store import Catalog, ModelName, Store, Trees
from oprel.store.creating import Creating
from oprel.store.recipes import GivenFile, Recipe

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the kernel counts in /proc/self/io")

SIZE = 16 << 20
SLACK = 4 << 20  # headers, of which a MiB is read at once; manifests and texts
Import = Callable[[Catalog, Path], object]


def counted() -> tuple[int, int]:
    """Bytes that this process has read and written."""
    lines = Path("/proc/self/io").read_text().splitlines()
    told = {name: int(count) for name, _, count in (line.partition(": ") for line in lines)}
    return told["rchar"], told["wchar"]


def pull_path(catalog: Catalog, path: Path) -> None:
    async def run() -> None:
        async for _ in Puller(catalog, trees=catalog.trees[0]).import_file(path, name="m"):
            pass

    asyncio.run(run())


def create_from(catalog: Catalog, path: Path) -> None:
    """As `oprel create` does with `FROM ./file.gguf`: the file is taken in, then the server makes a model of it."""
    blob = catalog.store.add_file(path)
    recipe = Recipe(name=ModelName.parse("m"), files=(GivenFile(path.name, blob.digest),), system="S")
    Creating(catalog.store, recipe, lambda *told: None).run(None)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf_bytes(CHAT_VALUES, [("token_embd.weight", (32, SIZE // 128), 0, bytes(SIZE))]))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = write_folder(tmp_path / "folder")
    write_safetensors(folder / "model.safetensors", {"w": ("F32", (SIZE // 4,))})
    return folder


IMPORTS: dict[str, tuple[str, Import]] = {
    "a file": ("file", lambda catalog, path: catalog.store.import_gguf(path, "m")),
    "pull ./file": ("file", pull_path),
    "create FROM ./file": ("file", create_from),
    "pull ./folder": ("folder", pull_path),
}


@pytest.mark.parametrize("links", [True, False], ids=["same disk", "another disk"])
@pytest.mark.parametrize(("source", "run"), IMPORTS.values(), ids=IMPORTS.keys())
def test_one_read(request: pytest.FixtureRequest, tmp_path: Path, source: str, run: Import, links: bool) -> None:
    path: Path = request.getfixturevalue(source)
    disk = DyingDisk(1 << 30, links=links)
    store = Store(tmp_path / "models", state_dir=tmp_path / "state", disk=disk)
    trees = Trees(tmp_path / "trees", state_dir=tmp_path / "state", disk=disk)
    catalog = Catalog(store, shelves=(trees,))
    read, written = counted()
    run(catalog, path)
    model = catalog.find("m")
    catalog.check_files(model)
    read, written = counted()[0] - read, counted()[1] - written
    assert model.damage is None
    assert SIZE <= read < SIZE + SLACK
    assert written < SLACK + (0 if links else SIZE)
    if links:
        kept, given = Path(model.weights.path).stat(), (path if path.is_file() else path / "model.safetensors").stat()
        assert kept.st_ino == given.st_ino or kept.st_blocks == given.st_blocks
