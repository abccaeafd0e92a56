"""`oprel` as a function of its arguments, its input and a server."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from oprel.cli import main


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str


Oprel = Callable[..., Ended]


class _Input(io.StringIO):
    def __init__(self, text: str, *, is_terminal: bool) -> None:
        super().__init__(text)
        self._is_terminal = is_terminal

    def isatty(self) -> bool:
        return self._is_terminal


@pytest.fixture
def oprel(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Oprel:
    """Runs a command in this process, with a home of its own. `typed`: lines at a terminal; `piped`: from a pipe."""
    for name in ("HOME", "OPREL_CONFIG"):
        monkeypatch.setenv(name, str(tmp_path)) if name == "HOME" else monkeypatch.delenv(name, raising=False)
    for name in ("OPREL_HOST", "OLLAMA_HOST", "OPREL_API_KEY", "OPREL_MODELS", "OLLAMA_MODELS", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str, server: object = None, typed: str | None = None, piped: str = "") -> Ended:
        text = typed if typed is not None else piped
        monkeypatch.setattr("sys.stdin", _Input(text, is_terminal=typed is not None))
        if server is not None:
            monkeypatch.setenv("OPREL_HOST", server.url)  # type: ignore[attr-defined]
        capsys.readouterr()
        code = main(arguments)
        captured = capsys.readouterr()
        return Ended(code, captured.out, captured.err)

    return run
