"""The quick client keeps its promises: reuse, one retry, limits, bounded buffers, closing at once."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
from support.http_upstream import (
    LAST_CHUNK,
    Handler,
    Peer,
    Received,
    Upstream,
    chunk,
    json_answer,
    stream_head,
    whole_answer,
)

from oprel.net import AnswerTimeout, BadAnswer, CannotConnect, ConnectionCut, QuickClient, quick
from oprel.net.connection import MAX_BUFFERED_BYTES

# One read of asyncio's, on top of what the client lets pile up.
_ONE_READ = 256 * 1024


@pytest.fixture(autouse=True, params=["asyncio", "uvloop"])
def loop_kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server runs on uvloop where there is one; programs that use the SDK run on asyncio's own loop."""
    if request.param == "uvloop":
        uvloop = pytest.importorskip("uvloop")

        def run_on_uvloop(main: Coroutine[Any, Any, None]) -> None:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(main)

        monkeypatch.setattr(asyncio, "run", run_on_uvloop)


def run(test: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(30):
            await test

    asyncio.run(bounded())


async def echo(request: Received, peer: Peer) -> None:
    await peer.send(json_answer({"path": request.path, "body": request.body.decode()}))


def answering(*pieces: bytes) -> Handler:
    async def answer(_: Received, peer: Peer) -> None:
        await peer.send(*pieces)

    return answer


@pytest.mark.parametrize("tcp", [False, True], ids=["unix", "tcp"])
def test_whole_answer(tcp: bool) -> None:
    async def test() -> None:
        async with Upstream(echo, tcp=tcp) as upstream:
            client = QuickClient(upstream.address, api_key="k3y")
            answer = await client.request("POST", "/x?y=1", b"{}", timeout_s=5)
            assert (answer.status, answer.body) == (200, b'{"path": "/x?y=1", "body": "{}"}')
            assert answer.headers["content-type"] == "application/json"
            request = upstream.requests[0]
            assert request.headers["authorization"] == "Bearer k3y"
            assert request.headers["content-length"] == "2"
            assert request.headers["host"].startswith("127.0.0.1:" if tcp else "localhost")
            await client.aclose()

    run(test())


def test_no_body_no_content_headers() -> None:
    async def test() -> None:
        async with Upstream(echo) as upstream:
            client = QuickClient(upstream.address)
            await client.request("GET", "/health", timeout_s=5)
            assert "content-length" not in upstream.requests[0].headers
            assert "authorization" not in upstream.requests[0].headers
            await client.aclose()

    run(test())


def test_connection_is_reused() -> None:
    async def test() -> None:
        async with Upstream(echo) as upstream:
            client = QuickClient(upstream.address)
            for _ in range(3):
                await client.request("GET", "/", timeout_s=5)
            assert upstream.connections == 1
            await asyncio.gather(*(client.request("GET", "/", timeout_s=5) for _ in range(2)))
            assert upstream.connections == 2
            await client.aclose()

    run(test())


def test_finished_stream_is_reused() -> None:
    async def test() -> None:
        async with Upstream(answering(stream_head(), chunk(b"ab"), LAST_CHUNK)) as upstream:
            client = QuickClient(upstream.address)
            for _ in range(2):
                async with client.stream("POST", "/", b"{}") as stream:
                    assert [piece async for piece in stream]
            assert upstream.connections == 1
            await client.aclose()

    run(test())


def test_connection_close_is_honoured() -> None:
    async def test() -> None:
        async with Upstream(answering(whole_answer(b"1", headers={"Connection": "close"}))) as upstream:
            client = QuickClient(upstream.address)
            for _ in range(2):
                assert (await client.request("GET", "/", timeout_s=5)).body == b"1"
            assert upstream.connections == 2
            await client.aclose()

    run(test())


def test_stale_connection_is_retried_once() -> None:
    async def answer(request: Received, peer: Peer) -> None:
        if len(upstream.requests) == 2:
            peer.cut()  # as if it had been closed while idle
        else:
            await echo(request, peer)

    upstream = Upstream(answer)

    async def test() -> None:
        async with upstream:
            client = QuickClient(upstream.address)
            await client.request("GET", "/1", timeout_s=5)
            assert (await client.request("GET", "/2", timeout_s=5)).status == 200
            assert [r.path for r in upstream.requests] == ["/1", "/2", "/2"]
            await client.aclose()

    run(test())


def test_fresh_connection_is_not_retried() -> None:
    async def answer(_: Received, peer: Peer) -> None:
        peer.cut()

    async def test() -> None:
        async with Upstream(answer) as upstream:
            client = QuickClient(upstream.address)
            with pytest.raises(ConnectionCut):
                await client.request("GET", "/", timeout_s=5)
            assert len(upstream.requests) == 1
            await client.aclose()

    run(test())


def test_no_retry_once_something_was_received() -> None:
    async def answer(request: Received, peer: Peer) -> None:
        if len(upstream.requests) == 1:
            await echo(request, peer)
        else:
            await peer.send(b"HTTP/1.1 2")
            peer.cut()

    upstream = Upstream(answer)

    async def test() -> None:
        async with upstream:
            client = QuickClient(upstream.address)
            await client.request("GET", "/", timeout_s=5)
            with pytest.raises(ConnectionCut):
                await client.request("GET", "/", timeout_s=5)
            assert len(upstream.requests) == 2
            await client.aclose()

    run(test())


def test_idle_connection_expires(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines close an idle connection after 5 s: ours goes first."""
    monkeypatch.setattr(quick, "_IDLE_S", 0.01)
    gone = asyncio.Event()

    async def answer(request: Received, peer: Peer) -> None:
        await echo(request, peer)
        await peer.wait_gone()
        gone.set()

    async def test() -> None:
        async with Upstream(answer) as upstream:
            client = QuickClient(upstream.address)
            await client.request("GET", "/", timeout_s=5)
            await gone.wait()
            assert "0 open, 0 idle" in repr(client)
            await client.aclose()

    assert quick._IDLE_S < 5
    run(test())


def test_leaving_a_stream_closes_at_once() -> None:
    gone = asyncio.Event()

    async def answer(_: Received, peer: Peer) -> None:
        await peer.send(stream_head(), chunk(b"first"))
        await peer.wait_gone()
        gone.set()

    async def test() -> None:
        async with Upstream(answer) as upstream:
            client = QuickClient(upstream.address)
            async with client.stream("POST", "/", b"{}") as stream:
                assert await anext(stream) == b"first"
            async with asyncio.timeout(1):
                await gone.wait()
            await client.aclose()

    run(test())


def test_cancelled_request_closes_at_once() -> None:
    asked, gone = asyncio.Event(), asyncio.Event()

    async def answer(_: Received, peer: Peer) -> None:
        asked.set()
        await peer.wait_gone()
        gone.set()

    async def test() -> None:
        async with Upstream(answer) as upstream:
            client = QuickClient(upstream.address)
            task = asyncio.create_task(client.request("POST", "/", b"{}", timeout_s=20))
            await asked.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            async with asyncio.timeout(1):
                await gone.wait()
            assert "0 open" in repr(client)
            await client.aclose()

    run(test())


@pytest.mark.parametrize(
    "pieces",
    [
        (stream_head(), chunk(b"part")),
        (stream_head(), chunk(b"part"), b"5\r\nab"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\npart",),
    ],
    ids=["no-final-chunk", "inside-a-chunk", "short-of-its-length"],
)
def test_abrupt_end_is_an_error(pieces: tuple[bytes, ...]) -> None:
    async def answer(_: Received, peer: Peer) -> None:
        await peer.send(*pieces)
        await peer.close()

    async def test() -> None:
        async with Upstream(answer) as upstream:
            client = QuickClient(upstream.address)
            got = b""
            with pytest.raises(ConnectionCut):
                async with client.stream("POST", "/", b"{}") as stream:
                    async for piece in stream:
                        got += piece
            assert got.startswith(b"part"), "what arrived before the cut is given"
            await client.aclose()

    run(test())


def test_body_that_ends_with_the_connection() -> None:
    async def answer(_: Received, peer: Peer) -> None:
        await peer.send(b"HTTP/1.1 200 OK\r\n\r\nall of it")
        await peer.close()

    async def test() -> None:
        async with Upstream(answer) as upstream:
            client = QuickClient(upstream.address)
            assert (await client.request("GET", "/", timeout_s=5)).body == b"all of it"
            await client.aclose()

    run(test())


@pytest.mark.parametrize(
    "pieces", [(), (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf",)], ids=["no head", "half a body"]
)
def test_request_timeout(pieces: tuple[bytes, ...]) -> None:
    async def answer(_: Received, peer: Peer) -> None:
        await peer.send(*pieces)
        await peer.stall()

    async def test() -> None:
        async with Upstream(answer) as upstream:
            client = QuickClient(upstream.address)
            with pytest.raises(AnswerTimeout):
                await client.request("GET", "/", timeout_s=0.1)
            assert "0 open" in repr(client)
            await client.aclose()

    run(test())


def test_stream_head_timeout() -> None:
    async def answer(_: Received, peer: Peer) -> None:
        await peer.stall()

    async def test() -> None:
        async with Upstream(answer) as upstream:
            client = QuickClient(upstream.address)
            with pytest.raises(AnswerTimeout, match="didn't begin to answer POST /x"):
                async with client.stream("POST", "/x", b"{}", timeout_s=0.1):
                    pass
            await client.aclose()

    run(test())


def test_nobody_listens() -> None:
    async def test() -> None:
        client = QuickClient("unix:/nonexistent/engine.sock")
        with pytest.raises(CannotConnect, match="No such file"):
            await client.request("GET", "/", timeout_s=5)

    run(test())


@pytest.mark.parametrize(
    "pieces",
    [
        (b"<html>no</html>\r\n\r\n",),
        (b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 70_000 + b"\r\n\r\n",),
        (b"HTTP/1.1 200 OK\r\n", *(b"X%d: %b\r\n" % (n, b"y" * 1000) for n in range(80))),
        (b"HTTP/1.1 101 Switching\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n",),
    ],
    ids=["html", "bad length", "long header", "many headers", "upgrade"],
)
def test_bad_head(pieces: tuple[bytes, ...]) -> None:
    async def answer(_: Received, peer: Peer) -> None:
        await peer.send(*pieces)
        await peer.stall()

    async def test() -> None:
        async with Upstream(answer) as upstream:
            client = QuickClient(upstream.address)
            with pytest.raises(BadAnswer):
                await client.request("GET", "/", timeout_s=5)
            assert "0 open" in repr(client)
            await client.aclose()

    run(test())


def test_continue_is_skipped() -> None:
    async def test() -> None:
        async with Upstream(answering(b"HTTP/1.1 100 Continue\r\n\r\n", whole_answer(b"1"))) as upstream:
            client = QuickClient(upstream.address)
            assert (await client.request("GET", "/", timeout_s=5)).body == b"1"
            await client.aclose()

    run(test())


def test_bytes_nobody_asked_for_end_the_connection() -> None:
    gone = asyncio.Event()

    async def answer(_: Received, peer: Peer) -> None:
        await peer.send(whole_answer(b"1"))
        await peer.send(whole_answer(b"2"))
        await peer.wait_gone()
        gone.set()

    async def test() -> None:
        async with Upstream(answer) as upstream:
            client = QuickClient(upstream.address)
            assert (await client.request("GET", "/", timeout_s=5)).body == b"1"
            await gone.wait()
            await client.aclose()

    run(test())


def test_whole_body_is_bounded() -> None:
    async def test() -> None:
        async with Upstream(answering(whole_answer(b"x" * 5000))) as upstream:
            client = QuickClient(upstream.address)
            with pytest.raises(BadAnswer, match="longer than 4000 bytes"):
                async with client.stream("GET", "/") as stream:
                    await stream.read_all(limit_bytes=4000)
            await client.aclose()

    run(test())


def test_slow_consumer_bounds_the_buffer() -> None:
    """Past the bound the socket isn't read, so that the engine blocks in its write; nothing is lost."""
    total, size = 400, 64 * 1024
    sender: list[Peer] = []

    async def answer(_: Received, peer: Peer) -> None:
        sender.append(peer)
        await peer.send(stream_head(), *(chunk(b"x" * size) for _ in range(total)), LAST_CHUNK)

    async def test() -> None:
        async with Upstream(answer) as upstream:
            client = QuickClient(upstream.address)
            async with client.stream("POST", "/", b"{}") as stream:
                sent = -1
                while sent != sender[0].sent_bytes:  # until the sender is stuck
                    sent = sender[0].sent_bytes
                    for _ in range(50):
                        await asyncio.sleep(0)
                assert MAX_BUFFERED_BYTES < stream.buffered_bytes <= MAX_BUFFERED_BYTES + _ONE_READ
                assert sent < total * size / 2
                assert len(await stream.read_all()) == total * size
            assert "1 idle" in repr(client)
            assert (await client.request("GET", "/", timeout_s=5)).status == 200
            await client.aclose()

    run(test())


def test_aclose_cuts_readers_and_ends_the_client() -> None:
    reading = asyncio.Event()

    async def answer(_: Received, peer: Peer) -> None:
        await peer.send(stream_head())
        reading.set()
        await peer.wait_gone()

    async def test() -> None:
        async with Upstream(answer) as upstream:
            client = QuickClient(upstream.address)

            async def read() -> None:
                async with client.stream("POST", "/", b"{}") as stream:
                    await stream.read()

            task = asyncio.create_task(read())
            await reading.wait()
            await client.aclose()
            with pytest.raises(ConnectionCut):
                await task
            with pytest.raises(CannotConnect):
                await client.request("GET", "/", timeout_s=5)
            await client.aclose()
            assert "closed" in repr(client)

    run(test())


def test_interrupt_comes_before_data() -> None:
    async def answer(_: Received, peer: Peer) -> None:
        await peer.send(stream_head(), chunk(b"data"))
        await peer.stall()

    async def test() -> None:
        async with Upstream(answer) as upstream:
            client = QuickClient(upstream.address)
            async with client.stream("POST", "/", b"{}") as stream:
                while not stream.buffered_bytes:  # noqa: ASYNC110 - there is no event for bytes that nobody reads
                    await asyncio.sleep(0)
                stream.interrupt(KeyError("mine"))
                with pytest.raises(KeyError):
                    await stream.read()
            await client.aclose()

    run(test())


@pytest.mark.parametrize(
    "address", ["", "unix:relative", "ftp://h", "http://", "http://h:99999", "http://u@h:1", "http://h:1/a b"]
)
def test_bad_address(address: str) -> None:
    with pytest.raises(ValueError, match="not an engine's address"):
        QuickClient(address)


@pytest.mark.parametrize("path", ["x", "/a b", "/a\r\nX: 1", "/é"])
def test_bad_path_is_never_sent(path: str) -> None:
    async def test() -> None:
        client = QuickClient("unix:/nonexistent")
        with pytest.raises(ValueError, match="not a request line"):
            await client.request("GET", path, timeout_s=5)

    run(test())


@pytest.mark.parametrize("key", ["", "a\r\nX: 1", "schlüssel"])
def test_bad_key(key: str) -> None:
    with pytest.raises(ValueError, match="key") as caught:
        QuickClient("unix:/x", api_key=key)
    assert not key or key not in str(caught.value)
