"""The end of a server: what runs may finish, what can't is told so, nothing is left."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.raw_http import ask, connect, read_to_end
from support.servers import ScriptedServer, real_server, wait_until

from oprel.config import Settings
from oprel.testing import Script

Start = Callable[..., ScriptedServer]

_CHAT = {"model": "scripted", "messages": [{"role": "user", "content": "hi"}], "stream": True}


def begin_stream(server: ScriptedServer, path: str = "/api/chat", **more: object) -> object:
    """A connection on which a stream has begun to come."""
    body = json.dumps({**_CHAT, **more}).encode()
    raw = connect(server.port)
    raw.sendall(
        b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % (path.encode(), len(body)) + body
    )
    assert raw.recv(65536).startswith(b"HTTP/1.1 200 ")
    return raw


class TestDrain:
    def test_a_running_stream_ends_in_good_order(self, scripted_server: Start) -> None:
        """F22: the first signal refuses what is new and lets run what runs."""
        server = scripted_server(Script(text=tuple("abcdefghijklmnop"), token_delay_s=0.05))
        with begin_stream(server) as raw:  # type: ignore[attr-defined]
            server.ask_stop()
            wait_until(lambda: ask(server.port, "/health").json["status"] == "stopping", what="the drain")
            rest = read_to_end_of_stream(raw)
        assert b'"done":true' in rest
        server.wait_end()

    @pytest.mark.parametrize(
        ("path", "shape"), [("/v1/chat/completions", dict), ("/api/chat", str), ("/api/tags", str)]
    )
    def test_new_requests_are_refused_meanwhile(self, scripted_server: Start, path: str, shape: type) -> None:
        server = scripted_server(Script(endless=True, token_delay_s=0.02), settings=Settings(drain_timeout=30))
        with begin_stream(server):  # type: ignore[attr-defined]
            server.ask_stop()
            wait_until(lambda: ask(server.port, "/ready").status == 503, what="the drain")
            method = "GET" if path == "/api/tags" else "POST"
            answer = ask(server.port, path, method, body=_CHAT if method == "POST" else None)
            assert answer.status == 503
            assert isinstance(answer.json["error"], shape)
            assert int(answer.headers["retry-after"]) >= 1
            assert answer.headers["connection"] == "close"

    @pytest.mark.parametrize(
        ("path", "error", "mark"),
        [("/api/chat", b'{"error":"', b'"done":true'), ("/v1/chat/completions", b'data: {"error":', b"[DONE]")],
    )
    def test_past_its_limit_a_stream_is_told(
        self, scripted_server: Start, path: str, error: bytes, mark: bytes
    ) -> None:
        server = scripted_server(Script(endless=True, token_delay_s=0.02), settings=Settings(drain_timeout=0.3))
        with begin_stream(server, path) as raw:  # type: ignore[attr-defined]
            server.ask_stop()
            rest = read_to_end_of_stream(raw)
        assert error in rest
        assert mark not in rest
        server.wait_end()

    def test_a_second_signal_does_not_wait(self, scripted_server: Start) -> None:
        server = scripted_server(Script(endless=True, token_delay_s=0.02), settings=Settings(drain_timeout=3600))
        with begin_stream(server) as raw:  # type: ignore[attr-defined]
            server.ask_stop()
            wait_until(lambda: ask(server.port, "/ready").status == 503, what="the drain")
            server.ask_stop()
            assert b'{"error":"' in read_to_end_of_stream(raw)
        server.wait_end(10)

    def test_who_waits_for_a_model_is_told(self, scripted_server: Start) -> None:
        server = scripted_server(Script(start_delay_s=3600), settings=Settings(drain_timeout=0.2, load_timeout=3600))
        body = json.dumps(_CHAT).encode()
        with connect(server.port) as raw:
            raw.sendall(b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            wait_until(lambda: server.driver.starts, what="the load")
            server.ask_stop()
            answer = read_to_end(raw)
        assert answer.startswith((b"HTTP/1.1 503", b"HTTP/1.1 500"))
        server.wait_end()

    def test_an_idle_connection_does_not_hold_it(self, scripted_server: Start) -> None:
        server = scripted_server()
        with connect(server.port) as raw:
            raw.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert b"200 OK" in raw.recv(65536)
            began = time.monotonic()
            server.ask_stop()
            server.wait_end(5)
            assert time.monotonic() - began < 3
            assert read_to_end(raw) == b""


def read_to_end_of_stream(raw: object) -> bytes:
    """Until the last chunk, or the end of the connection."""
    parts = [b""]
    while not b"".join(parts[-2:]).endswith(b"0\r\n\r\n"):
        part = raw.recv(65536)  # type: ignore[attr-defined]
        if not part:
            break
        parts.append(part)
    return b"".join(parts)


class TestSignals:
    """A real process. An idle server has nothing to drain: the signal is enough."""

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
    def test_it_ends_with_0_and_leaves_nothing(self, number: signal.Signals) -> None:
        with real_server() as server:
            state = server.state_dir / f"server-{server.port}.json"
            assert state.stat().st_mode & 0o777 == 0o600
            assert json.loads(state.read_text())["pid"] == server.process.pid
            assert server.stop(number=number) == 0
            assert not state.exists()
            assert "Traceback" not in server.output

    def test_a_signal_in_the_middle_of_its_start(self, tmp_path: Path) -> None:
        """It may come before the port is open; then nothing was begun that had to be ended."""
        with real_server(wait_ready=False) as server:
            assert server.stop() == 0

    def test_shutdown_by_request(self) -> None:
        with real_server() as server:
            assert ask(server.port, "/oprel/shutdown", "POST").status == 202
            assert server.process.wait(20) == 0
