"""`llama-quantize` as a child: found where it should be, followed, ended, and told what it said."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from support.servers import wait_until

from oprel.drivers.llama_cpp.quantize import LlamaQuantize
from oprel.errors import EngineFailedError


def write_tool(folder: Path, script: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "llama-quantize"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def test_it_is_found_beside_the_configured_server_then_on_path(tmp_path: Path) -> None:
    assert LlamaQuantize.find(search_path=str(tmp_path)) is None
    on_path = write_tool(tmp_path / "bin", "")
    beside = write_tool(tmp_path / "own", "")
    found = LlamaQuantize.find(search_path=str(tmp_path / "bin"))
    assert found is not None and found.executable == on_path
    found = LlamaQuantize.find(tmp_path / "own" / "llama-server", search_path=str(tmp_path / "bin"))
    assert found is not None and found.executable == beside
    found = LlamaQuantize.find(tmp_path / "elsewhere" / "llama-server", search_path=str(tmp_path / "bin"))
    assert found is not None and found.executable == on_path


def test_it_is_given_files_and_type_and_its_progress_is_read(tmp_path: Path) -> None:
    tool = write_tool(
        tmp_path, 'echo "[ 1/ 4] blk.0"; echo "[   4/   4] blk.1"; cp "$1" "$2"; echo "$3" >> "$2"; echo "$HF_TOKEN"'
    )
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_text("weights ")
    shares: list[float] = []
    os.environ["HF_TOKEN"] = "secret"
    try:
        LlamaQuantize(tool)(source, target, "Q4_K", shares.append)
    finally:
        del os.environ["HF_TOKEN"]
    assert target.read_text() == "weights Q4_K_M\n"
    assert shares[-1] == 1.0
    assert shares == sorted(shares)


def test_what_it_says_when_it_fails_is_told(tmp_path: Path) -> None:
    tool = write_tool(tmp_path, "echo loading; echo 'main: failed to quantize model' >&2; exit 3")
    with pytest.raises(EngineFailedError, match=r"^llama-quantize ended with code 3: main: failed to quantize model$"):
        LlamaQuantize(tool)(tmp_path / "a", tmp_path / "b", "Q8_0", lambda share: None)


def test_it_ends_when_nobody_waits_for_it(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    tool = write_tool(tmp_path, f'echo $$ > {pid_file}; echo "[1/2]"; sleep 60')

    class Enough(Exception):
        pass

    def progress(share: float) -> None:
        if pid_file.exists() and pid_file.read_text().strip():
            raise Enough

    began = time.monotonic()
    with pytest.raises(Enough):
        LlamaQuantize(tool)(tmp_path / "a", tmp_path / "b", "Q8_0", progress)
    assert time.monotonic() - began < 20
    pid = int(pid_file.read_text())
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), what="the child to be gone")
