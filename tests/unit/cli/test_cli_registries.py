"""`push`, `login`, `logout`, and `pull --insecure`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support.model_registry import ModelRegistry, running_registry
from support.servers import ScriptedPuller

from oprel.sources import PullProgress
from oprel.sources.registry import Login, Logins

if TYPE_CHECKING:
    from conftest import Oprel, Start


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelRegistry]:
    monkeypatch.setattr("oprel.net.outside.getproxies", dict)
    with running_registry() as registry:
        registry.server.files["/v2/"] = b"{}"
        registry.needs_token, registry.password = True, "s3cr3t"
        yield registry


@pytest.fixture
def logins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Logins:
    monkeypatch.setenv("OPREL_STATE_DIR", str(tmp_path / "own-state"))
    return Logins(tmp_path / "own-state/logins.json")


def test_push_tells_its_progress(oprel: Oprel, scripted_server: Start) -> None:
    puller = ScriptedPuller([PullProgress("retrieving manifest"), PullProgress("success")])
    ended = oprel("push", "reg.example/n/m", server=scripted_server(puller=puller))
    assert (ended.code, ended.err.splitlines()) == (0, ["retrieving manifest", "success"])
    assert puller.pulled == ["reg.example/n/m"]


def test_a_login_is_tried_and_kept(oprel: Oprel, registry: ModelRegistry, logins: Logins) -> None:
    ended = oprel("login", registry.host, "-u", "alice", "--password-stdin", "--insecure", piped="s3cr3t\n")
    assert (ended.code, ended.err.strip()) == (0, f"logged in to {registry.host} as alice")
    assert logins.get(registry.host) == Login("alice", "s3cr3t")
    assert logins.path.stat().st_mode & 0o777 == 0o600
    assert oprel("logout", registry.host).code == 0
    assert logins.get(registry.host) is None


def test_a_wrong_login_is_not_kept(oprel: Oprel, registry: ModelRegistry, logins: Logins) -> None:
    ended: Any = oprel("login", registry.host, "-u", "alice", "--password-stdin", "--insecure", piped="hunter2\n")
    assert ended.code == 1
    assert ended.err.strip() == f"oprel: unauthorized: {registry.host} doesn't take this user with this password"
    assert "hunter2" not in ended.err + ended.out
    assert logins.get(registry.host) is None


def test_a_host_is_written_without_a_scheme(oprel: Oprel, registry: ModelRegistry, logins: Logins) -> None:
    ended = oprel("login", registry.server.origin, "-u", "alice", "--password-stdin", "--insecure", piped="s3cr3t\n")
    assert ended.code == 2
    assert (
        ended.err.strip()
        == f"oprel: {registry.server.origin!r} isn't a registry's host; write it as HOST or HOST:PORT."
    )


def test_a_registry_inside_is_said_how_to_reach(oprel: Oprel, registry: ModelRegistry, logins: Logins) -> None:
    ended = oprel("login", registry.host, "-u", "alice", "--password-stdin", piped="s3cr3t\n")
    assert ended.code == 1
    assert "--insecure" in ended.err
    assert "trusted_registries" in ended.err
    assert registry.server.requests == []
    assert logins.get(registry.host) is None
