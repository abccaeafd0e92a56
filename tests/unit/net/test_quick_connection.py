"""An answer reads the same however its bytes are cut."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from unittest.mock import Mock

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.http_upstream import LAST_CHUNK, chunk, stream_head, whole_answer

from oprel.net import ConnectionCut
from oprel.net.connection import Connection

_BODY = "déjà vu 😀\r\n\r\n0\r\n".encode()
_ANSWERS = [
    b"HTTP/1.1 100 Continue\r\n\r\n" + whole_answer(_BODY, headers={"X-One": "1"}),
    stream_head() + b"".join(chunk(_BODY[n : n + 5]) for n in range(0, len(_BODY), 5)) + LAST_CHUNK,
    stream_head() + b"5;ext=1\r\n" + _BODY[:5] + b"\r\n" + chunk(_BODY[5:]) + b"0\r\nTrailer: x\r\n\r\n",
]


@given(st.sampled_from(_ANSWERS), st.lists(st.integers(1, 400), max_size=12))
def test_split_anywhere(answer: bytes, cuts: list[int]) -> None:
    async def read() -> tuple[int, bytes, bool]:
        connection = Connection()
        connection.connection_made(Mock(is_closing=lambda: False, get_write_buffer_size=lambda: 0))
        connection.ask(b"GET / HTTP/1.1\r\n\r\n", b"")
        edges = [0, *sorted({cut for cut in cuts if cut < len(answer)}), len(answer)]
        for start, end in pairwise(edges):
            connection.data_received(answer[start:end])
        await connection.wait_head()
        body = b""
        while data := await connection.read():
            body += data
        return connection.status, body, connection.is_reusable

    assert asyncio.run(read()) == (200, _BODY, True)


@given(st.sampled_from(_ANSWERS), st.data())
def test_cut_anywhere_is_told(answer: bytes, data: st.DataObject) -> None:
    """What came before the cut is given, and then the cut is an error: never a short answer that looks whole."""

    async def read(kept: int) -> bytes:
        connection = Connection()
        connection.connection_made(Mock(is_closing=lambda: False))
        connection.ask(b"GET / HTTP/1.1\r\n\r\n", b"")
        connection.data_received(answer[:kept])
        connection.connection_lost(None)
        body = b""
        with pytest.raises(ConnectionCut):
            await connection.wait_head()
            while piece := await connection.read():
                body += piece
        return body

    assert _BODY.startswith(asyncio.run(read(data.draw(st.integers(0, len(answer) - 1)))))


def test_what_arrived_together_comes_together() -> None:
    async def read() -> list[bytes]:
        connection = Connection()
        connection.connection_made(Mock(is_closing=lambda: False))
        connection.ask(b"GET / HTTP/1.1\r\n\r\n", b"")
        connection.data_received(stream_head() + chunk(b"a") + chunk(b"b"))
        connection.data_received(chunk(b"c"))
        first = await connection.read()
        connection.data_received(chunk(b"d") + LAST_CHUNK)
        return [first, await connection.read(), await connection.read()]

    assert asyncio.run(read()) == [b"abc", b"d", b""]


def test_answer_to_nothing_in_the_same_read() -> None:
    """The first answer stands as it is; the connection isn't used again."""

    async def read(surplus: bytes) -> tuple[int, bytes, bool]:
        connection = Connection()
        connection.connection_made(Mock(is_closing=lambda: False, get_write_buffer_size=lambda: 0))
        connection.ask(b"GET / HTTP/1.1\r\n\r\n", b"")
        connection.data_received(whole_answer(b"mine") + surplus)
        await connection.wait_head()
        return connection.status, await connection.read(), connection.is_reusable

    for surplus in (whole_answer(b"more", status=500), b"garbage\r\n"):
        assert asyncio.run(read(surplus)) == (200, b"mine", False)
