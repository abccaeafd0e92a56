"""What is asked of the hub by the command line: quantizations, aliases, notes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.servers import ScriptedPuller, ScriptedServer
from support.tiny_gguf import write_tiny_gguf

from oprel.errors import SourceError
from oprel.sources import PullProgress, PullWish
from oprel.store import Store

Start = Callable[..., ScriptedServer]
Oprel = Callable[..., Any]
DONE = [PullProgress("pulling manifest", note="Q4_K_M (4.7 GB): the best that fits"), PullProgress("success")]


def test_pull_names_the_quantization_and_tells_the_choice(oprel: Oprel, scripted_server: Start) -> None:
    puller = ScriptedPuller(DONE)
    server = scripted_server(puller=puller)
    flags = ("--quantization", "q8_0", "--allow-low-quality", "--max-memory", "700")
    ended = oprel("pull", "qwen2.5:3b", *flags, server=server)
    assert (ended.code, ended.out) == (0, "")
    assert "Q4_K_M (4.7 GB): the best that fits\n" in ended.err
    assert puller.pulled == ["qwen2.5:3b-q8_0"]
    assert puller.wishes == [PullWish(allow_low_quality=True, max_memory_bytes=700 << 20)]


def test_quiet_is_quiet(oprel: Oprel, scripted_server: Start) -> None:
    ended = oprel("--quiet", "pull", "qwen2.5", server=scripted_server(puller=ScriptedPuller(DONE)))
    assert (ended.code, ended.out, ended.err) == (0, "", "")


@pytest.mark.parametrize("command", ["run", "generate"])
def test_run_and_generate_fetch_what_is_missing_as_asked(oprel: Oprel, scripted_server: Start, command: str) -> None:
    puller = ScriptedPuller(error=SourceError("no such thing"))
    server = scripted_server(puller=puller)
    ended = oprel(command, "o/r", "hi", "--quantization", "Q2_K", "--allow-low-quality", server=server)
    assert (ended.code, ended.err.splitlines()[-1]) == (1, "oprel: no such thing")
    assert puller.pulled == ["o/r:Q2_K"]
    assert puller.wishes == [PullWish(allow_low_quality=True)]


@pytest.mark.parametrize("command", ["run", "generate"])
def test_two_bits_need_a_word(oprel: Oprel, scripted_server: Start, command: str) -> None:
    puller = ScriptedPuller()
    ended = oprel(command, "o/r", "hi", "--quantization", "Q2_K", server=scripted_server(puller=puller))
    assert ended.code == 1
    assert "--allow-low-quality" in ended.err
    assert puller.pulled == []


def test_a_file_has_the_quantization_that_it_has(oprel: Oprel, tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "x.gguf")
    ended = oprel("run", str(path), "hi", "--quantization", "Q8_0")
    assert ended.code == 1
    assert "leave out --quantization" in ended.err


def test_list_models_tells_what_is_here(oprel: Oprel, tmp_path: Path) -> None:
    store = Store(tmp_path / ".oprel/models", state_dir=tmp_path / ".oprel/state")
    store.import_gguf(write_tiny_gguf(tmp_path / "x.gguf"), "hf.co/Qwen/Qwen2.5-3B-Instruct-GGUF:Q4_K_M")
    ended = oprel("list-models")
    lines = [line.split() for line in ended.out.splitlines()]
    assert lines[0] == ["ALIAS", "POINTS", "TO", "HERE"]
    assert ["llama3", "hf.co/lmstudio-community/Llama-3.2-3B-Instruct-GGUF", "-"] in lines
    (here,) = [line for line in lines if line[0] == "qwen2.5:3b"]
    assert here[2] != "-"
    told = {row["alias"]: row for row in json.loads(oprel("list-models", "--json").out)}
    assert len(told) == 25
    assert told["qwen2.5:3b"]["model"] == "hf.co/Qwen/Qwen2.5-3B-Instruct-GGUF:Q4_K_M"
    assert (told["llama3"]["here"], told["llama3"]["model"]) == (False, None)


def test_a_limit_that_is_none_is_wrong_usage(oprel: Oprel) -> None:
    assert oprel("search", "x", "--limit", "0").code == 2
