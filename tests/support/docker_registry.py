"""Debian's `docker-registry`, run on loopback with a folder of its own."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

__all__ = ["DockerRegistry", "running_docker_registry"]

_CONFIG = """\
version: 0.1
log: {{level: warn}}
storage:
  filesystem: {{rootdirectory: {root}}}
  delete: {{enabled: true}}
http: {{addr: "127.0.0.1:{port}", secret: any}}
"""
_AUTH = "auth: {{htpasswd: {{realm: models, path: {path}}}}}\n"


@dataclass(frozen=True)
class DockerRegistry:
    host: str
    root: Path

    @property
    def url(self) -> str:
        return f"http://{self.host}"


@contextmanager
def running_docker_registry(folder: Path, *, htpasswd: str | None = None) -> Iterator[DockerRegistry]:
    """Skips where the program is missing, unless OPREL_TEST_REQUIRE_DOCKER_REGISTRY=1."""
    program = shutil.which("docker-registry")
    if program is None:
        if os.environ.get("OPREL_TEST_REQUIRE_DOCKER_REGISTRY") == "1":
            pytest.fail("docker-registry is not installed, and OPREL_TEST_REQUIRE_DOCKER_REGISTRY asks for it")
        pytest.skip("docker-registry is not installed")
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    text = _CONFIG.format(root=folder / "data", port=port)
    if htpasswd is not None:
        (folder / "htpasswd").write_text(htpasswd)
        text += _AUTH.format(path=folder / "htpasswd")
    (folder / "config.yml").write_text(text)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [program, "serve", str(folder / "config.yml")], stdout=log, stderr=log, env={"HOME": str(folder)}
        )
    try:
        registry = DockerRegistry(f"127.0.0.1:{port}", folder)
        _wait_until_ready(registry, process)
        yield registry
    finally:
        process.terminate()
        process.wait(10)


def _wait_until_ready(registry: DockerRegistry, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise AssertionError((registry.root / "log").read_text())
        try:
            urllib.request.urlopen(f"{registry.url}/v2/", timeout=1).close()
        except urllib.error.HTTPError as answer:
            answer.close()
            return
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise AssertionError("docker-registry doesn't answer")
