"""Oprel's costs, measured: `python tests/bench/run.py [PART ...]`, all of them but vllm by default.

Each figure is the median of runs that alternate with their reference, and is told as a ratio or a difference within
one run: absolute numbers of a busy machine mean little. Nothing here passes or fails.

    relay      events/s that the gateway relays from an engine that costs nothing, in each dialect
    features   the same with logprobs and with calls of tools, against the same events without
    history    what a conversation of 1,000 messages costs before the engine sees it: read and translated in this
               process, and the time to first token through the server beyond that of one message
    overhead   tokens/s and time to first token through Oprel against the very same engine process asked directly
    remote     events/s and time to first token of the same engine as a remote over TCP, beside it as a local one
    vllm       tokens/s through Oprel against the very same vLLM asked directly (of OPREL_TEST_VLLM_PYTHON)
    pull       MB/s of a pull from a local server, hashed and durable, against `curl -o`: from a server as fast as it
               can be, and from one as fast as a network of 4 Gbit/s
    footprint  resident memory of an idle server; `oprel --version` against `python -c pass`
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from load import Address, Load, run_load
from support.long_history import PATHS, body, translated
from support.models import make_store, smollm2_gguf
from support.real_engine import real_engine_on_tcp

_HERE = Path(__file__).resolve().parent
_MODEL = "smollm2:135m"
_REMOTE = "elsewhere"


@dataclass
class Server:
    """A running `oprel serve` and the folder of its state."""

    port: int
    process: subprocess.Popen[bytes]
    state: Path

    @property
    def rss_mib(self) -> float:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) / 1024

    def engine(self) -> Address:
        """The engine process that this server started: its socket and key, from its own command line."""
        for child in _children(self.process.pid):
            argv = Path(f"/proc/{child}/cmdline").read_bytes().decode().split("\0")
            found = next((arg for arg in argv if arg.endswith(".sock")), None)
            if found is None:
                continue
            environ = Path(f"/proc/{child}/environ").read_bytes().decode().split("\0")
            key = next(
                (e.partition("=")[2] for e in environ if e.startswith(("LLAMA_API_KEY=", "VLLM_API_KEY="))), None
            )
            return Address(socket=found, key=key)
        raise RuntimeError("the server has no engine")


def _children(pid: int) -> Iterator[int]:
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            yield int(child)
            yield from _children(int(child))


@contextlib.contextmanager
def serving(*flags: str, models: Path, ready_s: float = 60, environ: dict[str, str] | None = None) -> Iterator[Server]:
    with tempfile.TemporaryDirectory(prefix="oprel-bench-") as folder, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        environment = {**os.environ, "OPREL_STATE_DIR": folder, "OPREL_MODELS": str(models), **(environ or {})}
        command = [sys.executable, "-m", "oprel", "serve", "--port", str(port), *flags]
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            _wait_ready(port, process, ready_s)
            yield Server(port, process, Path(folder))
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)


def _wait_ready(port: int, process: subprocess.Popen[bytes], limit_s: float) -> None:
    for _ in range(int(limit_s * 10)):
        if process.poll() is not None:
            raise RuntimeError("the server ended at its start; run `oprel serve` by hand to see why")
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=2):
            return
        time.sleep(0.1)
    raise RuntimeError(f"the server did not become ready in {limit_s:g} s")


def _ask(
    port: int | None,
    path: str,
    tokens: int,
    *,
    clients: int,
    answers: int,
    direct: Address | None = None,
    model: str = _MODEL,
) -> Load:
    chat: dict[str, object] = {
        "model": model,
        "messages": [{"role": "user", "content": "Write a long story about a lighthouse."}],
        "stream": True,
    }
    if path.startswith("/api"):
        chat["options"] = {"num_predict": tokens, "temperature": 0}
    else:
        chat |= {"max_tokens": tokens, "temperature": 0}
    return asyncio.run(run_load(direct or Address(port=port), path, chat, clients=clients, answers=answers))


def relay(models: Path, rounds: int, engine: str | None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        wrapper = Path(folder, "costless-llama-server")
        wrapper.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{_HERE / "costless_engine.py"}" "$@"\n')
        wrapper.chmod(0o755)
        with serving("--llama-server", engine or str(wrapper), "--parallel", "8", models=models) as server:
            _ask(server.port, "/v1/chat/completions", 500, clients=1, answers=2)
            for path in ("/v1/chat/completions", "/api/chat"):
                runs = [_ask(server.port, path, 4000, clients=8, answers=64) for _ in range(rounds)]
                rate = statistics.median(run.events_per_s for run in runs)
                print(f"relay {path:24} {rate:10,.0f} events/s, 8 streams")
            direct = server.engine()
            path = "/v1/chat/completions"
            runs = [_ask(None, path, 4000, clients=8, answers=64, direct=direct) for _ in range(rounds)]
            rate = statistics.median(run.events_per_s for run in runs)
            print(f"relay {'(engine asked directly)':24} {rate:10,.0f} events/s, 8 streams")


_FUNCTION = {"name": "f", "parameters": {"type": "object", "properties": {"text": {"type": "string"}}}}
_FEATURES: dict[tuple[str, str], dict[str, object]] = {
    ("/v1/chat/completions", "logprobs"): {"logprobs": True, "top_logprobs": 5},
    ("/v1/chat/completions", "tools"): {"tools": [{"type": "function", "function": _FUNCTION}]},
    ("/v1/responses", "logprobs"): {"include": ["message.output_text.logprobs"], "top_logprobs": 5},
    ("/v1/responses", "tools"): {"tools": [{"type": "function", **_FUNCTION}]},
    ("/v1/messages", "tools"): {"tools": [{"name": "f", "input_schema": _FUNCTION["parameters"]}]},
    ("/api/chat", "logprobs"): {"logprobs": True, "top_logprobs": 5},
}


def features(models: Path, rounds: int) -> None:
    """The engine sends as many events with a feature as without; runs alternate. Bytes per event differ."""
    with _costless(models) as server:
        address = Address(port=server.port)
        for (path, name), asked in _FEATURES.items():
            bodies = {"plain": body(path, 1, model=_MODEL, tokens=1000)}
            bodies[name] = {**bodies["plain"], **asked}
            seconds: dict[str, list[float]] = {kind: [] for kind in bodies}
            for sent in bodies.values():
                _load(address, path, sent, clients=1, answers=2)
            for _ in range(rounds):
                for kind, sent in bodies.items():
                    seconds[kind].append(_load(address, path, sent, clients=8, answers=64).elapsed_s)
            factors = [on / off for off, on in zip(*seconds.values(), strict=True)]
            rate = 64_000 / statistics.median(seconds[name])
            print(
                f"features {path:24} {name:8} takes {statistics.median(factors):.2f} times as long as without "
                f"({min(factors):.2f} to {max(factors):.2f}); {rate:10,.0f} events/s of the engine, 8 streams"
            )


def history(models: Path, rounds: int) -> None:
    for path in PATHS:
        raw = json.dumps(body(path, 1000)).encode()
        ours = min(_cpu_s(translated[path], raw) for _ in range(rounds * 4))
        plain = min(_cpu_s(json.loads, raw) for _ in range(rounds * 4))
        print(f"history {path:24} read and translated in {ours * 1000:.1f} ms of CPU, {ours / plain:.1f} x json.loads")
    with _costless(models) as server:
        for path in PATHS:
            few, many = (body(path, count, model=_MODEL) for count in (1, 1000))
            _load(Address(port=server.port), path, many, clients=1, answers=5)
            direct = server.engine()
            asked = "/v1/chat/completions"
            added, engines = [], []
            for _ in range(rounds):
                added.append(_longer_ms(Address(port=server.port), path, few, many))
                engines.append(_longer_ms(direct, asked, *(body(asked, count) for count in (1, 1000))))
            print(
                f"history {path:24} 1,000 messages come {statistics.median(added):.1f} ms later to the first token "
                f"than one ({min(added):.1f} to {max(added):.1f}); of these are the engine's own "
                f"{statistics.median(engines):.1f}"
            )


def _longer_ms(address: Address, path: str, few: dict[str, object], many: dict[str, object]) -> float:
    """How much later the first token of `many` comes."""
    short, long = (_load(address, path, sent, clients=1, answers=50).median_first_event_ms for sent in (few, many))
    return long - short


def _cpu_s(work: Callable[[bytes], object], raw: bytes) -> float:
    began = time.process_time()
    work(raw)
    return time.process_time() - began


def _load(address: Address, path: str, sent: dict[str, object], *, clients: int, answers: int) -> Load:
    return asyncio.run(run_load(address, path, sent, clients=clients, answers=answers))


@contextlib.contextmanager
def _costless(models: Path, *flags: str) -> Iterator[Server]:
    """A server whose engines cost nothing."""
    with tempfile.TemporaryDirectory() as folder:
        wrapper = Path(folder, "costless-llama-server")
        wrapper.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{_HERE / "costless_engine.py"}" "$@"\n')
        wrapper.chmod(0o755)
        with serving("--llama-server", str(wrapper), "--parallel", "8", *flags, models=models) as server:
            yield server


def remote(models: Path, rounds: int) -> None:
    """The costless engine twice: as the local one, and over TCP behind a local name. Runs alternate."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        wrapper = folder / "costless-llama-server"
        wrapper.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{_HERE / "costless_engine.py"}" "$@"\n')
        wrapper.chmod(0o755)
        port = stack.enter_context(_costless_on_tcp())
        config = folder / "config.toml"
        config.write_text(f'[remote.bench]\nurl = "http://127.0.0.1:{port}"\nmodels = {{ "{_REMOTE}" = "bench" }}\n')
        flags = ("--llama-server", str(wrapper), "--parallel", "8")
        server = stack.enter_context(serving(*flags, models=models, environ={"OPREL_CONFIG": str(config)}))
        for path in ("/v1/chat/completions", "/api/chat"):
            rates: dict[str, list[float]] = {_MODEL: [], _REMOTE: []}
            firsts: dict[str, list[float]] = {_MODEL: [], _REMOTE: []}
            for model in rates:
                _ask(server.port, path, 500, clients=1, answers=2, model=model)
            for _ in range(rounds):
                for model, found in rates.items():
                    found.append(_ask(server.port, path, 4000, clients=8, answers=64, model=model).events_per_s)
                    few = _ask(server.port, path, 16, clients=1, answers=200, model=model)
                    firsts[model].append(few.median_first_event_ms)
            here, there = (statistics.median(found) for found in rates.values())
            ratio = statistics.median(b / a for a, b in zip(*rates.values(), strict=True))
            first = [statistics.median(found) for found in firsts.values()]
            print(
                f"remote {path:24} {there:10,.0f} events/s, 8 streams; {ratio:.2f} of a local engine ({here:,.0f}); "
                f"first token {first[1]:.2f} ms (local {first[0]:.2f} ms)"
            )

    _remote_tokens(models, rounds)


def _remote_tokens(models: Path, rounds: int) -> None:
    """Tokens/s of a real engine over TCP, as a remote and asked directly."""
    with contextlib.ExitStack() as stack:
        engine = stack.enter_context(real_engine_on_tcp(smollm2_gguf(), slots=8))
        direct = Address(port=int(engine.address.rpartition(":")[2]))
        config = Path(stack.enter_context(tempfile.TemporaryDirectory()), "config.toml")
        config.write_text(f'[remote.bench]\nurl = "{engine.address}"\nmodels = {{ "{_REMOTE}" = "bench" }}\n')
        server = stack.enter_context(serving(models=models, environ={"OPREL_CONFIG": str(config)}))
        path = "/v1/chat/completions"
        _ask(server.port, path, 8, clients=8, answers=16, model=_REMOTE)
        for clients, answers, tokens in ((1, 3, 128), (8, 16, 64)):
            ratios = []
            for _ in range(rounds):
                through = _ask(server.port, path, tokens, clients=clients, answers=answers, model=_REMOTE)
                asked = _ask(None, path, tokens, clients=clients, answers=answers, direct=direct)
                ratios.append(through.events_per_s / asked.events_per_s)
            spread = f"{min(ratios):.3f} to {max(ratios):.3f}"
            median = statistics.median(ratios)
            print(f"remote tokens/s, {clients} client(s): {median:.3f} of the engine asked directly ({spread})")


@contextlib.contextmanager
def _costless_on_tcp() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, str(_HERE / "costless_engine.py"), "--host", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen(command)
    try:
        for _ in range(100):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            time.sleep(0.05)
        yield port
    finally:
        process.kill()
        process.wait()


def overhead(models: Path, rounds: int) -> None:
    with serving("--parallel", "8", "--context", "1024", models=models) as server:
        path = "/v1/chat/completions"
        _ask(server.port, path, 8, clients=8, answers=16)
        direct = server.engine()
        for clients, answers, tokens in ((1, 3, 128), (8, 16, 64)):
            ratios = []
            for _ in range(rounds):
                through = _ask(server.port, path, tokens, clients=clients, answers=answers)
                engine = _ask(None, path, tokens, clients=clients, answers=answers, direct=direct)
                ratios.append(through.events_per_s / engine.events_per_s)
            spread = f"{min(ratios):.3f} to {max(ratios):.3f}"
            median = statistics.median(ratios)
            print(f"tokens/s, {clients} client(s): {median:.3f} of the engine asked directly ({spread})")
    _first_token(models, rounds)


def vllm(rounds: int) -> None:
    """Every answer has the same number of tokens: vLLM joins several in one event when it is ahead of its reader."""
    from support.vllm_real import fill_trees

    path = "/v1/chat/completions"
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        trees = fill_trees(home / "trees", home / "state")
        flags = ("--driver", "vllm", "--model", _MODEL, "--context", "2048")
        places = {"OPREL_VLLM_PYTHON": os.environ["OPREL_TEST_VLLM_PYTHON"], "OPREL_TREES_DIR": str(trees)}
        with serving(*flags, models=home / "models", ready_s=600, environ=places) as server:
            direct = server.engine()
            _ask(server.port, path, 16, clients=8, answers=16)
            _ask(None, path, 16, clients=8, answers=16, direct=direct, model="model")
            for clients, answers, tokens in ((1, 2, 128), (8, 16, 64)):
                ratios, rates = [], []
                for number in range(rounds):
                    order = ((None, direct, "model"), (server.port, None, _MODEL))
                    seconds = {}
                    for port, address, model in order if number % 2 else reversed(order):
                        run = _ask(port, path, tokens, clients=clients, answers=answers, direct=address, model=model)
                        seconds[model] = run.elapsed_s
                    ratios.append(seconds["model"] / seconds[_MODEL])
                    rates.append(answers * tokens / seconds["model"])
                spread = f"{min(ratios):.3f} to {max(ratios):.3f}"
                print(
                    f"vLLM tokens/s, {clients} client(s): {statistics.median(ratios):.3f} of vLLM asked directly "
                    f"({spread}; directly {statistics.median(rates):.1f})"
                )


def _first_token(models: Path, rounds: int) -> None:
    """Time to first token added: the costless engine answers at once, so the difference is the gateway's own."""
    with tempfile.TemporaryDirectory() as folder:
        wrapper = Path(folder, "costless-llama-server")
        wrapper.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{_HERE / "costless_engine.py"}" "$@"\n')
        wrapper.chmod(0o755)
        with serving("--llama-server", str(wrapper), models=models) as server:
            path = "/v1/chat/completions"
            _ask(server.port, path, 16, clients=1, answers=50)
            direct = server.engine()
            medians, tails = [], []
            for _ in range(rounds):
                through = _ask(server.port, path, 16, clients=1, answers=200)
                engine = _ask(None, path, 16, clients=1, answers=200, direct=direct)
                medians.append(through.median_first_event_ms - engine.median_first_event_ms)
                tails.append(through.first_event_ms(0.99) - engine.first_event_ms(0.99))
            median, tail = statistics.median(medians), statistics.median(tails)
            print(f"time to first token added: median {median:.2f} ms, p99 {tail:.2f} ms")


def footprint(models: Path, rounds: int) -> None:
    with serving(models=models) as server:
        urllib.request.urlopen(f"http://127.0.0.1:{server.port}/api/tags", timeout=10).read()
        time.sleep(1)
        print(f"idle server, no model loaded: {server.rss_mib:.1f} MiB resident")
    oprel = str(Path(sys.executable).with_name("oprel"))
    ratios = [_seconds([oprel, "--version"]) / _seconds([sys.executable, "-c", "pass"]) for _ in range(max(rounds, 9))]
    print(f"oprel --version: {statistics.median(ratios):.2f} times `python -c pass`")


def _seconds(command: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = ["relay", "features", "history", "overhead", "remote", "pull", "footprint", "vllm", []]
    parser.add_argument("what", nargs="*", choices=parts, default=[])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--engine", help="another costless engine for `relay` (llama-server's command line)")
    options = parser.parse_args()
    what = options.what or ["relay", "features", "history", "overhead", "remote", "pull", "footprint"]
    with tempfile.TemporaryDirectory(prefix="oprel-bench-models-") as folder:
        models = Path(folder)
        make_store(models)
        print(json.dumps({"python": sys.version.split()[0], "cores": os.cpu_count(), "rounds": options.rounds}))
        if "relay" in what:
            relay(models, options.rounds, options.engine)
        if "features" in what:
            features(models, options.rounds)
        if "history" in what:
            history(models, options.rounds)
        if "overhead" in what:
            overhead(models, options.rounds)
        if "remote" in what:
            remote(models, options.rounds)
        if "pull" in what:
            from pull import pull_against_curl

            print(json.dumps({"pull": pull_against_curl(options.rounds)}))
        if "footprint" in what:
            footprint(models, options.rounds)
        if "vllm" in what:
            vllm(options.rounds)


if __name__ == "__main__":
    main()
