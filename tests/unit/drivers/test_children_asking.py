"""Programs that are asked on their command line."""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from oprel.drivers.children.asking import NoAnswerError, ask


def _python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-I", "-S", "-c", code)


def test_what_it_says_on_both_streams_and_how_it_ended_is_told() -> None:
    said = ask(_python("import os; os.write(1, b'one\\n'); os.write(2, b'two\\n\\n'); os._exit(3)"), timeout_s=30)
    assert (said.code, said.text, said.last_line) == (3, "one\ntwo\n\n", "two")


def test_one_that_says_nothing_is_described_by_its_end() -> None:
    assert ask(_python("import os; os._exit(7)"), timeout_s=30).last_line == "it ended with code 7"


def test_a_flood_is_cut() -> None:
    assert len(ask(_python("print('x' * 100_000)"), timeout_s=30, max_bytes=1000).text) == 1000


def test_what_is_no_program_is_said_in_words(tmp_path: Path) -> None:
    """The shim says it, so it comes as an answer that failed."""
    said = ask((str(tmp_path / "nothing"),), timeout_s=30)
    assert said.code != 0 and "nothing" in said.last_line


def test_one_that_hangs_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    code = (
        "import os, subprocess, sys, time; "
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); "
        f"open({str(note)!r}, 'w').write(str(child.pid)); time.sleep(60)"
    )
    with pytest.raises(NoAnswerError, match=r"doesn't answer --help within 3 s"):
        ask(_python(code), timeout_s=3, question="--help")
    grandchild = int(note.read_text())
    deadline = time.monotonic() + 10
    while _runs(grandchild) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not _runs(grandchild)


def _runs(pid: int) -> bool:
    with suppress(OSError):
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0]
    with suppress(OSError):
        os.kill(pid, 0)
        return True
    return False
