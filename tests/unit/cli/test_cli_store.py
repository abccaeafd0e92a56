"""The store's commands, on the store of a home of its own: `cp`, `rm`, `show --versions`, `rollback`, `lock`, `sync`,
`verify`, `cache`, and a damaged model in `list`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.lock_actions import FilePuller
from support.ollama_store import OllamaStore
from support.tiny_gguf import gguf_bytes, write_tiny_gguf

from oprel.server import compose
from oprel.store import Catalog, ModelName, Store
from oprel.store.versions import Change

Oprel = Callable[..., Any]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """With two versions of `m`; no server is at the port."""
    monkeypatch.setenv("OPREL_PORT", "1")
    store = Store(tmp_path / ".oprel" / "models", state_dir=tmp_path / ".oprel" / "state")
    for salt in ("old", "new"):
        path = write_tiny_gguf(tmp_path / f"{salt}.gguf", salt=salt)
        store.import_gguf(path, "m")
        path.unlink()
    return store


def names(store: Store) -> list[str]:
    return sorted(model.name for model in Catalog(store).list())


def damage(store: Store) -> Path:
    path = Path(Catalog(store).find("m").weights.path)
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data[:-1] + b"?")
    return path


def test_cp_and_rm_of_several(oprel: Oprel, store: Store) -> None:
    assert (oprel("cp", "m", "me/c:2").code, names(store)) == (0, ["m:latest", "me/c:2"])
    ended = oprel("rm", "m", "me/c:2")
    assert (ended.code, ended.out, names(store)) == (0, "", [])
    assert ended.err == "m is removed\nme/c:2 is removed\n"


def test_what_cant_be_copied_or_removed_is_told(oprel: Oprel, store: Store) -> None:
    assert oprel("cp", "absent", "x").code == 1
    assert oprel("cp", "m", "a b").code == 2
    ended = oprel("rm", "absent", "m")
    assert (ended.code, names(store)) == (1, ["m:latest"])
    assert ended.err.startswith("oprel: Model 'absent' isn't here")


def test_nothing_is_done_here_when_the_server_is_elsewhere(oprel: Oprel, store: Store) -> None:
    ended = oprel("rm", "m", "--host", "192.0.2.1:1")
    assert (ended.code, names(store)) == (1, ["m:latest"])


def test_versions_and_back(oprel: Oprel, store: Store) -> None:
    told = json.loads(oprel("show", "m", "--versions", "--json").out)
    new, old = told
    assert [(each["is_current"], each["is_kept"], each["action"]) for each in told] == [
        (True, False, "import"), (False, True, "import"),
    ]  # fmt: skip
    table = oprel("show", "m", "--versions").out.splitlines()
    assert table[0].split() == ["DIGEST", "STATE", "SIZE", "SINCE", "BY", "SOURCE"]
    assert table[2].split()[:2] == [old["digest"][:12], "kept"]
    ended = oprel("rollback", "m")
    assert (ended.code, ended.err) == (0, f"m is sha256:{old['digest'][:12]} now\n")
    assert oprel("rollback", "m", f"sha256:{new['digest']}").code == 0
    assert store.versions.current(ModelName.parse("m")) == new["digest"]
    assert oprel("rollback", "m", "12345").code == 1
    assert oprel("rollback", "m", "0" * 12).err.startswith("oprel: 'm:latest' has no version sha256:000000000000")


def test_versions_tell_the_commit_that_they_are_of(oprel: Oprel, store: Store) -> None:
    data = ModelName.parse("m").manifest_path(store.models_dir).read_bytes()
    name = ModelName.parse("hf.co/o/r:Q4_K_M")
    store.write_manifest(name, data, Change("pull", str(name), "c" * 40))
    assert oprel("show", "o/r:Q4_K_M", "--versions").out.split()[-1] == f"hf.co/o/r:Q4_K_M@{'c' * 40}"
    (told,) = json.loads(oprel("show", "o/r:Q4_K_M", "--versions", "--json").out)
    assert (told["source"], told["revision"]) == ("hf.co/o/r:Q4_K_M", "c" * 40)


def test_a_damaged_model_is_listed_as_such(oprel: Oprel, store: Store) -> None:
    ModelName.parse("m").manifest_path(store.models_dir).write_bytes(b"")
    ended = oprel("list")
    assert ended.code == 0
    assert "damaged" in ended.out.splitlines()[1]
    assert ended.err.startswith("m:latest: Model 'm:latest' is damaged: it is empty")
    (told,) = json.loads(oprel("list", "--json").out)
    assert "it is empty" in told["oprel"]["damage"]


class TestVerify:
    def test_a_whole_store(self, oprel: Oprel, store: Store) -> None:
        """What only an old version needs isn't needed in the store, which harms nobody."""
        ended = oprel("verify")
        assert ended.code == 0
        assert [line.partition(":")[0] for line in ended.out.splitlines()] == ["unreferenced", "unreferenced"]
        assert oprel("verify", "m").out == ""
        assert ended.err.endswith("all as they should be\n")

    def test_what_is_damaged(self, oprel: Oprel, store: Store) -> None:
        path = damage(store)
        ended = oprel("verify", "m")
        assert (ended.code, ended.out) == (
            1,
            f"damaged: {path.name} doesn't hold what its name says (needed by m:latest)\n",
        )
        (finding,) = json.loads(oprel("verify", "m", "--json").out)["findings"]
        assert (finding["kind"], finding["digest"]) == ("damaged", path.name.replace("-", ":"))

    def test_repair(self, oprel: Oprel, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        file = write_tiny_gguf(tmp_path / "new.gguf", salt="new")
        monkeypatch.setattr(compose, "make_puller", lambda settings, catalog: FilePuller(catalog, file, "m"))
        damage(store)
        ended = oprel("verify", "--repair")
        assert (ended.code, "not mended: 'm:latest' was made on this machine" in ended.out) == (1, True)
        store.versions.history.path.unlink()  # as if another program had pulled it
        ended = oprel("verify", "--repair")
        assert (ended.code, "; fetched again for m:latest" in ended.out) == (0, True)
        assert oprel("verify").code == 0

    def test_an_absent_model(self, oprel: Oprel, store: Store) -> None:
        assert oprel("verify", "absent").code == 1


class TestLock:
    @pytest.fixture
    def pulled(self, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
        """Its model comes from a source that is always there."""
        file = write_tiny_gguf(tmp_path / "new.gguf", salt="new")
        store.versions.history.path.unlink()
        monkeypatch.setattr(compose, "make_puller", lambda settings, catalog: FilePuller(catalog, file, "m"))
        return store

    def test_lock_check_and_sync(self, oprel: Oprel, pulled: Store, tmp_path: Path) -> None:
        assert oprel("lock", "m").code == 0
        assert oprel("sync", "--check").out.split()[:2] == ["here", "m:latest"]
        assert oprel("rm", "m").code == 0
        ended = oprel("sync", "--check", "--json")
        assert (ended.code, json.loads(ended.out)[0]["state"]) == (1, "missing")
        assert oprel("sync").code == 0
        assert oprel("sync", "--check").code == 0
        assert names(pulled) == ["m:latest"]

    def test_a_project_says_what_it_needs(self, oprel: Oprel, pulled: Store, tmp_path: Path) -> None:
        assert oprel("lock").code == 2
        (tmp_path / "oprel.toml").write_text('models = ["m"]\n')
        assert (oprel("lock").code, 'name = "m:latest"' in (tmp_path / "oprel.lock").read_text()) == (0, True)

    def test_no_lock(self, oprel: Oprel, store: Store) -> None:
        ended = oprel("sync")
        assert (ended.code, ended.err) == (2, "oprel: there is no oprel.lock: make it with `oprel lock MODEL…`\n")


class TestCache:
    def test_list_and_delete(self, oprel: Oprel, store: Store) -> None:
        assert oprel("cache", "list").out.split() == oprel("list").out.split()
        assert (oprel("cache", "delete", "m").code, names(store)) == (0, [])

    def test_clear_asks(self, oprel: Oprel, store: Store) -> None:
        oprel("cp", "m", "n")
        assert (oprel("cache", "clear").code, len(names(store))) == (2, 2)
        assert (oprel("cache", "clear", typed="n\n").code, len(names(store))) == (0, 2)
        assert (oprel("cache", "clear", typed="y\n").code, names(store)) == (0, [])

    def test_clear_without_asking_leaves_what_others_have(self, oprel: Oprel, store: Store, tmp_path: Path) -> None:
        theirs = OllamaStore(tmp_path / ".ollama" / "models")
        theirs.add("theirs", [("model", gguf_bytes())])
        assert (oprel("cache", "clear", "--yes").code, names(store)) == (0, [])
        assert "theirs:latest" in oprel("list").out
        assert oprel("rm", "theirs").code == 1

    def test_alone_it_shows_its_help(self, oprel: Oprel, store: Store) -> None:
        ended = oprel("cache")
        assert (ended.code, "clear" in ended.out) == (2, True)


def test_500_models_are_listed_in_less_than_three_times_the_time_of_5(tmp_path: Path) -> None:
    """In a process of its own each, as a user sees it, of a store that was never seen before."""
    best = {}
    for count in (5, 500):
        home = tmp_path / str(count)
        ollamas = OllamaStore(home / ".oprel" / "models")
        for number in range(count):
            ollamas.add(f"m{number}", [("model", gguf_bytes({"general.architecture": "llama", "n": number}))])
        environ = {**os.environ, "HOME": str(home), "OPREL_PORT": "1"}
        times = []
        for _ in range(3):
            began = time.perf_counter()
            ended = subprocess.run(
                [sys.executable, "-m", "oprel", "list"], env=environ, capture_output=True, text=True, check=True
            )
            times.append(time.perf_counter() - began)
            assert len(ended.stdout.splitlines()) == count + 1
        assert not (home / ".oprel" / "state" / "gguf").exists(), "no header was read"
        best[count] = min(times)
    assert best[500] < 3 * best[5], best
