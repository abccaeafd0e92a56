"""Where the log goes."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from oprel.errors import ConfigError
from oprel.server import log
from oprel.server.log import configure_logging


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    root, own = logging.getLogger(), logging.getLogger("oprel")
    before = root.handlers[:], root.level, own.level
    yield
    for handler in set(root.handlers) - set(before[0]):
        handler.close()
    root.handlers[:] = before[0]
    root.setLevel(before[1])
    own.setLevel(before[2])


def test_without_a_file_it_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(verbose=False)
    logging.getLogger("oprel.x").info("a line")
    assert "INFO oprel.x [" in capsys.readouterr().err


def test_a_file_has_a_bound_and_is_its_owners(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(log, "MAX_BYTES", 1000)
    path = tmp_path / "server.log"
    path.write_text("what was there\n")
    configure_logging(verbose=False, log_file=path)
    for number in range(100):
        logging.getLogger("oprel.x").info("line %d", number)
    older = tmp_path / "server.log.1"
    assert sorted(tmp_path.iterdir()) == [path, older]
    assert "line 99" in path.read_text()
    for each in (path, older):
        assert each.stat().st_size <= 1000
    assert path.stat().st_mode & 0o777 == 0o600
    assert capsys.readouterr().err == ""


def test_a_file_that_can_not_be_written_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"the log can't be written to .*: Is a directory"):
        configure_logging(verbose=False, log_file=tmp_path)
