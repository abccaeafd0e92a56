"""Folders on the command line: `pull`, `list`, `rm`, `plan`, and `serve --model FOLDER`."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.fake_vllm import install, runs
from support.hub import running_hub
from support.hub_place import HubPlace, files_of
from support.servers import clean_environment, real_server, run_oprel
from support.tree_folders import write_folder

Oprel = Callable[..., Any]


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    places = {"OPREL_MODELS": str(tmp_path / "models"), "OPREL_STATE_DIR": str(tmp_path / "state")}
    return clean_environment(tmp_path, **places, OPREL_VLLM_PYTHON=str(install(tmp_path / "env")))


def names(environ: dict[str, str]) -> list[str]:
    listed = run_oprel("list", "--json", "--port", "1", environ=environ)
    assert listed.returncode == 0, listed.stderr
    return [model["name"] for model in json.loads(listed.stdout)]


@pytest.mark.parametrize(("name", "called"), [((), "my-model:latest"), (("--name", "me/it:v2"), "me/it:v2")])
def test_a_folder_is_pulled(tmp_path: Path, environ: dict[str, str], name: tuple[str, ...], called: str) -> None:
    folder = write_folder(tmp_path / "my-model")
    (folder / "README.md").write_text("x")
    done = run_oprel("pull", str(folder), *name, environ=environ)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == called
    assert "left out, since no engine needs it: README.md" in done.stderr
    assert names(environ) == [called]
    assert (tmp_path / "trees").is_dir(), "beside the state folder"


def test_this_folder_has_a_name_too(tmp_path: Path, environ: dict[str, str]) -> None:
    folder = write_folder(tmp_path / "here")
    done = run_oprel("pull", ".", environ=environ, cwd=folder)
    assert done.stdout.strip() == "here:latest", done.stderr


def test_a_name_is_for_files_and_folders(environ: dict[str, str]) -> None:
    done = run_oprel("pull", "smollm2:135m", "--name", "x", environ=environ)
    assert done.returncode == 2
    assert "--name is for a file or folder" in done.stderr


def test_a_folder_that_is_refused_is_one_sentence(tmp_path: Path, environ: dict[str, str]) -> None:
    folder = write_folder(tmp_path / "bad")
    (folder / "pytorch_model.bin").write_bytes(b"x")
    done = run_oprel("pull", str(folder), environ=environ)
    assert done.returncode == 1
    assert "pytorch_model.bin" in done.stderr and "pickle" in done.stderr
    assert "Traceback" not in done.stderr
    assert names(environ) == []


def test_a_gguf_model_keeps_its_name(tmp_path: Path, environ: dict[str, str]) -> None:
    from support.tiny_gguf import write_tiny_gguf

    assert run_oprel("pull", str(write_tiny_gguf(tmp_path / "both.gguf")), environ=environ).returncode == 0
    done = run_oprel("pull", str(write_folder(tmp_path / "both")), environ=environ)
    assert done.returncode == 1
    assert "another name" in done.stderr


def test_the_plan_for_a_folder_is_vllms(tmp_path: Path, environ: dict[str, str]) -> None:
    """`auto` takes what can run it, and says why."""
    run_oprel("pull", str(write_folder(tmp_path / "one")), environ=environ)
    shown = run_oprel("plan", "one", environ=environ)
    assert shown.returncode == 0, shown.stderr
    assert "vllm (vllm is the first usable driver that supports the model" in shown.stdout
    assert f"--model {tmp_path}/trees/" in shown.stdout
    refused = run_oprel("plan", "one", "--driver", "llama_cpp", environ=environ)
    assert refused.returncode == 1
    assert "runs GGUF files" in refused.stderr


def test_the_config_chooses_for_one_model(tmp_path: Path, environ: dict[str, str]) -> None:
    """And what is wrong with the chosen one is told, although another could run it."""
    assert run_oprel("pull", str(write_folder(tmp_path / "one")), environ=environ).returncode == 0
    assert run_oprel("pull", str(write_folder(tmp_path / "two", seed=2)), environ=environ).returncode == 0
    config = tmp_path / "config.toml"
    config.write_text('[model_drivers]\none = "exllamav3"\n')
    chosen = {**environ, "OPREL_CONFIG": str(config)}
    told = run_oprel("plan", "one", environ=chosen)
    assert told.returncode == 1
    assert "The driver 'exllamav3' can't be used: no Python with exllamav3 is named" in told.stderr
    assert json.loads(run_oprel("plan", "two", "--json", environ=chosen).stdout)["driver"] == "vllm"


def test_without_vllm_the_way_to_get_it_is_told(tmp_path: Path, environ: dict[str, str]) -> None:
    run_oprel("pull", str(write_folder(tmp_path / "one")), environ=environ)
    (tmp_path / "nothing").mkdir()
    bare = {**environ, "PATH": str(tmp_path / "nothing")}
    del bare["OPREL_VLLM_PYTHON"]
    told = run_oprel("plan", "one", environ=bare)
    assert told.returncode == 1
    assert "no vLLM was found" in told.stderr and "--vllm-python" in told.stderr
    states = {row["name"]: row for row in json.loads(run_oprel("drivers", "--json", environ=bare).stdout)}
    assert states["vllm"]["usable"] is False
    assert "pip install vllm" in states["vllm"]["reason"]


def test_a_folder_is_served_and_removed(tmp_path: Path) -> None:
    """From the folder on the command line to an answer of (a stand-in for) vLLM."""
    folder = write_folder(tmp_path / "it")
    environ = {"OPREL_VLLM_PYTHON": str(install(tmp_path / "env")), "OPREL_TREES_DIR": str(tmp_path / "trees")}
    with real_server("--driver", "vllm", "--model", str(folder), environ=environ) as server:
        asked = {"model": "it", "messages": [{"role": "user", "content": "Hi"}], "stream": False}
        request = urllib.request.Request(f"{server.url}/api/chat", json.dumps(asked).encode())
        with urllib.request.urlopen(request, timeout=30) as answer:
            told = json.load(answer)
        assert told["message"]["content"] == "t0 t1 t2 "
        (started,) = runs(tmp_path / "env")
        assert (started.option("--model") or "").startswith(str(tmp_path / "trees"))
        removed = run_oprel("rm", "it", "--port", str(server.port), environ=server.environ)
        assert removed.returncode == 0, removed.stderr
        with urllib.request.urlopen(f"{server.url}/api/tags", timeout=5) as answer:
            assert json.load(answer)["models"] == []


def test_a_folder_of_the_hub_is_mended_locked_and_brought_back(
    oprel: Oprel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPREL_PORT", "1")
    with running_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        hub.add("o/r", files_of(write_folder(tmp_path / "source")))
        place = HubPlace(tmp_path / ".oprel", hub)
        place.pull("o/r")
        place.take_fetched()
        place.file("o/r", "model.safetensors").unlink()
        ended = oprel("verify", "--repair")
        assert (ended.code, place.take_fetched()) == (0, ["model.safetensors"])
        assert ended.out.startswith("missing: model.safetensors is missing (needed by hf.co/o/r:latest); fetched again")
        digest = place.catalog.find("o/r").digest
        assert oprel("lock", "o/r").code == 0
        assert oprel("rm", "hf.co/o/r").code == 0
        assert oprel("sync", "--check").out.split()[0] == "missing"
        assert oprel("sync").code == 0
        assert place.catalog.find("o/r").digest == digest
        assert oprel("verify").code == 0
