"""The example driver, installed as a wheel beside Oprel's in a clean environment, checked there and asked there."""

from __future__ import annotations

import atexit
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from operator import mul
from pathlib import Path

import httpx
import pytest
from support.ahead import Ahead
from support.servers import RealServer, clean_environment, real_server

REPOSITORY = Path(__file__).parents[2]
EXAMPLE = REPOSITORY / "examples" / "oprel-driver-numpy-bert"
TEXTS = ["a cat", "The quick brown fox jumps over the lazy dog.", "Émile Zola's café — £100 & 50%!", "日本語 text"]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def run(*command: str | Path, environ: dict[str, str] | None = None, limit_s: float = 600) -> str:
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=limit_s, env=environ, check=False
    )
    assert done.returncode == 0, f"{command}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def make_environment() -> Path:
    """The programs of a virtual environment with the wheels of both, and nothing of this checkout."""
    folder = Path(tempfile.mkdtemp(prefix="oprel-example-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    run(sys.executable, "-m", "venv", folder / "venv")
    pip = ("nice", "-n", "19", folder / "venv" / "bin" / "python", "-m", "pip")
    run(*pip, "wheel", "-q", "--no-deps", "-w", folder / "dist", REPOSITORY, EXAMPLE)
    oprel, example = sorted((folder / "dist").glob("*.whl"), key=lambda path: len(path.name))
    assert example.name.startswith("oprel_driver_numpy_bert-")
    run(*pip, "install", "-q", f"{oprel}[testing]", example)
    return folder / "venv" / "bin"


ENVIRONMENT = Ahead(make_environment)
AHEAD = (ENVIRONMENT,)


@pytest.fixture(scope="module")
def environment() -> Path:
    return ENVIRONMENT.result()


@pytest.fixture
def environ(tmp_path: Path, real_models_dir: Path) -> dict[str, str]:
    return clean_environment(tmp_path, OPREL_MODELS=str(real_models_dir), OPREL_STATE_DIR=str(tmp_path / "state"))


@pytest.fixture(scope="module")
def served(environment: Path, real_models_dir: Path) -> Iterator[RealServer]:
    with serving(environment, real_models_dir) as server:
        yield server


@contextmanager
def serving(environment: Path, models_dir: Path) -> Iterator[RealServer]:
    executable, sys.executable = sys.executable, str(environment / "python")
    try:
        with real_server("--driver", "numpy_bert", models_dir=models_dir) as server:
            yield server
    finally:
        sys.executable = executable


def test_it_is_listed_with_its_state(environment: Path, environ: dict[str, str]) -> None:
    listed = {
        driver["name"]: driver
        for driver in json.loads(run(environment / "oprel", "drivers", "--json", environ=environ))
    }
    assert listed["numpy_bert"]["usable"] is None, "nothing chose it, so it isn't imported"
    assert "--driver numpy_bert" in listed["numpy_bert"]["reason"]
    looked_at = json.loads(run(environment / "oprel", "drivers", "--all", "--json", environ=environ))
    (mine,) = (driver for driver in looked_at if driver["name"] == "numpy_bert")
    assert (mine["usable"], mine["origin"]) == (True, "oprel-driver-numpy-bert 0.1.0")
    assert mine["capabilities"] == ["embed", "tokenize"]


def test_it_keeps_the_contract_and_the_documents(environment: Path, environ: dict[str, str]) -> None:
    report = json.loads(run(environment / "oprel", "drivers", "check", "numpy_bert", "--json", environ=environ))
    assert report["passed"]
    holding = {rule["text"] for rule in report["rules"] if rule["outcome"] == "holds"}
    assert {"OpenAI: embeddings", "Ollama: embed", "one vector for each input in order"} <= holding


def test_its_own_tests_pass(environment: Path, environ: dict[str, str], embed_path: Path) -> None:
    run(
        *(environment / "python", "-m", "pytest", "-q", "-p", "no:cacheprovider", EXAMPLE),
        environ={**environ, "NUMPY_BERT_GGUF": str(embed_path)},
    )


def test_both_dialects_tell_the_vectors_that_llama_cpp_tells(served: RealServer, real_server: RealServer) -> None:
    answers = {}
    for name, server in (("numpy_bert", served), ("llama_cpp", real_server)):
        openai = httpx.post(f"{server.url}/v1/embeddings", json={"model": "all-minilm", "input": TEXTS}, timeout=60)
        ollama = httpx.post(f"{server.url}/api/embed", json={"model": "all-minilm", "input": TEXTS}, timeout=60)
        assert openai.headers["x-oprel-driver"] == ollama.headers["x-oprel-driver"] == name
        vectors = [item["embedding"] for item in openai.json()["data"]]
        assert vectors == [pytest.approx(vector, abs=1e-6) for vector in ollama.json()["embeddings"]]
        answers[name] = (openai.json()["usage"], vectors)
    (own_usage, own), (usage, expected) = answers["numpy_bert"], answers["llama_cpp"]
    assert own_usage == usage, "the same tokens"
    assert all(sum(map(mul, mine, theirs)) > 0.999 for mine, theirs in zip(own, expected, strict=True))


def test_it_says_what_it_can_not_do(served: RealServer) -> None:
    body = {"model": "all-minilm", "messages": [{"role": "user", "content": "Hi"}]}
    assert httpx.post(f"{served.url}/v1/chat/completions", json=body, timeout=60).status_code == 400
    shown = httpx.post(f"{served.url}/api/show", json={"model": "smollm2:135m"}, timeout=60).json()["oprel"]
    assert "driver" not in shown
    assert "it knows BERT only" in shown["problem"]
