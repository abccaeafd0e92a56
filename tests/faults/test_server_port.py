"""The port: in use, out of bounds, open to others without a key. One line says so, and nothing was started."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from support.raw_http import ask
from support.servers import ScriptedServer, clean_environment, real_server, run_oprel, wait_until

from oprel.config import Settings
from oprel.errors import ConfigError, OprelError
from oprel.server.descriptors import allowed_connections
from oprel.server.listen import bind, program_at, who_answers
from oprel.server.running import check_exposure

Start = Callable[..., ScriptedServer]


class _OllamaLike(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = b"Ollama is running" if self.path == "/" else b"404 page not found"
        self.send_response(200 if self.path == "/" else 404)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_args: object) -> None: ...


@pytest.fixture
def ollama_like() -> Iterator[int]:
    with HTTPServer(("127.0.0.1", 0), _OllamaLike) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


@pytest.fixture
def silent() -> Iterator[int]:
    """Something that listens and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


class TestWhoIsThere:
    def test_nobody(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        assert who_answers(f"http://127.0.0.1:{port}") is None

    def test_oprel(self, scripted_server: Start) -> None:
        assert who_answers(scripted_server().url) == "oprel"

    def test_oprel_with_a_key(self, scripted_server: Start) -> None:
        assert who_answers(scripted_server(settings=Settings(api_keys=("k",))).url) == "oprel"

    def test_ollama(self, ollama_like: int) -> None:
        assert who_answers(f"http://127.0.0.1:{ollama_like}") == "Ollama"

    def test_something_else(self, silent: int) -> None:
        assert who_answers(f"http://127.0.0.1:{silent}", timeout_s=0.2) == "a program that does not speak HTTP"

    @pytest.mark.skipif(sys.platform != "linux", reason="/proc")
    def test_its_program(self, silent: int) -> None:
        assert f"pid {os.getpid()}" in (program_at(silent) or "")


class TestBind:
    def test_a_free_port(self) -> None:
        with bind(Settings(port=0)) as listener:
            assert listener.getsockname()[1] > 0

    def test_ipv6(self) -> None:
        with bind(Settings(host="::1", port=0)) as listener:
            assert listener.family == socket.AF_INET6

    def test_in_use_by_ollama(self, ollama_like: int) -> None:
        with pytest.raises(OprelError) as caught:
            bind(Settings(port=ollama_like))
        assert f"port {ollama_like} is in use by Ollama" in str(caught.value)
        assert "choose another --port" in str(caught.value)

    @pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid"])
    def test_an_address_of_somewhere_else(self, host: str) -> None:
        with pytest.raises(ConfigError, match=f"--host '{host}' is no address of this machine"):
            bind(Settings(host=host, port=0))


class TestInUse:
    def test_one_line_and_no_engine(self, ollama_like: int, tmp_path: Path) -> None:
        """F23."""
        environ = clean_environment(tmp_path)
        ended = run_oprel("serve", "--port", str(ollama_like), "--model", "smollm2:135m", environ=environ)
        assert ended.returncode == 1
        assert ended.stdout == ""
        (line,) = ended.stderr.splitlines()
        assert line.startswith(f"oprel: port {ollama_like} is in use by Ollama")
        if sys.platform == "linux":
            assert f"pid {os.getpid()}" in line
        assert not (tmp_path / ".oprel/state/run").exists()

    def test_by_another_oprel(self) -> None:
        with real_server() as server:
            ended = run_oprel("serve", "--port", str(server.port), environ=server.environ)
            assert ended.returncode == 1
            assert f"port {server.port} is in use by oprel" in ended.stderr
            # The one that was there is not disturbed, nor is the file that tells of it.
            assert ask(server.port, "/health").status == 200
            assert (server.state_dir / f"server-{server.port}.json").exists()


def test_an_unknown_driver_is_told_at_once(tmp_path: Path) -> None:
    ended = run_oprel("serve", "--port", "0", "--driver", "nothing", environ=clean_environment(tmp_path))
    assert ended.returncode == 1
    assert ended.stdout == ""
    (line,) = ended.stderr.splitlines()
    assert line.startswith("oprel: There is no driver 'nothing': installed are ")
    assert not list((tmp_path / ".oprel/state").glob("server-*"))


class TestExposure:
    """A server that others can reach needs a key, or the word that it needs none."""

    @pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.9.9.9"])
    def test_this_machine_alone_needs_none(self, host: str) -> None:
        check_exposure(Settings(host=host))

    @pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "models.example", ""])  # noqa: S104
    @pytest.mark.parametrize(
        ("given", "starts"),
        [({}, False), ({"api_keys": ("k",)}, True), ({"allow_unauthenticated": True}, True)],
        ids=["nothing", "key", "allow"],
    )
    def test_others_do(self, host: str, given: dict[str, object], starts: bool) -> None:
        settings = Settings(host=host, **given)  # type: ignore[arg-type]
        if starts:
            check_exposure(settings)
            return
        with pytest.raises(ConfigError, match="it has no key: give --api-key-file"):
            check_exposure(settings)

    def test_the_command_refuses(self, tmp_path: Path) -> None:
        ended = run_oprel("serve", "--host", "0.0.0.0", "--port", "0", environ=clean_environment(tmp_path))  # noqa: S104
        assert ended.returncode == 2
        assert "Traceback" not in ended.stderr
        assert "--allow-unauthenticated" in ended.stderr

    def test_with_a_key_it_starts_and_asks_for_it(self, tmp_path: Path) -> None:
        keys = tmp_path / "keys"
        keys.write_text("secret\n")
        with real_server("--host", "0.0.0.0", "--api-key-file", str(keys)) as server:  # noqa: S104
            assert ask(server.port, "/api/tags").status == 401
            assert ask(server.port, "/api/tags", headers=[("X-Api-Key", "secret")]).status == 200
            assert "secret" not in server.output


@pytest.mark.skipif(sys.platform != "linux", reason="prlimit and /proc")
def test_connections_never_take_the_last_file_descriptors() -> None:
    """F25: more connections than descriptors are dropped, without spinning; when others close, all is well again."""
    with real_server(prefix=("prlimit", "--nofile=64:64")) as server:
        crowd = [socket.create_connection(("127.0.0.1", server.port), timeout=10) for _ in range(80)]
        try:
            before = _cpu_s(server.process.pid)
            with pytest.raises(OSError):
                ask(server.port, "/health", limit_s=1.5)
            time.sleep(0.5)  # what is measured is what happens while nothing should
            assert _cpu_s(server.process.pid) - before < 1.0
            assert len(list(Path(f"/proc/{server.process.pid}/fd").iterdir())) < 56
        finally:
            for each in crowd:
                each.close()
        wait_until(lambda: _answers(server.port), limit_s=15, what=f"another answer; {server.output}")


@pytest.mark.parametrize(("limit", "connections"), [(64, 16), (1024, 496), (20, 8), (1 << 20, 524272)])
def test_connections_by_limit(limit: int, connections: int) -> None:
    assert allowed_connections(limit) == connections


def _answers(port: int) -> bool:
    try:
        return ask(port, "/health", limit_s=2).status == 200
    except OSError:
        return False


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_the_idle_server_is_small() -> None:
    """No model loaded, some requests answered: at most 90 MiB resident."""
    with real_server() as server:
        for path in ("/health", "/api/tags", "/v1/models", "/api/ps", "/nothing"):
            ask(server.port, path)
        wait_until(lambda: "\nwith " in server.output, limit_s=30, what="the engines to be told")
        assert server.rss_bytes <= 90 * 1024 * 1024


def test_it_says_what_where_and_with_which_engines(tmp_path: Path) -> None:
    with real_server("--driver", "llama_cpp") as server:
        wait_until(lambda: "\nwith " in server.output, limit_s=30, what="the third line")
        lines = server.output.splitlines()
        assert lines[0].startswith("Oprel ")
        assert "no models yet" in lines[0]
        assert f"at {server.url} (OpenAI: {server.url}/v1, Ollama: {server.url}/api)" == lines[1]
        assert lines[2].startswith("with llama_cpp: ")


def test_version_imports_nothing() -> None:
    """`oprel --version` is answered before anything is imported."""
    code = (
        "import sys; before = set(sys.modules); sys.argv = ['oprel', '--version'];"
        "from oprel.cli import main; assert main() == 0; print(sorted(set(sys.modules) - before))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    version, modules = ended.stdout.splitlines()
    assert version == "oprel 1.0.0"
    assert modules.replace("'__future__', ", "") == "['oprel', 'oprel.cli', 'oprel.version']"
