"""The ExLlama host as a process of the test, with stand-ins for the libraries, and a client for its socket."""

from __future__ import annotations

import json
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from oprel.drivers.exllama.probe import HOST
from support.exllama_python import events, install, jobs, write_model

__all__ = ["KEY", "Stream", "RunningHost", "running_host", "start_host"]

KEY = "k" * 64
_READY_LIMIT_S = 20.0
_ANSWER_LIMIT_S = 30.0


class Stream:
    """What a stream was made of. `error` is that of an error event; `is_done`: it ended with [DONE]."""

    def __init__(self, chunks: list[dict[str, Any]], *, is_done: bool) -> None:
        self.chunks = chunks
        self.is_done = is_done
        self.error = next((chunk["error"] for chunk in chunks if "error" in chunk), None)
        self.choices = [choice for chunk in chunks for choice in chunk.get("choices", ())]
        self.pieces = [c.get("text") or c.get("delta", {}).get("content") or "" for c in self.choices]
        self.text = "".join(self.pieces)
        self.reason = next((c["finish_reason"] for c in self.choices if c["finish_reason"]), None)
        self.usage = next((chunk["usage"] for chunk in chunks if chunk.get("usage")), None)

    @classmethod
    def read(cls, lines: Iterator[str]) -> Stream:
        events = [line.removeprefix("data: ") for line in lines if line]
        return cls([json.loads(e) for e in events if e != "[DONE]"], is_done=events[-1:] == ["[DONE]"])


class RunningHost:
    def __init__(self, process: subprocess.Popen[bytes], folder: Path, environment: Path, log: Path) -> None:
        self.process = process
        self.socket = folder / "h.sock"
        self.environment = environment
        self._log = log
        transport = httpx.HTTPTransport(uds=str(self.socket))
        self.client = httpx.Client(
            transport=transport,
            base_url="http://host",
            headers={"Authorization": f"Bearer {KEY}"},
            timeout=_ANSWER_LIMIT_S,
        )

    @property
    def output(self) -> str:
        return self._log.read_text(errors="replace")

    @property
    def last_words(self) -> dict[str, Any]:
        """The line of JSON that it left."""
        line = next(line for line in self.output.splitlines() if line.startswith('{"oprel_exit"'))
        found: dict[str, Any] = json.loads(line)["oprel_exit"]
        return found

    @property
    def jobs(self) -> list[dict[str, Any]]:
        return jobs(self.environment)

    def events(self, name: str | None = None) -> list[dict[str, Any]]:
        return events(self.environment, name)

    def health(self) -> tuple[int, dict[str, Any]]:
        answer = self.client.get("/health")
        return answer.status_code, answer.json()

    def is_listening(self) -> bool:
        """httpx leaves a socket behind when it can't connect."""
        with socket.socket(socket.AF_UNIX) as trial:
            return trial.connect_ex(str(self.socket)) == 0

    def wait_phase(self, phase: str) -> dict[str, Any]:
        deadline = time.monotonic() + _READY_LIMIT_S
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.output
            told = self.health()[1] if self.is_listening() else {}
            if told.get("phase") == phase:
                return told
            time.sleep(0.01)
        raise AssertionError(f"not {phase} within {_READY_LIMIT_S:g} s: {self.output}")

    def post(self, path: str, **body: Any) -> httpx.Response:
        return self.client.post(path, json=body)

    def complete(self, prompt: Any = "hi", **body: Any) -> Stream:
        """A streamed completion, greedy unless told otherwise."""
        return self._stream("/v1/completions", {"prompt": prompt, **body})

    def chat(self, text: str = "hi", **body: Any) -> Stream:
        return self._stream("/v1/chat/completions", {"messages": [{"role": "user", "content": text}], **body})

    def _stream(self, path: str, body: dict[str, Any]) -> Stream:
        whole = {"temperature": 0, "stream": True, "stream_options": {"include_usage": True}, **body}
        with self.client.stream("POST", path, json=whole) as answer:
            if answer.status_code != 200:
                raise AssertionError(answer.read().decode())
            return Stream.read(answer.iter_lines())

    def wait_end(self, limit_s: float = 10.0) -> int:
        return self.process.wait(limit_s)


@contextmanager
def start_host(
    folder: Path,
    *words: str,
    engine: str = "exllamav3",
    context: int = 512,
    slots: int = 2,
    model: Path | None = None,
    python: Path | None = None,
    environ: dict[str, str] | None = None,
    **script: Any,
) -> Iterator[RunningHost]:
    """A host that has been started and may not be ready; it is gone at the end. Its model is a new one, of the
    engine's first format, unless given; `words` are further ones of its command line. `python` None: the stand-ins'."""
    python = python or install(folder / "env", **script)
    if model is None:
        model = write_model(folder / "model", quantization={"exllamav2": "exl2", "exllamav3": "exl3"}[engine]).parent
    log = folder / "host.log"
    # pytest's folders are too deep for a socket's path.
    with tempfile.TemporaryDirectory(prefix="oprel-test-") as short, log.open("wb") as output:
        command = [
            str(python), "-I", "-u", HOST, "--engine", engine, "--model", str(model), "--socket", f"{short}/h.sock",
            "--context", str(context), "--slots", str(slots), *words,
        ]  # fmt: skip
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={"PATH": "/usr/bin:/bin", "OPREL_HOST_KEY": KEY, **(environ or {})},
            start_new_session=True,
        )
        host = RunningHost(process, Path(short), folder / "env", log)
        try:
            yield host
        finally:
            host.client.close()
            if process.poll() is None:
                process.kill()
            process.wait(10)


@contextmanager
def running_host(folder: Path, *words: str, **options: Any) -> Iterator[RunningHost]:
    """A host that is ready."""
    with start_host(folder, *words, **options) as host:
        host.wait_phase("ready")
        yield host
