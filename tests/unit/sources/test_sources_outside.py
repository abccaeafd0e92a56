"""The client for the outside: where it goes, and where it doesn't."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Iterator

import pytest
from support.package_index import Handler, IndexServer, running_index

from oprel.errors import SourceError
from oprel.net.outside import OutsideClient, TransientSourceError, origin_of, shown_url


@pytest.fixture
def server() -> Iterator[IndexServer]:
    with running_index() as server:
        yield server


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("oprel.net.outside.getproxies", dict)


def read(url: str, *, trusted: tuple[str, ...] = (), max_bytes: int = 1000) -> bytes:
    async def run() -> bytes:
        async with OutsideClient(trusted=trusted) as client:
            return (await client.read(url, max_bytes=max_bytes)).data

    return asyncio.run(run())


def origin(server: IndexServer) -> str:
    return origin_of(server.url)


@pytest.mark.parametrize(
    "url",
    [
        "https://127.0.0.1/", "https://127.1/", "https://2130706433/", "https://0x7f.1/", "https://0.0.0.0/",
        "https://10.1.2.3/", "https://172.16.0.1/", "https://192.168.1.1/", "https://169.254.169.254/",
        "https://100.64.0.1/", "https://localhost/", "https://[::1]/", "https://[::]/", "https://[fe80::1]/",
        "https://[fc00::1]/", "https://[::ffff:127.0.0.1]/", "https://[::ffff:7f00:1]/", "https://[64:ff9b::7f00:1]/",
        "https://[2002:7f00:1::]/", "https://224.0.0.1/", "https://255.255.255.255/", "https://192.0.0.1/",
        "https://ok.example@127.0.0.1/", "https://ok.example\\@127.0.0.1/", "https://127.0.0.1#@ok.example/",
    ],
)  # fmt: skip
def test_addresses_inside_are_refused(url: str) -> None:
    with pytest.raises(SourceError) as failure:
        read(url)
    assert not isinstance(failure.value, TransientSourceError) or "can't be found" in failure.value.message


@pytest.mark.parametrize("answer", [["93.184.216.34", "127.0.0.1"], ["10.0.0.1"], ["::1"]])
def test_a_name_that_leads_inside_is_refused(monkeypatch: pytest.MonkeyPatch, answer: list[str]) -> None:
    _resolve_to(monkeypatch, answer)
    with pytest.raises(SourceError, match="inside this machine"):
        read("https://looks-fine.example/")


def test_the_connection_goes_to_the_address_that_was_checked(
    monkeypatch: pytest.MonkeyPatch, server: IndexServer
) -> None:
    """The name is resolved once; a second answer could be another."""
    asked = _resolve_to(monkeypatch, ["127.0.0.1"])
    port = server.server_address[1]
    server.special["/x"] = lambda handler: handler.answer(200, handler.headers["Host"].encode())
    url = f"http://named.example:{port}/x"
    assert read(url, trusted=(origin_of(url),)) == f"named.example:{port}".encode()
    assert asked == ["named.example"]


def _resolve_to(monkeypatch: pytest.MonkeyPatch, addresses: list[str]) -> list[str]:
    asked: list[str] = []

    async def getaddrinfo(self: object, host: str, port: int, **more: object) -> list[tuple[object, ...]]:
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    real = asyncio.BaseEventLoop.getaddrinfo

    async def choose(self: asyncio.BaseEventLoop, host: str, port: int, **more: object) -> object:
        try:
            ipaddress.ip_address(host)
        except ValueError:
            return await getaddrinfo(self, host, port)
        return await real(self, host, port, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", choose)
    return asked


def test_only_named_origins_may_be_inside_or_plain(server: IndexServer) -> None:
    server.special["/x"] = lambda handler: handler.answer(200, b"hello")
    url = server.url.replace("/simple", "/x")
    assert read(url, trusted=(origin(server),)) == b"hello"
    other_port = origin(server).rpartition(":")[0] + ":1"
    with pytest.raises(SourceError, match="isn't https"):
        read(url, trusted=(other_port,))


def test_a_redirect_within_a_trusted_origin_is_followed(server: IndexServer) -> None:
    server.special["/a"] = lambda handler: handler.answer(307, b"", {"Location": "b?c=1"})
    server.special["/b?c=1"] = lambda handler: handler.answer(200, b"there")
    assert read(server.url.replace("/simple", "/a"), trusted=(origin(server),)) == b"there"


def test_a_redirect_to_another_origin_is_checked_anew(server: IndexServer) -> None:
    with running_index() as inner:
        target = inner.url.replace("/simple", "/secret")
        server.special["/a"] = lambda handler: handler.answer(302, b"", {"Location": target})
        with pytest.raises(SourceError, match="isn't https"):
            read(server.url.replace("/simple", "/a"), trusted=(origin(server),))
        assert inner.requests == []


def test_bodies_come_unpacked_and_end_at_the_limit(server: IndexServer) -> None:
    server.special["/x"] = lambda handler: handler.answer(200, b"x" * 1001)
    with pytest.raises(SourceError, match="more than the 1000 bytes"):
        read(server.url.replace("/simple", "/x"), trusted=(origin(server),))
    assert server.requests[0][1]["accept-encoding"] == "identity"


def test_an_endless_body_ends_at_the_limit(server: IndexServer) -> None:
    def respond(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        try:
            while not server.stopping.is_set():
                handler.wfile.write(b"400\r\n" + b"x" * 1024 + b"\r\n")
        except OSError:
            handler.close_connection = True

    server.special["/x"] = respond
    with pytest.raises(SourceError, match="more than the"):
        read(server.url.replace("/simple", "/x"), trusted=(origin(server),))


def test_a_stalled_answer_has_a_limit(server: IndexServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def respond(handler: Handler) -> None:
        server.stopping.wait(30)
        handler.close_connection = True

    monkeypatch.setattr("oprel.net.outside.STALL_LIMIT_S", 0.1)
    server.special["/x"] = respond
    with pytest.raises(TransientSourceError, match="stopped answering"):
        read(server.url.replace("/simple", "/x"), trusted=(origin(server),))


def test_what_is_shown_has_no_secrets() -> None:
    assert shown_url("https://me:secret@h.example:8443/a/b?token=secret#secret") == "https://h.example:8443/a/b"
    assert shown_url("https://me:secret@h:port/") == "the address"


def test_origins_have_a_port() -> None:
    assert origin_of("https://H.Example/x") == "https://h.example:443"
    assert origin_of("http://[::1]:80/x") == "http://[::1]:80"
    assert origin_of("file:///x") == ""
