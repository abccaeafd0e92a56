"""The bundled engine as a program of its own."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

import oprel.drivers.llama_cpp.probe as probe_module

HOST = Path(probe_module.__file__).with_name("host.py")


def host(*arguments: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    spec = importlib.util.find_spec("xllamacpp")
    assert spec is not None
    assert spec.origin is not None
    command = (sys.executable, "-I", "-S", str(HOST), "--import-path", str(Path(spec.origin).parent.parent), *arguments)
    return subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False, env={"PATH": "", **(environment or {})}
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--tools", "all"), "--tools"),
        (("--ctx-size",), "--ctx-size wants a value"),
        (("--ctx-size", "many"), "many"),
        (("--pooling", "sideways"), "'sideways' is none of none, mean"),
        (("--chat-template-file", "/no/such/file"), "No such file"),
    ],
    ids=["unknown", "no value", "no number", "no member", "no file"],
)
def test_arguments_that_it_does_not_know_end_it(arguments: tuple[str, ...], said: str) -> None:
    done = host(*arguments)
    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_model_that_cannot_be_loaded_ends_it_without_a_traceback() -> None:
    done = host("--model", "/no/such/model", "--host", "/no/such/dir/x.sock", environment={"LLAMA_API_KEY": "canary"})
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "canary" not in done.stderr + done.stdout


def test_it_imports_nothing_of_oprel() -> None:
    source = HOST.read_text(encoding="utf-8")
    assert "import oprel" not in source
    assert "from oprel" not in source
