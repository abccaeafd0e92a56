"""The whole of it with a real model and a real engine: the command line, the server it starts, the SDK."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from support.models import CHAT_MODEL, EMBED_MODEL
from support.raw_http import ask
from support.servers import (
    TEST_DRIVER,
    RealServer,
    clean_environment,
    descendants,
    is_alive,
    real_server,
    run_oprel,
    wait_until,
)

from oprel import Client, Model
from oprel.config import Settings

QUESTION = "Why is the sky blue?"

is_here = pytest.mark.skipif(TEST_DRIVER == "openai", reason="a remote's files and memory are elsewhere")


@pytest.fixture
def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


@pytest.fixture
def alone(tmp_path: Path, real_models_dir: Path, free_port: int) -> Iterator[dict[str, str]]:
    """An environment without a server; whatever server is started in it is ended."""
    environ = clean_environment(
        tmp_path, OPREL_HOST=f"127.0.0.1:{free_port}", OPREL_MODELS=str(real_models_dir), OPREL_DRIVER="llama_cpp"
    )
    yield environ
    run_oprel("stop", environ=environ)


class TestDetachedServer:
    def test_run_starts_it_and_stop_ends_it(self, alone: dict[str, str], tmp_path: Path, free_port: int) -> None:
        first = run_oprel("run", CHAT_MODEL, QUESTION, "--max-tokens", "12", environ=alone)
        assert first.returncode == 0, first.stderr
        assert first.stdout.strip()
        assert "starting the server" in first.stderr
        state = tmp_path / ".oprel/state"
        told = json.loads((state / f"server-{free_port}.json").read_text())
        assert told["url"] == f"http://127.0.0.1:{free_port}"
        for name in (f"server-{free_port}.json", f"server-{free_port}.log"):
            assert (state / name).stat().st_mode & 0o777 == 0o600
        log = (state / f"server-{free_port}.log").read_text()
        assert f"at {told['url']}" in log
        assert "POST '/api/chat' 200" in log

        second = run_oprel("run", CHAT_MODEL, QUESTION, "--max-tokens", "12", environ=alone)
        assert (second.returncode, second.stderr) == (0, "")
        loaded = json.loads(run_oprel("ps", "--json", environ=alone).stdout)
        assert [model["name"] for model in loaded] == [CHAT_MODEL]

        children = descendants(told["pid"])
        assert children
        stopped = run_oprel("stop", environ=alone)
        assert (stopped.returncode, stopped.stderr) == (0, f"the server at {told['url']} is stopped\n")
        wait_until(lambda: not any(is_alive(pid) for pid in (told["pid"], *children)), what="all to be gone")
        assert not (state / f"server-{free_port}.json").exists()
        assert list((state / "run").iterdir()) == []
        assert "there is nothing to stop" in run_oprel("stop", environ=alone).stderr

    def test_two_at_once_start_one(self, alone: dict[str, str], tmp_path: Path) -> None:
        """Under a lock: the second one uses what the first one started."""
        command = [sys.executable, "-m", "oprel", "embed", EMBED_MODEL, "a"]
        both = [
            subprocess.Popen(
                command, env=alone, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
            for _ in range(2)
        ]
        ended = [process.communicate(timeout=60) for process in both]
        assert [process.returncode for process in both] == [0, 0], ended
        assert sum(b"starting the server" in err for _, err in ended) == 1
        assert ended[0][0] == ended[1][0]

    def test_another_program_on_the_port_is_named_and_nothing_is_started(
        self, alone: dict[str, str], tmp_path: Path, free_port: int
    ) -> None:
        with HTTPServer(("127.0.0.1", free_port), _OllamaLike) as other:
            thread = threading.Thread(target=other.serve_forever, args=(0.05,))
            thread.start()
            ended = run_oprel("run", CHAT_MODEL, "hi", environ=alone)
            other.shutdown()
            thread.join()
        assert ended.returncode == 1
        assert "Ollama" in ended.stderr
        assert "not Oprel" in ended.stderr
        assert not list((tmp_path / ".oprel/state").glob("server-*.log"))

    def test_a_server_that_can_not_start_is_quoted(self, alone: dict[str, str]) -> None:
        ended = run_oprel("run", CHAT_MODEL, "hi", environ={**alone, "OPREL_MAX_QUEUE": "many"})
        assert ended.returncode == 2
        assert "max_queue: 'many' from OPREL_MAX_QUEUE" in ended.stderr

    def test_a_server_elsewhere_is_not_started(self, alone: dict[str, str]) -> None:
        ended = run_oprel("run", CHAT_MODEL, "hi", "--host", "192.0.2.1", environ=alone)
        assert ended.returncode == 1
        assert "can be started on this machine only" in ended.stderr


class TestCommands:
    @pytest.fixture
    def here(self, real_server: RealServer, tmp_path: Path) -> dict[str, str]:
        return clean_environment(tmp_path, OPREL_HOST=real_server.url, OPREL_MODELS=real_server.environ["OPREL_MODELS"])

    def test_piped(self, here: dict[str, str]) -> None:
        ended = run_oprel("run", CHAT_MODEL, "--max-tokens", "8", "--no-stream", stdin="Say hello.", environ=here)
        assert (ended.returncode, ended.stderr) == (0, "")
        assert ended.stdout.strip()

    def test_embed(self, here: dict[str, str]) -> None:
        ended = run_oprel("embed", EMBED_MODEL, "one", "two", environ=here)
        assert [len(json.loads(line)) for line in ended.stdout.splitlines()] == [384, 384]

    @is_here
    def test_show_and_list(self, here: dict[str, str]) -> None:
        shown = json.loads(run_oprel("show", CHAT_MODEL, "--json", environ=here).stdout)
        assert shown["model_info"]["general.architecture"] == "llama"
        listed = run_oprel("list", environ=here).stdout
        assert CHAT_MODEL in listed
        assert EMBED_MODEL in listed

    @is_here
    def test_plan(self, here: dict[str, str]) -> None:
        plan = json.loads(run_oprel("plan", CHAT_MODEL, "--context", "1024", "--json", environ=here).stdout)
        assert plan["driver"] == "llama_cpp"
        assert plan["context_tokens"] == 1024
        assert plan["reasons"]
        told = run_oprel("plan", CHAT_MODEL, environ=here).stdout
        assert "why context" in told

    def test_a_pipe_that_closes_early(self, here: dict[str, str]) -> None:
        command = f"{sys.executable} -m oprel list | head -1"
        ended = subprocess.run(
            ["/bin/sh", "-c", command], env=here, capture_output=True, text=True, timeout=60, check=False
        )
        assert ended.stdout.startswith("NAME")
        assert ended.stderr == ""


def test_a_gguf_file_is_pulled_without_a_server(tmp_path: Path, smollm2_path: Path) -> None:
    file = tmp_path / "My Model.Q4_1.gguf"
    shutil.copyfile(smollm2_path, file)
    environ = clean_environment(tmp_path, OPREL_PORT="1")
    ended = run_oprel("pull", str(file), environ=environ)
    assert ended.returncode == 0, ended.stderr
    name = ended.stdout.strip()
    (listed,) = json.loads(run_oprel("list", "--json", environ=environ).stdout)
    assert listed["name"] == name
    assert file.exists()


class TestSdk:
    def test_client(self, real_server: RealServer) -> None:
        with Client(real_server.url) as client:
            answer = client.chat(CHAT_MODEL, [{"role": "user", "content": QUESTION}], options={"num_predict": 8})
            assert answer.message.content
            assert answer.eval_count is not None
            parts = list(client.generate(CHAT_MODEL, "Once", stream=True, options={"num_predict": 8}))
            assert parts[-1].done
            assert len(client.embed(EMBED_MODEL, "a").embeddings[0]) == 384

    def test_model_in_this_process(self, real_models_dir: Path, tmp_path: Path) -> None:
        """No server: the engine is a child of this process, and is gone when the model is unloaded."""
        settings = Settings(models_dir=real_models_dir, state_dir=tmp_path / "state", driver="llama_cpp")
        import os

        before = set(descendants(os.getpid()))
        with Model(CHAT_MODEL, use_server=False, settings=settings) as model:
            engines = set(descendants(os.getpid())) - before
            assert engines
            assert model.generate("Say hello.", max_tokens=8)
            assert "".join(model.generate("Say hello.", max_tokens=8, stream=True))
        wait_until(lambda: not any(is_alive(pid) for pid in engines), what="the engine to be gone")


def test_health_of_a_real_server(real_server: RealServer) -> None:
    assert ask(real_server.port, "/health").json["server"] == "oprel"


class _OllamaLike(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = b"Ollama is running" if self.path == "/" else b"404 page not found"
        self.send_response(200 if self.path == "/" else 404)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_args: object) -> None: ...


@is_here
def test_a_strict_server_looks_at_its_traffic_and_finds_it_as_documented(real_models_dir: Path) -> None:
    ask_for = {"model": CHAT_MODEL, "max_tokens": 4, "messages": [{"role": "user", "content": QUESTION}]}
    with real_server("--strict", models_dir=real_models_dir) as server:
        for path, body in (
            ("/v1/chat/completions", ask_for),
            ("/v1/chat/completions", {**ask_for, "stream": True}),
            ("/api/chat", {**ask_for, "options": {"num_predict": 4}}),
        ):
            assert ask(server.port, path, "POST", body=body).status == 200
        assert ask(server.port, "/v1/nothing").status == 404
        assert server.stop() == 0
        output = server.output
    assert "strict: " in output
    assert "not as documented" not in output
