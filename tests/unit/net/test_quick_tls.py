"""The quick client over TLS and below a base path: whom it trusts, and that all its promises hold there too."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
from support.certificates import Certificate, make_certificate
from support.http_upstream import LAST_CHUNK, Peer, Received, Upstream, chunk, json_answer, stream_head

from oprel.net import BadCertificate, CannotConnect, ConnectionCut, QuickClient, tls_context


@pytest.fixture(autouse=True, params=["asyncio", "uvloop"])
def loop_kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "uvloop":
        uvloop = pytest.importorskip("uvloop")

        def run_on_uvloop(main: Coroutine[Any, Any, None]) -> None:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(main)

        monkeypatch.setattr(asyncio, "run", run_on_uvloop)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("tls"))


def run(test: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(30):
            await test

    asyncio.run(bounded())


async def echo(request: Received, peer: Peer) -> None:
    await peer.send(json_answer({"path": request.path}))


def test_a_trusted_certificate(certificate: Certificate) -> None:
    """Asked twice over one connection, which was shaken hands on once."""

    async def test() -> None:
        async with Upstream(echo, tls=certificate.server_context()) as upstream:
            client = QuickClient(f"{upstream.address}/base", tls=tls_context(ca_file=certificate.file), api_key="k3y")
            for _ in range(2):
                answer = await client.request("POST", "/x", b"{}", timeout_s=5)
                assert (answer.status, answer.body) == (200, b'{"path": "/base/x"}')
            assert upstream.connections == 1
            assert upstream.requests[0].headers["authorization"] == "Bearer k3y"
            await client.aclose()

    run(test())


def test_a_certificate_that_nobody_vouches_for(certificate: Certificate) -> None:
    """Refused before anything is sent, with OpenSSL's reason."""

    async def test() -> None:
        async with Upstream(echo, tls=certificate.server_context()) as upstream:
            client = QuickClient(upstream.address, tls=tls_context(), api_key="k3y")
            with pytest.raises(BadCertificate, match="self-signed") as caught:
                await client.request("GET", "/x", timeout_s=5)
            assert "self-signed" in caught.value.why.replace("self signed", "self-signed")
            assert not upstream.requests
            await client.aclose()

    run(test())


def test_a_certificate_of_another_host(tmp_path: Path) -> None:
    async def test() -> None:
        other = make_certificate(tmp_path, host="elsewhere.test")
        async with Upstream(echo, tls=other.server_context()) as upstream:
            client = QuickClient(upstream.address, tls=tls_context(ca_file=other.file))
            with pytest.raises(BadCertificate, match=r"[Hh]ostname mismatch"):
                await client.request("GET", "/x", timeout_s=5)
            await client.aclose()

    run(test())


def test_no_verification_where_it_was_switched_off(certificate: Certificate) -> None:
    async def test() -> None:
        async with Upstream(echo, tls=certificate.server_context()) as upstream:
            client = QuickClient(upstream.address, tls=tls_context(verify=False))
            assert (await client.request("GET", "/x", timeout_s=5)).status == 200
            await client.aclose()

    run(test())


def test_plain_http_at_a_tls_port_and_the_reverse(certificate: Certificate) -> None:
    """One sentence each, and no wait."""

    async def test() -> None:
        async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()
            writer.close()

        async with await asyncio.start_server(mute, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            client = QuickClient(f"https://localhost:{port}", tls=tls_context(), connect_timeout_s=0.2)
            with pytest.raises(CannotConnect):
                await client.request("GET", "/x", timeout_s=5)
            await client.aclose()
        async with Upstream(echo, tls=certificate.server_context()) as upstream:
            client = QuickClient(upstream.address.replace("https:", "http:"))
            with pytest.raises(ConnectionCut):
                await client.request("GET", "/x", timeout_s=5)
            await client.aclose()

    run(test())


def test_leaving_a_stream_closes_the_connection_at_once(certificate: Certificate) -> None:
    gone = asyncio.Event()

    async def endless(_: Received, peer: Peer) -> None:
        await peer.send(stream_head(), chunk(b"data: 1\n\n"))
        await peer.wait_gone()
        gone.set()

    async def test() -> None:
        async with Upstream(endless, tls=certificate.server_context()) as upstream:
            client = QuickClient(upstream.address, tls=tls_context(ca_file=certificate.file))
            async with client.stream("POST", "/x", b"{}") as stream:
                assert await stream.read()
            async with asyncio.timeout(5):
                await gone.wait()
            await client.aclose()

    run(test())


def test_a_long_stream_comes_whole(certificate: Certificate) -> None:
    """More than what is buffered, so that reading is paused and goes on."""
    piece = b"data: " + b"x" * 60_000 + b"\n\n"

    async def long(_: Received, peer: Peer) -> None:
        await peer.send(stream_head(), *(chunk(piece) for _ in range(40)), LAST_CHUNK)

    async def test() -> None:
        async with Upstream(long, tls=certificate.server_context()) as upstream:
            client = QuickClient(upstream.address, tls=tls_context(ca_file=certificate.file))
            async with client.stream("POST", "/x", b"{}") as stream:
                await asyncio.sleep(0.05)
                assert await stream.read_all() == piece * 40
            await client.aclose()

    run(test())


@pytest.mark.parametrize(
    ("address", "host"),
    [("http://h", "h"), ("http://h:80/v1", "h"), ("http://h:8000/v1/", "h:8000"), ("http://[::1]:8000", "[::1]:8000")],
)
def test_the_host_header(address: str, host: str) -> None:
    """A scheme's own port is left out of it."""
    assert f"Host: {host}\r\n".encode() in QuickClient(address)._head("GET", "/x", None)


def test_a_base_path_stands_before_every_path() -> None:
    assert QuickClient("http://h/openai/v1")._head("GET", "/models", None).startswith(b"GET /openai/v1/models HTTP/1.1")


def test_an_https_address_needs_to_know_whom_to_trust() -> None:
    with pytest.raises(ValueError, match="whom to trust"):
        QuickClient("https://h")
