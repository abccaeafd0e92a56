"""The run directory and the sweep of what a crash left in it."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from oprel.drivers.children import RunDirectory, choose_run_dir, sweep
from oprel.drivers.children.places import Record
from oprel.drivers.children.processes import start_mark
from oprel.errors import ConfigError


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process in a group of its own."""
    with subprocess.Popen((sys.executable, "-c", "input()"), stdin=subprocess.PIPE, start_new_session=True) as process:
        yield process
        process.kill()


class TestRunDirectory:
    def test_it_is_private(self, tmp_path: Path) -> None:
        path = tmp_path / "state" / "run"
        path.mkdir(parents=True, mode=0o755)
        RunDirectory(path).place()
        assert stat.S_IMODE(path.stat().st_mode) == 0o700

    def test_a_link_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "run").symlink_to(tmp_path)
        with pytest.raises(ConfigError, match="isn't a directory of this user"):
            RunDirectory(tmp_path / "run").place()

    def test_a_file_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "run").write_text("")
        with pytest.raises(ConfigError, match="can't be used"):
            RunDirectory(tmp_path / "run").place()

    def test_a_socket_path_that_cannot_be_bound_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="too long"):
            RunDirectory(tmp_path / ("x" * 100)).place()

    def test_a_long_path_gets_a_short_stand_in(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
        chosen = choose_run_dir(tmp_path / ("x" * 100))
        assert chosen.parent == tmp_path
        assert len(os.fsencode(RunDirectory(chosen).place().socket)) <= 107
        assert choose_run_dir(tmp_path / ("x" * 100)) == chosen
        assert choose_run_dir(tmp_path / "short") == tmp_path / "short"

    def test_clearing_a_place_leaves_nothing_of_it(self, tmp_path: Path) -> None:
        first, second = RunDirectory(tmp_path).place(), RunDirectory(tmp_path).place()
        for place in (first, second):
            place.claim(engine="e")
            place.add_file("jinja", "{{ x }}")
            place.socket.touch()
        assert stat.S_IMODE(first.record.stat().st_mode) == 0o600
        first.clear()
        assert {path.name.partition(".")[0] for path in tmp_path.iterdir()} == {second.stem}


class TestSweep:
    def leave(self, run_dir: Path, *, owner: int, owner_mark: str, pid: int, mark: str) -> Path:
        place = RunDirectory(run_dir).place()
        record = Record(owner_pid=owner, owner_mark=owner_mark, pid=pid, mark=mark, engine="llama-server")
        place.record.write_bytes(msgspec.json.encode(record))
        place.socket.touch()
        return place.socket

    def test_an_orphan_is_ended_and_its_files_go(self, tmp_path: Path, sleeper: subprocess.Popen[bytes]) -> None:
        mark = start_mark(sleeper.pid)
        assert mark is not None
        self.leave(tmp_path, owner=os.getpid(), owner_mark="another boot:1", pid=sleeper.pid, mark=mark)
        (told,) = sweep(tmp_path)
        assert str(sleeper.pid) in told
        assert sleeper.wait(timeout=10) == -9
        assert list(tmp_path.iterdir()) == []

    def test_engines_of_a_living_oprel_are_left_alone(self, tmp_path: Path, sleeper: subprocess.Popen[bytes]) -> None:
        mark, own = start_mark(sleeper.pid) or "", start_mark(os.getpid()) or ""
        socket = self.leave(tmp_path, owner=os.getpid(), owner_mark=own, pid=sleeper.pid, mark=mark)
        assert sweep(tmp_path) == ()
        assert sleeper.poll() is None
        assert socket.exists()

    def test_a_pid_that_was_given_away_is_not_ended(self, tmp_path: Path, sleeper: subprocess.Popen[bytes]) -> None:
        self.leave(tmp_path, owner=1 << 22, owner_mark="x", pid=sleeper.pid, mark="another boot:77")
        assert sweep(tmp_path) == ()
        assert sleeper.poll() is None
        assert list(tmp_path.iterdir()) == []

    def test_leftovers_without_a_readable_record_go(self, tmp_path: Path) -> None:
        (tmp_path / "aaaaaaaa.sock").touch()
        (tmp_path / "bbbbbbbb.json").write_text("{half")
        (tmp_path / "bbbbbbbb.sock").touch()
        (tmp_path / "cccccccc.json.part").touch()
        (tmp_path / "dddddddd.jinja").touch()
        assert sweep(tmp_path) == ()
        assert list(tmp_path.iterdir()) == []

    def test_no_directory_is_nothing_to_do(self, tmp_path: Path) -> None:
        assert sweep(tmp_path / "absent") == ()
