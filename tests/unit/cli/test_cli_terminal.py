"""How progress, sizes and ages look to a person."""

from __future__ import annotations

import io
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest

from oprel.cli.terminal import Bar, Terminal, age, size


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    stream = _Terminal()
    # Not sys itself: pytest gives sys.stderr a new value between a fixture and its test.
    monkeypatch.setattr("oprel.cli.terminal.sys", SimpleNamespace(stderr=stream))
    return stream


class TestBar:
    def test_at_a_terminal_it_is_drawn_over_itself(self, watched: io.StringIO) -> None:
        with Bar(quiet=False) as bar:
            bar.show("pulling x", 0, 100)
            bar.show("pulling x", 100, 100)
        assert watched.getvalue().count("\r\x1b[K") == 2
        assert "[========================] 100%" in watched.getvalue()
        assert watched.getvalue().endswith("\n")

    def test_not_too_often(self, watched: io.StringIO) -> None:
        with Bar(quiet=False) as bar:
            for done in range(50):
                bar.show("pulling x", done, 1000)
        assert watched.getvalue().count("pulling x") < 5

    def test_each_task_has_its_line(self, watched: io.StringIO) -> None:
        with Bar(quiet=False) as bar:
            bar.show("one")
            bar.show("two")
        assert watched.getvalue() == "\r\x1b[Kone\n\r\x1b[Ktwo\n"

    def test_elsewhere_there_are_no_control_characters(self, capsys: pytest.CaptureFixture[str]) -> None:
        with Bar(quiet=False) as bar:
            bar.show("pulling x", 0, 100)
            bar.show("pulling x", 50, 100)
            bar.show("pulling x", 100, 100)
        said = capsys.readouterr().err
        assert len(said.splitlines()) == 2
        assert "\r" not in said
        assert "\x1b" not in said

    def test_quiet(self, watched: io.StringIO) -> None:
        with Bar(quiet=True) as bar:
            bar.show("pulling x", 0, 100)
        assert watched.getvalue() == ""


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (97_654_321, "98 MB"), (4_661_211_808, "4.7 GB"), (None, "-")],
)
def test_sizes(count: int | None, text: str) -> None:
    assert size(count) == text


@pytest.mark.parametrize(
    ("ago", "text"),
    [(timedelta(seconds=1.5), "1 second ago"), (timedelta(minutes=2, seconds=1), "2 minutes ago"),
     (timedelta(hours=25), "1 day ago"), (timedelta(days=400), "1 year ago"),
     (-timedelta(minutes=4.5), "in 4 minutes")],
)  # fmt: skip
def test_ages(ago: timedelta, text: str) -> None:
    assert age(datetime.now(UTC) - ago) == text


def test_an_unknown_age() -> None:
    assert age(None) == "-"


def test_tables_are_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    Terminal().table(("A", "LONG"), [("aaaa", "b"), ("c", "")])
    assert capsys.readouterr().out == "A      LONG\naaaa   b\nc\n"


def test_a_failure_is_one_sentence_unless_verbose(capsys: pytest.CaptureFixture[str]) -> None:
    from oprel.errors import EngineStartError

    error = EngineStartError("it did not start", log_tail=("last line",))
    Terminal().fail(error)
    assert capsys.readouterr().err == "oprel: it did not start\n"
    Terminal(verbose=True).fail(error)
    assert "last line" in capsys.readouterr().err
