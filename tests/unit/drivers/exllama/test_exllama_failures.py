"""The ExLlama host when things break: exit codes, dead generators, memory, ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from support.exllama_host import RunningHost, Stream, running_host, start_host
from support.exllama_python import install, write_model

from oprel.drivers.children.processes import start_mark
from oprel.drivers.exllama.probe import HOST

pytest.importorskip("jinja2", reason="chat templates are rendered by jinja2, which an engine's environment has")


GIVEN = ("--engine", "exllamav3", "--model", "/x", "--socket", "s")


class TestExitCodes:
    @pytest.mark.parametrize(
        ("words", "said"),
        [
            ((), "required: --engine"),
            (("--engine", "exllamav9"), "invalid choice"),
            ((*GIVEN, "--context", "0"), "1 or more"),
            ((*GIVEN, "--context", "9", "--gpu-split", "a"), "numbers of GB"),
            ((*GIVEN, "--context", "9", "--template", "/no"), "no file"),
            ((*GIVEN, "--context", "9", "--what"), "unrecognized"),
        ],
        ids=["none", "engine", "context", "split", "template", "unknown"],
    )  # fmt: skip
    def test_arguments(self, tmp_path: Path, words: tuple[str, ...], said: str) -> None:
        python = install(tmp_path)
        done = subprocess.run((python, "-I", HOST, *words), capture_output=True, text=True, timeout=30, check=False)
        assert done.returncode == 2
        assert '"cause": "arguments"' in done.stderr
        assert said in done.stderr

    @pytest.mark.parametrize(
        ("script", "code", "cause", "said"),
        [
            ({"torch_error": "libcudart.so.13: cannot open the file"}, 3, "import", "torch can't be imported"),
            ({"packages": ["exllamav3"]}, 3, "import", "pip install torch"),
            ({"packages": ["torch"]}, 3, "import", "pip install exllamav3"),
            ({"import_error": "CUDA_HOME environment variable is not set."}, 3, "import", "install the CUDA toolkit"),
            ({"import_error": "undefined symbol: _ZN3c10"}, 3, "import", "another version of torch"),
            ({"gpus": 0}, 4, "no_cuda", "finds no CUDA device"),
            ({"load_error": ["RuntimeError", "No CUDA GPUs are available"]}, 4, "no_cuda", "No CUDA GPUs"),
            ({"load_error": ["ValueError", "Could not find lm_head.* in model"]}, 5, "model", "lm_head"),
            ({"load_error": ["AssertionError", ""]}, 5, "model", "AssertionError"),
            ({"load_error": ["RuntimeError", "CUDA out of memory. Tried"]}, 6, "memory", "not enough GPU memory"),
            ({"tokens_max": 512}, 6, "memory", "Insufficient VRAM"),
        ],
        ids=lambda value: str(value)[:30],
    )  # fmt: skip
    def test_a_start_that_fails(self, tmp_path: Path, script: dict[str, Any], code: int, cause: str, said: str) -> None:
        with start_host(tmp_path, **script) as host:
            assert host.wait_end() == code
            assert (host.last_words["code"], host.last_words["cause"]) == (code, cause)
            assert said in host.last_words["message"]
            assert not host.socket.exists()

    @pytest.mark.parametrize(
        ("engine", "quantization", "said"),
        [
            ("exllamav3", "exl2", "are exl2, and this engine takes exl3, fp16"),
            ("exllamav2", "exl3", "are exl3, and this engine takes exl2, gptq, fp16"),
            ("exllamav3", "awq", "are awq"),
        ],
    )
    def test_weights_of_another_kind(self, tmp_path: Path, engine: str, quantization: str, said: str) -> None:
        """Found out before minutes are spent on an import."""
        model = write_model(tmp_path / "m", quantization=quantization).parent
        with start_host(tmp_path, engine=engine, model=model, import_error="never reached") as host:
            assert host.wait_end() == 5
            assert said in host.last_words["message"]

    @pytest.mark.parametrize("engine", ["exllamav2", "exllamav3"])
    def test_unquantized_weights_run_on_both(self, tmp_path: Path, engine: str) -> None:
        model = write_model(tmp_path / "m", quantization=None).parent
        with running_host(tmp_path, engine=engine, model=model) as host:
            assert host.complete(max_tokens=4).text == "Once"

    def test_gptq_runs_on_exllamav2(self, tmp_path: Path) -> None:
        model = write_model(tmp_path / "m", quantization="gptq").parent
        with running_host(tmp_path, engine="exllamav2", model=model) as host:
            assert host.complete(max_tokens=4).text == "Once"

    @pytest.mark.parametrize(
        ("break_it", "said"),
        [
            (lambda m: (m / "config.json").unlink(), "no config.json"),
            (lambda m: ((m / "config.json").unlink(), (m / "a.gguf").touch()), "GGUF files, which llama.cpp runs"),
            (lambda m: (m / "config.json").write_text("{"), "config.json can't be read"),
            (lambda m: (m / "config.json").write_text("[]"), "not a JSON object"),
            (lambda m: (m / "model.safetensors").unlink(), "no .safetensors files"),
            (lambda m: (m / "tokenizer.json").unlink(), "no tokenizer.json"),
            (lambda m: (m / "config.json").write_text('{"auto_map": {}}'), "auto_map"),
        ],
        ids=["config", "gguf", "broken", "list", "weights", "tokenizer", "code"],
    )  # fmt: skip
    def test_folders_that_are_no_model(self, tmp_path: Path, break_it: Any, said: str) -> None:
        model = write_model(tmp_path / "m").parent
        break_it(model)
        with start_host(tmp_path, model=model) as host:
            assert host.wait_end() == 5
            assert said in host.last_words["message"]

    def test_no_folder(self, tmp_path: Path) -> None:
        with start_host(tmp_path, model=tmp_path / "nope") as host:
            assert (host.wait_end(), host.last_words["cause"]) == (5, "model")

    def test_optimized_python_is_refused(self, tmp_path: Path) -> None:
        """The libraries' checks are assertions."""
        model = write_model(tmp_path / "m").parent
        command = [sys.executable, "-I", "-O", HOST, "--engine", "exllamav3", "--model", str(model), "--socket", "x"]
        done = subprocess.run((*command, "--context", "9"), capture_output=True, text=True, timeout=30, check=False)
        assert done.returncode == 2
        assert "without -O" in done.stderr


class TestDeadGenerators:
    @pytest.mark.parametrize("engine", ["exllamav2", "exllamav3"])
    def test_a_step_that_fails_costs_those_who_were_in_it(self, tmp_path: Path, engine: str) -> None:
        """An error event without [DONE], a generator that is made anew, and the next request goes well."""
        with running_host(tmp_path, engine=engine, fails_at=(4,)) as host:
            stream = host.complete(max_tokens=20)
            assert "a kernel went wrong" in stream.error["message"]
            assert not stream.is_done
            assert stream.text == "Onc"
            assert host.complete(max_tokens=4).text == "Once"
            assert len(host.events("generator")) == 2

    def test_a_whole_answer_fails_with_a_status(self, tmp_path: Path) -> None:
        with running_host(tmp_path, fails_at=(2,)) as host:
            answer = host.post("/v1/completions", prompt="a", max_tokens=9)
            assert answer.status_code == 500
            assert "a kernel went wrong" in answer.json()["error"]["message"]

    def test_memory_that_runs_out_is_called_so(self, tmp_path: Path) -> None:
        with running_host(tmp_path, fails_at=(2,), failure="memory") as host:
            assert "out of memory" in host.complete(max_tokens=9).error["message"]
            assert host.complete(max_tokens=4).text == "Once"

    def test_one_that_keeps_failing_ends_the_host(self, tmp_path: Path) -> None:
        """At the third time; each request is told."""
        with running_host(tmp_path, fails_from=1) as host:
            for _ in range(3):
                assert "a kernel went wrong" in host.complete(max_tokens=4).error["message"]
            assert host.wait_end() == 70
            assert host.last_words["cause"] == "dead_generator"
            assert "a kernel went wrong" in host.last_words["message"]

    @pytest.mark.parametrize(
        "script",
        [
            {"failure": "CUDA error: an illegal memory access was encountered"},
            {"rebuild_fails": True},
        ],
        ids=["device lost", "not to be rebuilt"],
    )
    def test_one_that_can_not_be_mended_ends_the_host_at_once(self, tmp_path: Path, script: dict[str, Any]) -> None:
        with running_host(tmp_path, fails_at=(3,), **script) as host:
            stream = host.complete(max_tokens=9)
            assert stream.error is not None
            assert host.wait_end() == 70
            assert host.last_words["code"] == 70

    def test_a_job_that_fails_alone_leaves_the_others(self, tmp_path: Path) -> None:
        with running_host(tmp_path, job_error="cursed", token_s=0.01) as host:
            others: list[Stream] = []
            other = threading.Thread(target=lambda: others.append(host.complete("fine", max_tokens=30)))
            other.start()
            assert "this prompt is cursed" in host.complete("a cursed one", max_tokens=9).error["message"]
            other.join()
            assert others[0].error is None
            assert len(host.events("generator")) == 1

    @pytest.mark.parametrize("engine", ["exllamav2", "exllamav3"])
    def test_a_request_that_the_library_refuses(self, tmp_path: Path, engine: str) -> None:
        """Its assertions at `enqueue` are an answer, and not the end of the generator."""
        with running_host(tmp_path, engine=engine, refuses="too much") as host:
            answer = host.post("/v1/completions", prompt="this is too much", stream=True)
            assert answer.status_code == 400
            assert "Job requires 99 pages" in answer.json()["error"]["message"]
            assert host.complete(max_tokens=4).text == "Once"
            assert len(host.events("generator")) == 1

    def test_a_host_that_dies_cuts_its_streams(self, tmp_path: Path) -> None:
        with running_host(tmp_path, dies_at=5) as host:
            with pytest.raises(Exception, match=r"(?i)peer closed|disconnected|incomplete|reset"):
                host.complete(max_tokens=20)
            assert host.wait_end() == -signal.SIGKILL


class TestStopping:
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
    def test_open_streams_end_with_an_error_event(self, tmp_path: Path, number: signal.Signals) -> None:
        with running_host(tmp_path, token_s=0.01, endless=True) as host:
            streams: list[Stream] = []
            threads = [threading.Thread(target=lambda: streams.append(host.complete(max_tokens=400))) for _ in range(2)]
            for thread in threads:
                thread.start()
            while host.health()[1]["busy"] < 2:
                time.sleep(0.01)
            began = time.monotonic()
            host.process.send_signal(number)
            assert host.wait_end(5) == 0
            assert time.monotonic() - began < 5
            for thread in threads:
                thread.join(5)
            assert len(streams) == 2
            assert all("is stopping" in stream.error["message"] and not stream.is_done for stream in streams)
            assert not host.socket.exists()

    def test_in_the_middle_of_a_long_step(self, tmp_path: Path) -> None:
        with running_host(tmp_path, stalls_at=3) as host:
            streams: list[Stream] = []
            thread = threading.Thread(target=lambda: streams.append(host.complete(max_tokens=40)))
            thread.start()
            while not host.health()[1]["busy"]:
                time.sleep(0.01)
            host.process.terminate()
            assert host.wait_end(5) == 0
            thread.join(5)
            assert "is stopping" in streams[0].error["message"]

    def test_an_idle_connection_keeps_nobody_waiting(self, tmp_path: Path) -> None:
        with running_host(tmp_path) as host:
            host.health()
            began = time.monotonic()
            host.process.terminate()
            assert host.wait_end(5) == 0
            assert time.monotonic() - began < 1.5

    def test_while_it_loads(self, tmp_path: Path) -> None:
        with start_host(tmp_path, hangs_in_load=True) as host:
            host.wait_phase("loading")
            host.process.terminate()
            assert host.wait_end(5) == 0

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
    def test_the_renderer_ends_with_it(self, tmp_path: Path, number: signal.Signals) -> None:
        with running_host(tmp_path) as host:
            children = _children(host)
            assert len(children) == 1
            host.process.send_signal(number)
            host.wait_end()
            deadline = time.monotonic() + 5
            while any(start_mark(pid) is not None for pid in children):
                assert time.monotonic() < deadline, "the renderer outlives the host"
                time.sleep(0.01)


def _children(host: RunningHost) -> list[int]:
    if sys.platform != "linux":
        pytest.skip("the parent-death signal is Linux's")
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == host.process.pid:
            found.append(int(path.parent.name))
    return found


def test_it_imports_nothing_of_oprel() -> None:
    """It runs where there is no Oprel: the standard library, the engine and jinja2."""
    import ast

    tree = ast.parse(Path(HOST).read_text())
    names = {
        alias.name.partition(".")[0]
        for node in ast.walk(tree)
        for alias in (node.names if isinstance(node, ast.Import) else ())
    } | {str(node.module).partition(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert names - set(sys.stdlib_module_names) == {"jinja2"}
    assert os.access(HOST, os.R_OK)
