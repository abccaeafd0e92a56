"""Which names and pages may talk to a server, as a table: Ollama's rules, and the stricter ones for the rest."""

from __future__ import annotations

import socket

import pytest

from oprel.config import Settings
from oprel.server.access import AccessPolicy, Keyring, is_loopback

LOCAL = Settings(host="127.0.0.1")
OPEN = Settings(host="0.0.0.0", allow_unauthenticated=True, allowed_hosts=("models.example",))  # noqa: S104
KEYED = Settings(host="0.0.0.0", api_keys=("k",))  # noqa: S104
OWN_NAME = socket.gethostname()

# settings, Host, Origin, Sec-Fetch-Site, allowed, Access-Control-Allow-Origin
HOSTS = [
    (LOCAL, "127.0.0.1:11434", True),
    (LOCAL, "127.0.0.1", True),
    (LOCAL, "127.8.8.8:1", True),
    (LOCAL, "localhost:11434", True),
    (LOCAL, "LOCALHOST", True),
    (LOCAL, "", True),
    (LOCAL, "[::1]:11434", True),
    (LOCAL, "0.0.0.0:11434", True),
    (LOCAL, "10.1.2.3", True),
    (LOCAL, "172.16.0.1:80", True),
    (LOCAL, "192.168.1.10:11434", True),
    (LOCAL, "[fd00::1]", True),
    (LOCAL, OWN_NAME, True),
    (LOCAL, "app.localhost", True),
    (LOCAL, "printer.local", True),
    (LOCAL, "host.docker.internal:11434", True),
    (LOCAL, "evil.example", False),
    (LOCAL, "evil.example:11434", False),
    (LOCAL, "localhost.evil.example", False),
    (LOCAL, "127.0.0.1.evil.example", False),
    (LOCAL, "evillocalhost", False),
    (LOCAL, "8.8.8.8", False),
    (LOCAL, "172.32.0.1", False),
    (LOCAL, "169.254.169.254", False),
    (LOCAL, "[2001:db8::1]", False),
    (LOCAL, "127.0.0.1@evil.example", False),
    (LOCAL, "evil.example/localhost", False),
    (LOCAL, "http://localhost", False),
    (LOCAL, "localhost:port", False),
    (LOCAL, "[::1", False),
    (LOCAL, "local", False),
    (LOCAL, "somewhere", False),
    (OPEN, "evil.example", False),
    (OPEN, "models.example:11434", True),
    (OPEN, "other.models.example", False),
    (OPEN, "oprel:11434", True),
    (OPEN, "8.8.8.8:11434", True),
    (OPEN, "[2001:db8::1]", True),
    (OPEN, "localhost", True),
    (KEYED, "evil.example", True),
    (KEYED, "anything.at.all:1", True),
]
ORIGINS = [
    (LOCAL, None, None, True, None),
    (LOCAL, None, "none", True, None),
    (LOCAL, None, "same-origin", True, None),
    (LOCAL, None, "same-site", True, None),
    (LOCAL, None, "cross-site", False, None),
    (LOCAL, "http://localhost:11434", "same-origin", True, None),
    (LOCAL, "http://localhost", "cross-site", True, "http://localhost"),
    (LOCAL, "http://localhost:3000", "same-site", True, "http://localhost:3000"),
    (LOCAL, "https://localhost:8443", None, True, "https://localhost:8443"),
    (LOCAL, "http://127.0.0.1:5173", None, True, "http://127.0.0.1:5173"),
    (LOCAL, "http://0.0.0.0:80", None, True, "http://0.0.0.0:80"),
    (LOCAL, "app://obsidian.md", None, True, "app://obsidian.md"),
    (LOCAL, "file://x", None, True, "file://x"),
    (LOCAL, "tauri://localhost", None, True, "tauri://localhost"),
    (LOCAL, "vscode-webview://abc", None, True, "vscode-webview://abc"),
    (LOCAL, "vscode-file://vscode-app", None, True, "vscode-file://vscode-app"),
    (LOCAL, "https://evil.example", None, False, None),
    (LOCAL, "https://evil.example", "cross-site", False, None),
    (LOCAL, "null", None, False, None),
    (LOCAL, "", None, False, None),
    (LOCAL, "http://localhost.evil.example", None, False, None),
    (LOCAL, "http://localhost:3000.evil.example", None, False, None),
    (LOCAL, "http://127.0.0.1.evil.example:80", None, False, None),
    (LOCAL, "chrome-extension://abc", None, False, None),
    (LOCAL, "moz-extension://abc", None, False, None),
    (LOCAL.model_copy(update={"origins": ("chrome-extension://*",)}), "chrome-extension://abc", None, True, "chrome-extension://abc"),
    (LOCAL.model_copy(update={"origins": ("https://*.good.example",)}), "https://a.good.example", None, True, "https://a.good.example"),
    (LOCAL.model_copy(update={"origins": ("https://*.good.example",)}), "https://good.example", None, False, None),
    (LOCAL.model_copy(update={"origins": ("https://good.example/",)}), "https://good.example", None, True, "https://good.example"),
    (LOCAL.model_copy(update={"origins": ("*",)}), "https://evil.example", None, True, "*"),
    (LOCAL.model_copy(update={"origins": ("*",)}), "null", None, True, "*"),
    (LOCAL.model_copy(update={"origins": ("*",)}), None, "cross-site", True, None),
]  # fmt: skip


@pytest.mark.parametrize(("settings", "host", "allowed"), HOSTS, ids=[f"{s.host}-{h}" for s, h, _ in HOSTS])
def test_hosts(settings: Settings, host: str, allowed: bool) -> None:
    assert AccessPolicy(settings).judge(host.encode(), None, None).allowed is allowed


@pytest.mark.parametrize(("settings", "origin", "site", "allowed", "answered"), ORIGINS)
def test_origins(settings: Settings, origin: str | None, site: str | None, allowed: bool, answered: str | None) -> None:
    verdict = AccessPolicy(settings).judge(
        b"localhost:11434", None if origin is None else origin.encode(), None if site is None else site.encode()
    )
    assert verdict.allowed is allowed
    assert dict(verdict.headers).get(b"access-control-allow-origin") == (answered.encode() if answered else None)
    if answered not in (None, "*"):
        assert dict(verdict.headers)[b"vary"] == b"Origin"


def test_no_credentials_are_ever_allowed() -> None:
    verdict = AccessPolicy(LOCAL).judge(b"localhost", b"http://localhost:1", None)
    assert not [name for name, _ in (*verdict.headers, *verdict.preflight) if b"credentials" in name]


def test_the_machines_own_addresses_are_near() -> None:
    """An address of one of our interfaces may be the Host; the same one elsewhere may not."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # sends nothing
        own = probe.getsockname()[0]
    assert AccessPolicy(LOCAL).is_known_host(own)


@pytest.mark.parametrize(
    ("authorization", "api_key", "accepted"),
    [
        (b"Bearer one", None, True),
        (b"bearer one", None, True),
        (b"Bearer two", None, True),
        (b"Bearer  one ", None, True),
        (None, b"one", True),
        (b"Basic b25l", b"one", True),
        (b"Bearer", None, False),
        (b"Bearer ", None, False),
        (b"one", None, False),
        (b"Bearer three", None, False),
        (b"Bearer One", None, False),
        (b"Bearer one two", None, False),
        (None, b"", False),
        (None, None, False),
        (b"Bearer \xff\xfe", None, False),
    ],
)
def test_keys(authorization: bytes | None, api_key: bytes | None, accepted: bool) -> None:
    assert Keyring(("one", "two")).accepts(authorization, api_key) is accepted


def test_a_keyring_without_keys_is_false() -> None:
    assert not Keyring(())


@pytest.mark.parametrize(
    ("host", "answer"),
    [("127.0.0.1", True), ("127.1.2.3", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False),  # noqa: S104
     ("192.168.1.1", False), ("example", False), ("", False)],
)  # fmt: skip
def test_loopback(host: str, answer: bool) -> None:
    assert is_loopback(host) is answer
