"""Clients that never finish what they send, or never read what they are sent, are cut off, and cost nothing more."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import pytest
from support.raw_http import ask, connect, read_to_end
from support.servers import ScriptedServer, wait_until

from oprel.config import Settings
from oprel.testing import Script

Start = Callable[..., ScriptedServer]

QUICK = Settings(header_timeout=0.3, body_timeout=0.3, send_timeout=0.4)


class TestNeverSending:
    """F18."""

    @pytest.mark.parametrize(
        "sent", [b"GET / HT", b"GET / HTTP/1.1\r\nHost: loc", b"GET / HTTP/1.1\r\nHost: localhost\r\n"]
    )
    def test_headers_that_do_not_end(self, scripted_server: Start, sent: bytes) -> None:
        server = scripted_server(settings=QUICK)
        with connect(server.port) as raw:
            raw.sendall(sent)
            assert read_to_end(raw).startswith(b"HTTP/1.1 408 ")
        assert ask(server.port, "/health").status == 200

    def test_a_header_now_and_then_does_not_help(self, scripted_server: Start) -> None:
        server = scripted_server(settings=QUICK)
        with connect(server.port) as raw:
            raw.sendall(b"GET / HTTP/1.1\r\n")
            raw.settimeout(0.05)
            began = time.monotonic()
            answer = b""
            while not answer and time.monotonic() - began < 10:
                try:
                    raw.sendall(b"X-A: b\r\n")
                    answer = raw.recv(100)
                except TimeoutError:
                    continue
                except (ConnectionResetError, BrokenPipeError):
                    break
            assert time.monotonic() - began < 5
        assert ask(server.port, "/health").status == 200

    def test_a_second_request_on_a_connection_is_watched_as_well(self, scripted_server: Start) -> None:
        with connect(scripted_server(settings=QUICK).port) as raw:
            raw.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert b"200 OK" in raw.recv(65536)
            raw.sendall(b"GET /health HTTP/1.1\r\nHo")
            assert read_to_end(raw).startswith(b"HTTP/1.1 408 ")

    def test_a_body_that_does_not_end(self, scripted_server: Start) -> None:
        server = scripted_server(settings=QUICK)
        with connect(server.port) as raw:
            raw.sendall(b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
            assert read_to_end(raw) == b""
        assert server.driver.engines == []

    def test_headers_without_measure(self, scripted_server: Start) -> None:
        with connect(scripted_server().port) as raw:
            raw.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n")
            answer = b""
            try:
                for _ in range(40):
                    raw.sendall(b"X-Filler: " + b"x" * 8000 + b"\r\n")
                answer = read_to_end(raw)
            except (BrokenPipeError, ConnectionResetError):
                return  # it was cut while we sent
            assert answer == b"" or answer.startswith(b"HTTP/1.1 431 ")

    def test_a_request_in_pieces_within_the_limit_is_answered(self, scripted_server: Start) -> None:
        body = json.dumps({"model": "scripted", "messages": [{"role": "user", "content": "hi"}]}).encode()
        with connect(scripted_server().port) as raw:
            head = (
                b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
                % len(body)
            )
            for at in range(0, len(head), 9):
                raw.sendall(head[at : at + 9])
            for at in range(0, len(body), 9):
                raw.sendall(body[at : at + 9])
            assert b'"done":true' in read_to_end(raw)

    def test_rubbish(self, scripted_server: Start) -> None:
        server = scripted_server()
        for sent in (b"\x00\x01\x02\x03\r\n\r\n", b"GET\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 9):
            with connect(server.port) as raw:
                raw.sendall(sent)
                assert read_to_end(raw)[:12] in (b"", b"HTTP/1.1 400")
        assert ask(server.port, "/health").status == 200

    @pytest.mark.parametrize("lines", [
        b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", b"Content-Length: 5\r\nContent-Length: 6\r\n",
        b"Content-Length: -1\r\n", b"Content-Length: 99999999999999999999999\r\n",
        b"Transfer-Encoding: x, chunked, y\r\n",
    ])  # fmt: skip
    def test_a_length_that_says_two_things(self, scripted_server: Start, lines: bytes) -> None:
        """Request smuggling begins with these."""
        server = scripted_server(settings=QUICK)
        with connect(server.port) as raw:
            raw.sendall(b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\n" + lines + b"\r\n0\r\n\r\n")
            answer = read_to_end(raw)
            assert answer == b"" or answer.startswith((b"HTTP/1.1 400", b"HTTP/1.1 413"))
        assert server.driver.engines == []


class TestNeverReading:
    """F17."""

    @pytest.mark.parametrize("path", ["/api/chat", "/v1/chat/completions"])
    def test_the_engine_stops_for_whoever_does_not_read(self, scripted_server: Start, path: str) -> None:
        server = scripted_server(Script(text=("x" * 5000,) * 20, endless=True), settings=QUICK)
        body = json.dumps(
            {"model": "scripted", "messages": [{"role": "user", "content": "hi"}], "stream": True}
        ).encode()
        with connect(server.port) as raw:
            raw.sendall(
                b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % (path.encode(), len(body))
            )
            raw.sendall(body)
            wait_until(lambda: server.driver.engines and server.driver.engines[0].calls, what="the request")
            call = server.driver.engines[0].calls[0]
            wait_until(lambda: call.ended, limit_s=15, what="the engine to stop")
            assert call.ended == "closed"
            assert server.driver.engines[0].running == 0
        assert ask(server.port, "/health").status == 200

    def test_a_reader_that_pauses_is_not_cut(self, scripted_server: Start) -> None:
        server = scripted_server(
            Script(text=("x" * 1000,) * 200), settings=QUICK.model_copy(update={"send_timeout": 30})
        )
        body = json.dumps(
            {"model": "scripted", "messages": [{"role": "user", "content": "hi"}], "stream": True}
        ).encode()
        with connect(server.port) as raw:
            raw.sendall(
                b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
                % len(body)
            )
            raw.sendall(body)
            wait_until(lambda: server.driver.engines and server.driver.engines[0].calls, what="the request")
            assert b'"done":true' in read_to_end(raw)

    def test_a_client_that_leaves_stops_its_engine(self, scripted_server: Start) -> None:
        """F19."""
        server = scripted_server(Script(endless=True, token_delay_s=0.01))
        body = json.dumps(
            {"model": "scripted", "messages": [{"role": "user", "content": "hi"}], "stream": True}
        ).encode()
        with connect(server.port) as raw:
            raw.sendall(b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            assert raw.recv(65536)
        call = server.driver.engines[0].calls[0]
        wait_until(lambda: call.ended == "closed", limit_s=2, what="the engine to stop")
