"""A stand-in for llama-server: its command line, its log lines, its HTTP on a unix socket, and scripted misfortune.

`install(folder, …)` writes an executable `llama-server` into `folder` that behaves as scripted. It prints what
llama.cpp prints when a GPU fails, and `FakeRun` reads back how it was started.
"""

from __future__ import annotations

import dataclasses
import http.server
import json
import os
import signal
import socketserver
import sys
import threading
import time
from pathlib import Path
from typing import Any

__all__ = ["FakeRun", "Script", "install", "runs"]

GPU = "CUDA0: NVIDIA Imaginary 4090 (24564 MiB, 24000 MiB free)"

_OPTIONS_WITH_VALUE = (
    "--model", "--alias", "--host", "--port", "--parallel", "--ctx-size", "--threads", "--batch-size", "--ubatch-size",
    "--gpu-layers", "--fit", "--device", "--main-gpu", "--split-mode", "--flash-attn", "--cache-type-k",
    "--cache-type-v", "--cache-ram", "--load-mode", "--pooling", "--chat-template", "--chat-template-file", "--mmproj",
    "--lora", "--log-verbosity",
)  # fmt: skip
_SWITCHES = (
    "--embeddings", "--jinja", "--no-kv-unified", "--no-ui", "--no-warmup", "--offline", "--list-devices", "--version",
    "--help",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Script:
    """What the stand-in does. Times in seconds, sizes in bytes.

    `tokens_max`: a larger context (of all slots together) ends for lack of memory. `gpu_layers_max`: more layers than
    this on the GPU end in `gpu_failure` ("oom", "busy", "no_kernel", or "lost", which goes on without the GPU as the
    real one does). `dies_with` ends the start with that code after `last_words`. `dies_after_tokens`,
    `stalls_after_tokens`: in the middle of an answer.
    """

    version: str = "11434 (5f2a1c3)"
    devices: tuple[str, ...] = ()
    lacks: tuple[str, ...] = ()
    layers: int = 30
    gpu_layers_max: int | None = None
    gpu_failure: str = "oom"
    slots_context: int | None = None
    tokens_max: int | None = None
    load_s: float = 0.0
    hangs_in_load: bool = False
    dies_with: int | None = None
    last_words: tuple[str, ...] = ()
    ignores_term: bool = False
    flood_bytes: int = 0
    tokens: int = 3
    token_s: float = 0.0
    dies_after_tokens: int | None = None
    stalls_after_tokens: int | None = None
    hangs_on_probe: bool = False
    probe_fails_with: str | None = None
    grandchild: bool = False


@dataclasses.dataclass(frozen=True)
class FakeRun:
    """One start with a model, as the stand-in saw it."""

    pid: int
    argv: list[str]
    environment: dict[str, str]

    def option(self, name: str) -> str | None:
        return self.argv[self.argv.index(name) + 1] if name in self.argv else None


def install(folder: Path, **script: Any) -> Path:
    """The path of an executable `llama-server` in `folder` that does what `Script(**script)` says."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "script.json").write_text(json.dumps(dataclasses.asdict(Script(**script))))
    executable = folder / "llama-server"
    executable.write_text(
        f"#!{sys.executable} -I\n"
        f"import sys\nsys.path.insert(0, {str(Path(__file__).parent.parent)!r})\n"
        f"from support.fake_llama_server import main\nmain({str(folder)!r})\n"
    )
    executable.chmod(0o755)
    return executable


def runs(folder: Path) -> list[FakeRun]:
    """All starts with a model so far, in order."""
    path = folder / "runs.jsonl"
    if not path.exists():
        return []
    return [FakeRun(**json.loads(line)) for line in path.read_text().splitlines()]


def main(folder: str) -> None:
    script = Script(**json.loads((Path(folder) / "script.json").read_text()))
    arguments = sys.argv[1:]
    if "--help" in arguments or "--version" in arguments or "--list-devices" in arguments:
        _answer_probe(script, arguments)
        return
    _FakeServer(script, Path(folder), arguments).run()


def _answer_probe(script: Script, arguments: list[str]) -> None:
    if script.hangs_on_probe:
        time.sleep(600)
    if script.probe_fails_with is not None:
        print(script.probe_fails_with, file=sys.stderr)
        sys.exit(1)
    if "--help" in arguments:
        _print_help(script)
    elif "--version" in arguments:
        print(f"version: {script.version}\nbuilt with GNU 12.2.0 for Linux x86_64", file=sys.stderr)
    else:
        print("Available devices:")
        print("\n".join(f"  {device}" for device in script.devices) or "  (none)")


def _print_help(script: Script) -> None:
    print("----- common params -----\n")
    for option in (*_OPTIONS_WITH_VALUE, *_SWITCHES):
        if option in script.lacks:
            continue
        value = " VALUE" if option in _OPTIONS_WITH_VALUE else ""
        short = "-m,    " if option == "--model" else ""
        print(f"{short}{option}{value:<20} what it does (default: something; see --not-an-option)")
    if ".sock" not in script.lacks:
        print("                        or bind to an UNIX socket if the address ends with .sock")


class _FakeServer:
    def __init__(self, script: Script, folder: Path, arguments: list[str]) -> None:
        self.script = script
        self.folder = folder
        self.arguments = arguments
        self.is_ready = False
        self.key = os.environ.get("LLAMA_API_KEY", "")
        self.slots = int(self.option("--parallel") or 1)
        self.context = script.slots_context or int(self.option("--ctx-size") or 512) // self.slots
        self.busy = 0

    def option(self, name: str) -> str | None:
        return self.arguments[self.arguments.index(name) + 1] if name in self.arguments else None

    def run(self) -> None:
        self._record()
        self._check_arguments()
        if self.script.ignores_term:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if self.script.grandchild:
            self._start_grandchild()
        server = _UnixServer(self.option("--host") or "", _Handler)
        server.fake = self  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self._load()
        self.is_ready = True
        self.say("I srv          init: model loaded")
        while True:
            time.sleep(60)

    def say(self, line: str) -> None:
        # One write, whatever other threads say.
        os.write(2, f"0.00.001.000 {line}\n".encode())

    def _record(self) -> None:
        run = FakeRun(os.getpid(), [sys.argv[0], *self.arguments], dict(os.environ))
        with (self.folder / "runs.jsonl").open("a") as file:
            file.write(json.dumps(dataclasses.asdict(run)) + "\n")

    def _check_arguments(self) -> None:
        rest = iter(self.arguments)
        for word in rest:
            if word in self.script.lacks or word not in (*_OPTIONS_WITH_VALUE, *_SWITCHES):
                print(f"error: invalid argument: {word}", file=sys.stderr)
                sys.exit(1)
            if word in _OPTIONS_WITH_VALUE:
                next(rest)

    def _start_grandchild(self) -> None:
        if os.fork() == 0:
            (self.folder / "grandchild.pid").write_text(str(os.getpid()))
            time.sleep(600)

    def _load(self) -> None:
        script = self.script
        self.say("I srv    load_model: loading model")
        if script.flood_bytes:
            flood = b"x" * 200 + b"\n"
            for _ in range(script.flood_bytes // len(flood)):
                os.write(2, flood)
        time.sleep(script.load_s)
        if script.hangs_in_load:
            time.sleep(600)
        if script.dies_with is not None:
            for line in script.last_words:
                self.say(line)
            if script.dies_with < 0:
                os.kill(os.getpid(), -script.dies_with)
            self._exit(script.dies_with)
        self._place_layers()
        if script.tokens_max is not None and int(self.option("--ctx-size") or 0) > script.tokens_max:
            self.say("E ggml_backend_cpu_buffer_type_alloc_buffer: failed to allocate buffer of size 9224847360")
            self.say(
                "E llama_init_from_model: failed to initialize the context: failed to allocate buffer for kv cache"
            )
            self._exit(1)
        self.say("I llama_kv_cache:        CPU KV buffer size =    20.00 MiB")
        self.say("I sched_reserve:        CPU compute buffer size =    10.00 MiB")
        self.say("I srv          init: init: chat template, thinking = 1")

    def _place_layers(self) -> None:
        total = self.script.layers + 1
        wanted = self._wanted_layers(total)
        if wanted and self.script.gpu_failure == "lost":
            self.say("E ggml_cuda_init: failed to initialize CUDA: no CUDA-capable device is detected")
            wanted = 0
        elif wanted and self.script.gpu_layers_max is not None and wanted > self.script.gpu_layers_max:
            self._fail_on_gpu()
        self.say("I load_tensors: loading model tensors, this can take a while... (load_mode = mmap)")
        if self.script.devices:
            self.say(f"I load_tensors: offloaded {wanted}/{total} layers to GPU")
        if wanted:
            self.say(f"I load_tensors:        CUDA0 model buffer size = {wanted * 3:8.2f} MiB")
        self.say(f"I load_tensors:   CPU_Mapped model buffer size = {(total - wanted) * 3:8.2f} MiB")

    def _wanted_layers(self, total: int) -> int:
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES") == "" or self.option("--device") == "none"
        asked = self.option("--gpu-layers")
        if not self.script.devices or hidden or asked == "0":
            return 0
        return total if asked in (None, "auto", "all") else min(int(asked), total)

    def _fail_on_gpu(self) -> None:
        for line in _GPU_LAST_WORDS[self.script.gpu_failure]:
            self.say(line)
        if self.script.gpu_failure == "busy":
            os.kill(os.getpid(), signal.SIGABRT)
        self._exit(1)

    def _exit(self, code: int) -> None:
        os._exit(code)


_GPU_LAST_WORDS = {
    "oom": (
        "E ggml_backend_cuda_buffer_type_alloc_buffer: allocating 4096.00 MiB on device 0: "
        "cudaMalloc failed: out of memory",
        "E alloc_tensor_range: failed to allocate CUDA0 buffer of size 4294967296",
        "E llama_model_load: error loading model: unable to allocate CUDA0 buffer",
        "E srv    load_model: failed to load model, 'model.gguf'",
        "E srv          init: exiting due to model loading error",
    ),
    "busy": (
        "E CUDA error: all CUDA-capable devices are busy or unavailable",
        "E   current device: -1, in function ggml_cuda_set_device at ggml-cuda.cu:98",
    ),
    "no_kernel": (
        "E CUDA error: no kernel image is available for execution on the device",
        "E srv          init: exiting due to model loading error",
    ),
}


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
        fake = self.fake
        if not fake.is_ready:
            self._json(503, {"error": {"message": "Loading model", "type": "unavailable_error", "code": 503}})
        elif self.path == "/health":
            self._json(200, {"status": "ok"})
        elif self.headers.get("Authorization") != f"Bearer {fake.key}":
            self._json(401, {"error": {"message": "Invalid API Key", "type": "authentication_error", "code": 401}})
        elif self.path == "/props":
            self._json(200, _props(fake))
        elif self.path == "/slots":
            self._json(200, [{"id": n, "is_processing": n < fake.busy} for n in range(fake.slots)])
        else:
            self._json(404, {"error": {"message": "File Not Found", "type": "not_found_error", "code": 404}})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", "0")))
        if self.headers.get("Authorization") != f"Bearer {self.fake.key}":
            self._json(401, {"error": {"message": "Invalid API Key", "type": "authentication_error", "code": 401}})
        elif self.path == "/v1/chat/completions":
            self._stream_chat()
        else:
            self._json(404, {"error": {"message": "File Not Found", "type": "not_found_error", "code": 404}})

    def _stream_chat(self) -> None:
        fake, script = self.fake, self.fake.script
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        fake.busy += 1
        try:
            for number in range(script.tokens):
                if number == script.dies_after_tokens:
                    os.kill(os.getpid(), signal.SIGKILL)
                if number == script.stalls_after_tokens:
                    time.sleep(600)
                time.sleep(script.token_s)
                self._event({"choices": [{"index": 0, "delta": {"content": f"t{number} "}, "finish_reason": None}]})
            self._event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
            usage = {"prompt_tokens": 5, "completion_tokens": script.tokens, "total_tokens": 5 + script.tokens}
            self._event({"choices": [], "usage": usage})
            self._chunk(b"data: [DONE]\n\n")
            self._chunk(b"")
        except OSError:
            self.close_connection = True
        finally:
            fake.busy -= 1

    def _event(self, chunk: dict[str, Any]) -> None:
        whole = {"id": "chatcmpl-fake", "object": "chat.completion.chunk", "created": 1, "model": "fake", **chunk}
        self._chunk(f"data: {json.dumps(whole)}\n\n".encode())

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))

    def _json(self, status: int, value: Any) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _props(fake: _FakeServer) -> dict[str, Any]:
    return {
        "total_slots": fake.slots,
        "default_generation_settings": {"n_ctx": fake.context},
        "modalities": {"vision": False, "audio": False},
        "chat_template": "{{ messages }}",
        "chat_template_caps": {"supports_tools": True, "supports_tool_calls": True},
        "media_marker": "<__media__>",
        "build_info": f"b{fake.script.version}",
    }
