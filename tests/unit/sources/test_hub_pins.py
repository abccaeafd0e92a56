"""Models of the hub, pinned at a commit: locked here, brought to another home while the hub's main has moved on."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.hub import HubServer, running_hub
from support.hub_place import HubPlace
from support.tiny_gguf import CHAT_VALUES, gguf_bytes
from support.tree_folders import write_folder

from oprel.errors import OprelError, SourceError
from oprel.schema import Hardware
from oprel.sources import Puller
from oprel.sources.lockfile import LockedModel, read_lock, write_lock
from oprel.sources.repair import Repair
from oprel.store.verification import verify

REPO = "tiny-org/Tiny-GGUF"
SMALL = Hardware("Linux", "x86_64", 2, 2, 16 << 30, 16 << 30)


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with running_hub() as server:
        yield server


def model(name: str) -> bytes:
    return gguf_bytes({**CHAT_VALUES, "general.name": name})


def folder_files(folder: Path, *, hidden_size: int) -> dict[str, bytes | Path]:
    made = write_folder(folder, hidden_size=hidden_size)
    return {path.relative_to(made).as_posix(): path.read_bytes() for path in made.rglob("*") if path.is_file()}


def through_a_file(pinned: LockedModel, path: Path) -> LockedModel:
    write_lock(path, [pinned])
    (read,) = read_lock(path)
    return read


@pytest.mark.parametrize("name", [REPO, f"hf.co/{REPO}:Q2_K"])
def test_a_lock_brings_the_commit_though_main_has_moved_on(tmp_path: Path, hub: HubServer, name: str) -> None:
    """The quantization too: what this machine would choose by itself plays no part, nor what it would be warned of."""
    here, there = HubPlace(tmp_path / "here", hub), HubPlace(tmp_path / "there", hub)
    repo = hub.add(REPO, {"tiny-Q4_K_M.gguf": model("four"), "tiny-Q2_K.gguf": model("two"), "LICENSE": b"Be kind."})
    if name == REPO:
        here.pull(name)
    else:
        staged = Puller(here.catalog, trees=here.trees, read_access=hub.access, hardware=lambda: SMALL)
        asyncio.run(_allowed(staged, name))
    pinned = through_a_file(here.pins.lock(name), tmp_path / "oprel.lock")
    commit = repo.move_on({"tiny-Q8_0.gguf": model("eight"), "tiny-Q4_K_M.gguf": model("newer four")})
    assert (pinned.source, pinned.revision) == (pinned.name, commit)

    there.sync(pinned)

    assert there.catalog.find(pinned.name).digest == here.catalog.find(pinned.name).digest
    assert there.catalog.find(pinned.name).licenses == ("Be kind.",)
    (version,) = there.catalog.versions(pinned.name)
    assert (version.action, version.source, version.revision) == ("pull", pinned.source, commit)
    assert there.pins.lock(pinned.name) == pinned


async def _allowed(puller: Puller, name: str) -> None:
    from oprel.sources import PullWish

    async for _ in puller.pull(name, wish=PullWish(allow_low_quality=True)):
        pass


@pytest.mark.parametrize("branch", [None, "4.0bpw"])
def test_a_folder_too(tmp_path: Path, hub: HubServer, branch: str | None) -> None:
    here, there = HubPlace(tmp_path / "here", hub), HubPlace(tmp_path / "there", hub)
    old = folder_files(tmp_path / "old", hidden_size=64)
    newer = folder_files(tmp_path / "newer", hidden_size=128)
    repo = hub.add(REPO, old if branch is None else {"README.md": b"see the branches"})
    if branch is not None:
        repo.branches[branch] = old
    here.pull(REPO if branch is None else f"{REPO}:{branch}")
    pinned = through_a_file(here.pins.lock(f"hf.co/{REPO}:{branch or 'latest'}"), tmp_path / "oprel.lock")
    if branch is None:
        repo.move_on(newer)
    else:
        repo.past[repo.commit(branch)] = old
        repo.branches[branch] = newer

    there.sync(pinned)

    assert there.catalog.find(pinned.name).digest == here.catalog.find(pinned.name).digest
    assert there.trees.verify(pinned.name) is None
    assert there.pins.state(pinned).state == "here"


def test_a_commit_that_is_gone_changes_nothing(tmp_path: Path, hub: HubServer) -> None:
    here, there = HubPlace(tmp_path / "here", hub), HubPlace(tmp_path / "there", hub)
    repo = hub.add(REPO, {"tiny-Q4_K_M.gguf": model("old")})
    here.pull(REPO)
    pinned = here.pins.lock(REPO)
    del repo.past[repo.move_on({"tiny-Q4_K_M.gguf": model("new")})]
    with pytest.raises(SourceError, match=f"has no commit {pinned.revision}"):
        there.sync(pinned)
    assert there.catalog.list() == ()


def test_a_damaged_file_is_fetched_from_the_commit_that_it_is_of(tmp_path: Path, hub: HubServer) -> None:
    here = HubPlace(tmp_path / "here", hub)
    repo = hub.add(REPO, {"tiny-Q4_K_M.gguf": model("old")})
    here.pull(REPO)
    repo.move_on({"tiny-Q4_K_M.gguf": model("new")})
    Path(here.catalog.find(REPO).weights.path).unlink()
    repair = Repair(here.catalog, here.make_puller)

    async def run() -> None:
        async for _ in repair.run(verify(here.catalog).harmful):
            pass

    asyncio.run(run())
    assert [mended.problem for mended in repair.results] == [""]
    assert verify(here.catalog).findings == ()


def test_a_commit_can_be_pulled_by_its_name(tmp_path: Path, hub: HubServer) -> None:
    home = HubPlace(tmp_path / "home", hub)
    repo = hub.add(REPO, {"tiny-Q4_K_M.gguf": model("old")})
    commit = repo.move_on({"tiny-Q4_K_M.gguf": model("new")})
    home.pull(f"{REPO}:Q4_K_M@{commit}")
    home.pull(REPO)
    versions = home.catalog.versions(REPO)
    assert [version.revision for version in versions] == [repo.commit(), commit]
    assert [version.source for version in versions] == [f"hf.co/{REPO}:Q4_K_M"] * 2


def test_a_hub_that_shows_another_commit_is_refused(tmp_path: Path, hub: HubServer) -> None:
    home = HubPlace(tmp_path / "home", hub)
    repo = hub.add(REPO, {"tiny-Q4_K_M.gguf": model("old")})
    repo.past["a" * 40] = repo.files
    repo.commit_at = lambda revision: repo.commit()  # type: ignore[method-assign]
    with pytest.raises(OprelError, match="shows the commit"):
        home.pull(f"{REPO}@{'a' * 40}")
