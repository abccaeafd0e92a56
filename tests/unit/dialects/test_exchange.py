"""An answer's generator is closed on every path, and each failure is told while it can be."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from typing import Any

import pytest
from support.asgi import Reply, call

from oprel.dialects.exchange import Answer, Exchange, Head, Waiting
from oprel.errors import BusyError, OprelError


class Errors:
    def whole(self, error: OprelError) -> tuple[Head, bytes]:
        return Head(error.status, ((b"x-kind", error.kind.encode()),)), error.message.encode()

    def chunk(self, error: OprelError) -> bytes:
        return b"!" + error.message.encode()


class Recorded:
    """Makes an answer of `pieces` (bytes, Heads, errors to raise, or waits) and tells how it ended."""

    def __init__(self, *pieces: Any) -> None:
        self.pieces = pieces
        self.ended = ""

    async def answer(self) -> AsyncGenerator[Head | bytes, None]:
        try:
            for piece in self.pieces:
                if isinstance(piece, Exception):
                    raise piece
                if isinstance(piece, asyncio.Event):
                    await piece.wait()
                    continue
                yield piece
            self.ended = "finished"
        finally:
            self.ended = self.ended or "closed"


def run(answer: Callable[[], Answer], *, send_timeout_s: float = 5, **options: Any) -> Reply:
    async def go() -> Reply:
        exchange = Exchange(answer, Errors(), send_timeout_s=send_timeout_s)
        return await call(exchange, "POST", "/", **options)

    return asyncio.run(go())


def test_pieces_are_written_as_they_come() -> None:
    made = Recorded(Head(201, ((b"x-a", b"1"),)), b"one", b"two")
    reply = run(made.answer)
    assert (reply.status, reply.header("x-a"), reply.writes) == (201, "1", [b"one", b"two"])
    assert made.ended == "finished"


def test_a_failure_before_anything_was_sent_has_its_status() -> None:
    made = Recorded(BusyError("full"))
    reply = run(made.answer)
    assert (reply.status, reply.header("x-kind"), reply.body) == (503, "busy", b"full")


def test_a_failure_in_a_stream_is_its_last_piece() -> None:
    made = Recorded(Head(), b"one", BusyError("gone"))
    reply = run(made.answer)
    assert (reply.status, reply.writes) == (200, [b"one", b"!gone"])


@pytest.mark.parametrize("defect", [ValueError("secret"), TimeoutError("secret")], ids=lambda e: type(e).__name__)
def test_a_defect_is_logged_and_told_without_its_details(defect: Exception, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR, "oprel.server"):
        reply = run(Recorded(defect).answer)
    assert reply.status == 500
    assert b"secret" not in reply.body
    assert "secret" in caplog.text


@pytest.mark.parametrize("writes", [0, 1], ids=["before the first byte", "in the stream"])
def test_the_client_that_leaves_ends_the_answer(writes: int) -> None:
    async def go() -> Recorded:
        made = Recorded(Head(), b"one", asyncio.Event(), b"never")
        await call(Exchange(made.answer, Errors(), send_timeout_s=5), "POST", "/", leave_after_writes=writes)
        return made

    assert asyncio.run(go()).ended == "closed"


def test_a_cancelled_exchange_closes_the_answer_and_stays_cancelled() -> None:
    async def go() -> None:
        made = Recorded(Head(), b"one", asyncio.Event())
        wrote = asyncio.Event()

        async def receive() -> Any:
            await asyncio.Event().wait()

        async def send(message: Any) -> None:
            if message.get("body"):
                wrote.set()

        task = asyncio.create_task(Exchange(made.answer, Errors(), send_timeout_s=5)({}, receive, send))  # type: ignore[arg-type]
        await wrote.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert made.ended == "closed"

    asyncio.run(go())


def test_a_client_that_never_reads_is_cut_off(caplog: pytest.LogCaptureFixture) -> None:
    async def go() -> str:
        made = Recorded(Head(), b"one", b"two")

        async def receive() -> Any:
            await asyncio.Event().wait()

        async def send(message: Any) -> None:
            if message.get("body") == b"two":
                await asyncio.Event().wait()

        async with asyncio.timeout(10):
            await Exchange(made.answer, Errors(), send_timeout_s=0.05)({}, receive, send)  # type: ignore[arg-type]
        return made.ended

    with caplog.at_level(logging.WARNING, "oprel.server"):
        assert asyncio.run(go()) == "closed"
    assert "stopped reading" in caplog.text


def test_an_answer_that_takes_long_is_not_a_client_that_never_reads() -> None:
    async def go() -> Reply:
        ready = asyncio.Event()
        made = Recorded(Head(), b"one", ready, b"two")
        asyncio.get_running_loop().call_later(0.1, ready.set)
        return await call(Exchange(made.answer, Errors(), send_timeout_s=0.01), "POST", "/")

    assert asyncio.run(go()).writes == [b"one", b"two"]


WAITING = Waiting(Head(200, ((b"content-type", b"text/event-stream"),)), every_s=0.01)


class Gated(Recorded):
    """An answer that goes on only when the client was told so often that it is still being worked on."""

    def __init__(self, *pieces: Any, pings: int) -> None:
        self.told = asyncio.Event()
        super().__init__(WAITING, self.told, *pieces)
        self.pings = pings

    async def call(self) -> Reply:
        seen = 0
        reply = Reply()

        async def receive() -> Any:
            await asyncio.Event().wait()

        async def send(message: Any) -> None:
            nonlocal seen
            if message["type"] == "http.response.start":
                reply.status = message["status"]
                reply.headers += [(name.decode(), value.decode()) for name, value in message["headers"]]
            elif message["body"]:
                reply.writes.append(message["body"])
                seen += message["body"].startswith(b": still")
                if seen >= self.pings:
                    self.told.set()

        async with asyncio.timeout(10):
            await Exchange(self.answer, Errors(), send_timeout_s=5)({}, receive, send)  # type: ignore[arg-type]
        return reply


def test_a_stream_that_takes_long_to_begin_says_so_meanwhile() -> None:
    made = Gated(Head(200, ((b"content-type", b"x"), (b"x-oprel-told", b"late"))), b"one", pings=2)
    reply = asyncio.run(made.call())
    assert reply.headers == [("content-type", "text/event-stream")]
    assert reply.writes == [b": still working\n\n"] * 2 + [b": x-oprel-told: late\n\n", b"one"]
    assert made.ended == "finished"


def test_a_failure_after_a_sign_of_life_ends_the_stream_in_its_dialects_way() -> None:
    reply = asyncio.run(Gated(BusyError("full"), pings=1).call())
    assert (reply.status, reply.writes) == (200, [b": still working\n\n", b"!full"])


@pytest.mark.parametrize("outcome", [Head(201), BusyError("full")], ids=["an answer", "a failure"])
def test_a_stream_that_begins_soon_has_its_own_status(outcome: Any) -> None:
    patient = Waiting(WAITING.head, every_s=60)
    reply = run(Recorded(patient, outcome).answer)
    assert (reply.status, reply.body) == ((201, b"") if isinstance(outcome, Head) else (503, b"full"))


def test_a_client_that_leaves_while_it_waits_ends_the_answer() -> None:
    async def go() -> Recorded:
        made = Recorded(WAITING, asyncio.Event(), Head(), b"never")
        async with asyncio.timeout(10):
            await call(Exchange(made.answer, Errors(), send_timeout_s=5), "POST", "/", leave_after_writes=2)
        return made

    assert asyncio.run(go()).ended == "closed"
