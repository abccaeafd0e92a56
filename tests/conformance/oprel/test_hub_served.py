"""From the hub to an answer: real models, pulled by real clients, on a real engine, in both dialects."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import ollama
import openai
import pytest
from support.hub import HubServer, running_hub
from support.models import smollm2_gguf
from support.servers import TEST_DRIVER, RealServer, clean_environment, real_server, run_oprel
from support.split_gguf import split_gguf

pytestmark = pytest.mark.skipif(TEST_DRIVER != "llama_cpp", reason="these are GGUF files")

WHOLE = "tiny-org/SmolLM2-GGUF"
SPLIT = "tiny-org/SmolLM2-split-GGUF"
BARE = "tiny-org/SmolLM2-bare-GGUF"
MESSAGES = [{"role": "user", "content": "Say hello."}]


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    """One model, three ways: a file, three parts, and three of which the first has no tensors."""
    folder = tmp_path_factory.mktemp("parts")
    (folder / "bare").mkdir()
    parts = split_gguf(smollm2_gguf(), folder, parts=3, stem="smollm2-Q4_1")
    bare = split_gguf(smollm2_gguf(), folder / "bare", parts=3, stem="smollm2-Q4_1", tensors_in_first=False)
    with running_hub() as server:
        server.add(WHOLE, {"smollm2-Q4_1.gguf": smollm2_gguf(), "LICENSE": b"Apache License"})
        server.add(SPLIT, {path.name: path for path in parts})
        server.add(BARE, {path.name: path for path in bare})
        yield server


@pytest.fixture(scope="module")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hub") / "models"


@pytest.fixture(scope="module")
def server(hub: HubServer, models_dir: Path) -> Iterator[RealServer]:
    environ = {"HF_ENDPOINT": hub.url, "HF_HOME": str(models_dir.parent / "hf")}
    with real_server(models_dir=models_dir, environ=environ) as running:
        yield running


def say_hello(server: RealServer, model: str) -> str:
    options = {"temperature": 0, "seed": 1, "num_predict": 16}
    with closing(ollama.Client(server.url)) as theirs:
        text = theirs.chat(model, MESSAGES, options=options).message.content
    assert text
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        chat = client.chat.completions.create(model=model, messages=MESSAGES, temperature=0, seed=1, max_tokens=16)  # type: ignore[arg-type]
    assert chat.choices[0].message.content == text
    return text


def test_every_form_gives_the_same_answer(server: RealServer) -> None:
    """The parts of a split file are found by the engine, though the store names files by what they hold."""
    answers = set()
    with closing(ollama.Client(server.url)) as client:
        for repo in (WHOLE, SPLIT, BARE):
            told = [part.status for part in client.pull(f"hf.co/{repo}", stream=True)]
            assert told[0] == "pulling manifest"
            assert told[-3:] == ["verifying sha256 digest", "writing manifest", "success"]
            answers.add(say_hello(server, f"hf.co/{repo}"))
            shown = client.show(f"hf.co/{repo}")
            assert shown.details is not None
            assert (shown.details.parameter_size, shown.details.quantization_level) == ("134.52M", "Q4_1")
            client.generate(f"hf.co/{repo}", keep_alive=0)
    assert len(answers) == 1


def test_the_command_line_tells_what_it_chose(server: RealServer, hub: HubServer, tmp_path: Path) -> None:
    environ = clean_environment(tmp_path, OPREL_HOST=server.url, OPREL_STATE_DIR=str(tmp_path), HF_ENDPOINT=hub.url)
    pulled = run_oprel("pull", SPLIT, environ=environ)
    assert pulled.returncode == 0, pulled.stderr
    assert pulled.stdout == ""
    assert "Q4_1 (98 MB): the only one that there is to take\n" in pulled.stderr
    assert "pulling " in pulled.stderr
    assert "98 MB" in pulled.stderr
    asked = run_oprel("run", SPLIT, "Say hello.", "--quantization", "q4_1", "--max-tokens", "8", environ=environ)
    assert asked.returncode == 0, asked.stderr
    assert asked.stdout.strip()
    missing = run_oprel("pull", SPLIT, "--quantization", "Q8_0", environ=environ)
    assert missing.returncode == 1
    assert missing.stderr.splitlines()[-1].startswith(f"oprel: '{SPLIT}' has no 'Q8_0'; it has Q4_1.")


def test_a_search_shows_aliases_and_the_hub(hub: HubServer, tmp_path: Path) -> None:
    environ = clean_environment(tmp_path, HF_ENDPOINT=hub.url)
    found = run_oprel("search", "smollm", "--limit", "2", environ=environ)
    assert found.returncode == 0, found.stderr
    lines = [line.split() for line in found.stdout.splitlines() if line]
    assert ["smollm", "hf.co/HuggingFaceTB/SmolLM2-1.7B-Instruct-GGUF", "-"] in lines
    assert [line[0] for line in lines if line[0].startswith("hf.co/")] == [f"hf.co/{WHOLE}", f"hf.co/{SPLIT}"]
    told = json.loads(run_oprel("search", "bare", "--json", environ=environ).stdout)
    assert told == {"aliases": [], "hub": [{"id": BARE, "downloads": 100, "likes": 0, "formats": ["gguf"]}]}


def test_without_a_hub_the_aliases_are_found_all_the_same(tmp_path: Path) -> None:
    environ = clean_environment(tmp_path, HF_ENDPOINT="http://127.0.0.1:9")
    found = run_oprel("search", "smollm2", environ=environ)
    assert found.returncode == 1
    assert "smollm2:135m" in found.stdout
    assert "can't be reached" in found.stderr
