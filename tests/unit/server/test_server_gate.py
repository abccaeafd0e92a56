"""What every request passes, over a real socket: names, pages, keys, sizes, unknown paths, ids."""

from __future__ import annotations

import json
import logging
import re
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support.raw_http import ask, connect, read_to_end
from support.servers import ScriptedServer
from support.servers import scripted_server as start_scripted_server

from oprel.config import Settings
from oprel.server.log import with_request_id
from oprel.testing import Script

Start = Callable[..., ScriptedServer]

CHAT = {"model": "scripted", "messages": [{"role": "user", "content": "hi"}], "stream": False}
PATHS = [
    ("GET", "/"), ("HEAD", "/"), ("GET", "/api/tags"), ("POST", "/api/chat"), ("GET", "/v1/models"),
    ("POST", "/v1/chat/completions"), ("GET", "/health"), ("GET", "/ready"), ("POST", "/oprel/shutdown"),
    ("GET", "/nothing/here"), ("DELETE", "/v1/nothing"), ("OPTIONS", "/api/chat"),
]  # fmt: skip


@pytest.fixture(scope="module")
def plain() -> Iterator[ScriptedServer]:
    """One with nothing special, for all tests that change nothing."""
    with start_scripted_server() as server:
        yield server


class TestNamesAndPages:
    @pytest.mark.parametrize(("method", "path"), PATHS)
    def test_a_foreign_name_is_refused_on_every_path(self, plain: ScriptedServer, method: str, path: str) -> None:
        answer = ask(plain.port, path, method, host="evil.example", body=CHAT if method == "POST" else None)
        assert (answer.status, answer.body) == (403, b"")

    @pytest.mark.parametrize(("method", "path"), PATHS)
    def test_a_foreign_page_is_refused_on_every_path(self, plain: ScriptedServer, method: str, path: str) -> None:
        answer = ask(plain.port, path, method, headers=[("Origin", "https://evil.example")])
        assert (answer.status, answer.body) == (403, b"")
        assert "access-control-allow-origin" not in answer.headers

    def test_a_page_without_origin_is_told_by_its_browser(self, plain: ScriptedServer) -> None:
        answer = ask(plain.port, "/api/tags", headers=[("Sec-Fetch-Site", "cross-site")])
        assert answer.status == 403

    def test_a_simple_request_of_a_page_reaches_nothing(self, scripted_server: Start) -> None:
        """No preflight is made for text/plain: only the Origin tells."""
        server = scripted_server()
        headers = [("Origin", "https://evil.example"), ("Content-Type", "text/plain")]
        assert ask(server.port, "/api/pull", "POST", headers=headers, body={"model": "x"}).status == 403
        assert server.services.puller.pulled == []  # type: ignore[attr-defined]

    def test_a_page_of_this_machine_gets_its_headers(self, plain: ScriptedServer) -> None:
        answer = ask(plain.port, "/api/tags", headers=[("Origin", "http://localhost:3000")])
        assert answer.status == 200
        assert answer.headers["access-control-allow-origin"] == "http://localhost:3000"
        assert answer.headers["vary"] == "Origin"

    def test_also_on_an_unknown_path(self, plain: ScriptedServer) -> None:
        answer = ask(plain.port, "/v1/nothing", headers=[("Origin", "http://localhost:3000")])
        assert answer.status == 404
        assert answer.headers["access-control-allow-origin"] == "http://localhost:3000"

    def test_a_preflight(self, plain: ScriptedServer) -> None:
        headers = [("Origin", "http://localhost:3000"), ("Access-Control-Request-Method", "POST")]
        answer = ask(plain.port, "/v1/chat/completions", "OPTIONS", headers=headers)
        assert answer.status == 204
        assert answer.headers["access-control-allow-methods"] == "GET,POST,PUT,PATCH,DELETE,HEAD,OPTIONS"
        assert answer.headers["access-control-max-age"] == "43200"
        allowed = answer.headers["access-control-allow-headers"].lower().split(", ")
        assert {"authorization", "content-type", "openai-beta", "x-stainless-retry-count", "x-api-key"} <= set(allowed)
        assert "content-length" not in answer.headers

    def test_options_without_a_page_tells_the_methods(self, plain: ScriptedServer) -> None:
        answer = ask(plain.port, "/api/chat", "OPTIONS")
        assert (answer.status, answer.headers["allow"]) == (204, "OPTIONS, POST")
        assert ask(plain.port, "/nothing", "OPTIONS").status == 404


class TestKeys:
    @pytest.fixture
    def server(self, scripted_server: Start) -> ScriptedServer:
        return scripted_server(settings=Settings(api_keys=("secret", "other")))

    @pytest.mark.parametrize(
        "header", [("Authorization", "Bearer secret"), ("authorization", "bearer other"), ("X-Api-Key", "secret")]
    )
    def test_a_key_opens(self, server: ScriptedServer, header: tuple[str, str]) -> None:
        assert ask(server.port, "/api/tags", headers=[header]).status == 200

    @pytest.mark.parametrize("path", ["/api/tags", "/", "/nothing", "/v1/models", "/oprel/shutdown"])
    @pytest.mark.parametrize("headers", [[], [("Authorization", "Bearer wrong")], [("X-Api-Key", "")]])
    def test_without_one_every_path_is_closed(
        self, server: ScriptedServer, path: str, headers: list[tuple[str, str]]
    ) -> None:
        method = "POST" if path == "/oprel/shutdown" else "GET"
        answer = ask(server.port, path, method, headers=headers)
        assert answer.status == 401
        assert "secret" not in answer.body.decode()

    def test_the_refusal_is_in_the_paths_dialect(self, server: ScriptedServer) -> None:
        for path in ("/v1/models", "/rerank", "/tokenize", "/detokenize"):
            openai = ask(server.port, path)
            assert openai.json["error"]["code"] == "invalid_api_key"
        assert openai.headers["www-authenticate"] == "Bearer"
        ollama = ask(server.port, "/api/tags")
        assert ollama.json == {"error": "this server needs a key: send it as 'Authorization: Bearer KEY'"}

    @pytest.mark.parametrize("path", ["/health", "/ready"])
    def test_health_needs_none(self, server: ScriptedServer, path: str) -> None:
        assert ask(server.port, path).status == 200

    def test_a_preflight_needs_none(self, server: ScriptedServer) -> None:
        """A browser sends no key with it."""
        assert ask(server.port, "/api/chat", "OPTIONS", headers=[("Origin", "http://localhost:1")]).status == 204

    def test_without_keys_any_is_accepted(self, plain: ScriptedServer) -> None:
        headers = [("Authorization", "Bearer whatever-the-client-has")]
        assert ask(plain.port, "/v1/models", headers=headers).status == 200


class TestSizes:
    LIMIT = Settings(max_body_bytes=10_000)

    @pytest.mark.parametrize("path", ["/v1/chat/completions", "/api/chat", "/v1/nothing"])
    def test_a_body_over_the_limit(self, scripted_server: Start, path: str) -> None:
        server = scripted_server(settings=self.LIMIT)
        answer = ask(server.port, path, "POST", body=b"x" * 10_001)
        assert answer.status == 413
        error = answer.json["error"]
        assert (error["code"] == "request_too_large") if path.startswith("/v1") else isinstance(error, str)
        assert server.driver.engines == []

    def test_a_body_at_the_limit(self, scripted_server: Start) -> None:
        body = json.dumps(CHAT).encode().ljust(10_000)
        assert ask(scripted_server(settings=self.LIMIT).port, "/api/chat", "POST", body=body).status == 200

    @pytest.mark.parametrize("path", ["/v1/chat/completions", "/api/chat"])
    def test_a_body_that_does_not_say_how_long_it_is(self, scripted_server: Start, path: str) -> None:
        server = scripted_server(settings=self.LIMIT)
        with connect(server.port) as raw:
            raw.sendall(f"POST {path} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
            for _ in range(4):
                raw.sendall(b"c00\r\n" + b"x" * 0xC00 + b"\r\n")
            raw.sendall(b"0\r\n\r\n")
            assert raw.recv(65536).startswith(b"HTTP/1.1 413 ")
        assert server.driver.engines == []

    def test_the_connection_is_usable_afterwards(self, scripted_server: Start) -> None:
        server = scripted_server(settings=self.LIMIT)
        with connect(server.port) as raw:
            raw.sendall(b"POST /api/chat HTTP/1.1\r\nHost: x.localhost\r\nContent-Length: 60000\r\n\r\n" + b"x" * 60000)
            assert raw.recv(65536).startswith(b"HTTP/1.1 413 ")
            raw.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            assert b"HTTP/1.1 200 OK" in read_to_end(raw)

    def test_the_default_is_32_mib(self) -> None:
        assert Settings().max_body_bytes == 32 * 1024 * 1024

    def test_a_chunked_body_within_the_limit(self, scripted_server: Start) -> None:
        body = json.dumps(CHAT).encode()
        with connect(scripted_server(settings=self.LIMIT).port) as raw:
            raw.sendall(
                b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
            )
            for at in range(0, len(body), 10):
                part = body[at : at + 10]
                raw.sendall(b"%x\r\n%b\r\n" % (len(part), part))
            raw.sendall(b"0\r\n\r\n")
            assert b"Hello, world!" in read_to_end(raw)


class TestUnknownPaths:
    @pytest.mark.parametrize("path", ["/v1/nothing", "/v1", "/v1/chat/completions/more"])
    def test_in_openais_shape(self, plain: ScriptedServer, path: str) -> None:
        answer = ask(plain.port, path)
        assert answer.status == 404
        assert answer.headers["content-type"].startswith("application/json")
        assert set(answer.json["error"]) == {"message", "type", "param", "code"}

    @pytest.mark.parametrize("path", ["/nothing", "/api/nothing", "/v11/x", "/%2e%2e/etc/passwd", "/api/tags/x"])
    def test_elsewhere_as_text(self, scripted_server: Start, path: str) -> None:
        answer = ask(scripted_server().port, path)
        assert (answer.status, answer.body) == (404, b"404 page not found")
        assert answer.headers["content-type"].startswith("text/plain")

    @pytest.mark.parametrize(("method", "path", "allow"), [
        ("GET", "/api/chat", "POST"), ("DELETE", "/api/tags", "GET"), ("POST", "/health", "GET"),
        ("GET", "/oprel/shutdown", "POST"), ("GET", "/v1/chat/completions", "POST"), ("POST", "/v1/models", "GET"),
    ])  # fmt: skip
    def test_a_known_path_with_another_method(self, plain: ScriptedServer, method: str, path: str, allow: str) -> None:
        answer = ask(plain.port, path, method)
        assert answer.status == 405
        assert allow in answer.headers["allow"].split(", ")
        if path.startswith("/v1"):
            assert answer.json["error"]["message"]
        else:
            assert answer.body == b"405 method not allowed"


class TestIds:
    def test_every_answer_has_one(self, plain: ScriptedServer) -> None:
        seen = {
            ask(plain.port, path, **more).headers["x-request-id"]  # type: ignore[arg-type]
            for path, more in [
                ("/health", {}),
                ("/nothing", {}),
                ("/v1/models", {"host": "evil.example"}),
                ("/api/chat", {"method": "POST", "body": CHAT}),
                ("/api/chat", {"method": "POST", "body": b"{"}),
            ]
        }
        assert len(seen) == 5

    @pytest.mark.parametrize(
        ("path", "more", "line"),
        [
            ("/api/chat", {"method": "POST", "body": CHAT}, r"POST '/api/chat' 200 in \d+\.\d{3} s"),
            ("/api/chat", {"method": "POST", "body": b"{"}, r"POST '/api/chat' 400 in "),
            ("/v1/models", {"host": "evil.example"}, r"GET '/v1/models' 403 in "),
            ("/a%0Ab", {}, r"GET '/a\\nb' 404 in "),
            ("/" + "x" * 1000, {}, r"GET '/x{199}' 404 in "),
        ],
    )
    def test_the_log_has_a_line_with_it(
        self, plain: ScriptedServer, caplog: pytest.LogCaptureFixture, path: str, more: dict[str, Any], line: str
    ) -> None:
        caplog.handler.addFilter(with_request_id)
        with caplog.at_level(logging.INFO, "oprel.server"):
            answer = ask(plain.port, path, **more)
            own_id = answer.headers["x-request-id"]
            deadline = time.monotonic() + 10
            while not (found := [each for each in caplog.records if each.__dict__.get("request") == own_id]):
                assert time.monotonic() < deadline, caplog.text
                time.sleep(0.01)
        assert len(found) == 1
        assert re.match(line, found[0].getMessage())

    def test_what_watches_the_server_fills_no_log(
        self, plain: ScriptedServer, caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level(logging.INFO, "oprel.server"):
            for path in ("/health", "/ready", "/metrics"):
                ask(plain.port, path)
            ask(plain.port, "/api/version")  # comes later, and is there
            deadline = time.monotonic() + 10
            while "/api/version" not in caplog.text:
                assert time.monotonic() < deadline
                time.sleep(0.01)
        assert len(caplog.records) == 1

    def test_a_clients_own_is_kept(self, plain: ScriptedServer) -> None:
        answer = ask(plain.port, "/health", headers=[("X-Request-Id", "trace-42_a.b:c")])
        assert answer.headers["x-request-id"] == "trace-42_a.b:c"

    @pytest.mark.parametrize("given", ["a b", "x" * 129, "é", "<script>", ""])
    def test_but_not_one_that_can_not_stand_in_a_log(self, plain: ScriptedServer, given: str) -> None:
        headers = [("X-Request-Id", given.encode("utf-8").decode("latin-1"))]
        assert ask(plain.port, "/health", headers=headers).headers["x-request-id"] != given

    @pytest.mark.parametrize(
        ("method", "path"),
        [
            ("GET", "/docs"), ("GET", "/openapi.json"), ("GET", "/"), ("GET", "/ready"), ("GET", "/v1/models"),
            ("GET", "/v1/models/none"), ("GET", "/v1/nothing"), ("GET", "/api/nothing"), ("GET", "/anthropic/v1/none"),
            ("GET", "/v1/chat/completions"), ("POST", "/v1/messages"), ("POST", "/v1/embeddings"),
            ("POST", "/v1/responses"), ("POST", "/v1/completions"), ("POST", "/api/generate"), ("POST", "/api/embed"),
            ("OPTIONS", "/api/chat"),
        ],
    )  # fmt: skip
    def test_pages_errors_and_unknown_paths_have_one(self, plain: ScriptedServer, method: str, path: str) -> None:
        body = b"{}" if method == "POST" else b""
        answer = ask(plain.port, path, method, headers=[("X-Request-Id", "mine")], body=body)
        assert answer.headers["x-request-id"] == "mine"

    @pytest.mark.parametrize(
        ("path", "body"),
        [
            ("/api/chat", CHAT), ("/v1/chat/completions", CHAT), ("/v1/messages", {**CHAT, "max_tokens": 5}),
            ("/api/generate", {"prompt": "a"}), ("/v1/completions", {"prompt": "a"}), ("/v1/responses", {"input": "a"}),
        ],
    )  # fmt: skip
    def test_streams_have_one_as_well(self, plain: ScriptedServer, path: str, body: dict[str, Any]) -> None:
        answer = ask(plain.port, path, "POST", body={**body, "model": CHAT["model"], "stream": True})
        assert answer.headers["content-type"].startswith(("application/x-ndjson", "text/event-stream"))
        assert answer.headers["x-request-id"]


class TestHealth:
    def test_says_which_server_this_is(self, plain: ScriptedServer) -> None:
        answer = ask(plain.port, "/health")
        assert answer.json == {"status": "ok", "server": "oprel", "version": "0.0.0+scripted"}

    def test_ready_when_preloading_is_done(self, scripted_server: Start) -> None:
        server = scripted_server(
            Script(start_delay_s=3600), settings=Settings(preload=("scripted:latest",), load_timeout=3600)
        )
        answer = ask(server.port, "/ready")
        assert (answer.status, answer.json["status"]) == (503, "loading")
        assert answer.headers["retry-after"] == "1"
        assert ask(server.port, "/health").status == 200

    @pytest.mark.parametrize("path", ["/health", "/ready"])
    def test_head(self, plain: ScriptedServer, path: str) -> None:
        answer = ask(plain.port, path, "HEAD")
        assert (answer.status, answer.body) == (200, b"")


class TestShutdown:
    def test_a_program_on_this_machine_may(self, scripted_server: Start) -> None:
        server = scripted_server()
        answer = ask(server.port, "/oprel/shutdown", "POST")
        assert (answer.status, answer.json["status"]) == (202, "stopping")
        server.wait_end()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", server.port), timeout=5)

    def test_a_page_may_not(self, scripted_server: Start) -> None:
        server = scripted_server()
        answer = ask(server.port, "/oprel/shutdown", "POST", headers=[("Origin", "http://localhost:3000")])
        assert answer.status == 403
        assert "browser" in answer.json["error"]
        assert ask(server.port, "/health").json["status"] == "ok"

    def test_with_a_key(self, scripted_server: Start) -> None:
        server = scripted_server(settings=Settings(api_keys=("secret",)))
        assert ask(server.port, "/oprel/shutdown", "POST").status == 401
        assert ask(server.port, "/oprel/shutdown", "POST", headers=[("X-Api-Key", "secret")]).status == 202
        server.wait_end()


class TestDefects:
    def test_what_nobody_foresaw_is_a_500_in_the_paths_dialect(
        self, scripted_server: Start, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        server = scripted_server()

        def fail() -> None:
            raise ZeroDivisionError("secret detail")

        monkeypatch.setattr(server.services.catalog, "list", fail)
        for path, message in (("/v1/models", lambda j: j["error"]["message"]), ("/api/tags", lambda j: j["error"])):
            answer = ask(server.port, path)
            assert answer.status == 500
            assert "secret detail" not in answer.body.decode()
            assert message(answer.json)
        assert ask(server.port, "/health").status == 200
