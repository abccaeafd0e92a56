"""How often is asked again, by what went wrong."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from oprel.errors import SourceError
from oprel.net import bulk, outside
from oprel.net.bulk import BulkConnection
from oprel.net.outside import Hop, OutsideClient, TransientSourceError, UnreachableError
from oprel.sources.retries import ATTEMPTS, ATTEMPTS_TO_REACH, attempts, retried

NOBODY = "http://127.0.0.1:9"  # the port of `discard`


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What it would have waited."""
    waited: list[float] = []

    async def pause(seconds: float) -> None:
        waited.append(seconds)

    monkeypatch.setattr("oprel.sources.retries.pause", pause)
    return waited


@pytest.mark.parametrize(
    ("error", "tries", "count"),
    [
        (TransientSourceError("busy"), ATTEMPTS, ATTEMPTS),
        (TransientSourceError("busy"), 2, 2),
        (UnreachableError("nobody there"), ATTEMPTS, ATTEMPTS_TO_REACH),
        (UnreachableError("nobody there"), 2, 2),
        (SourceError("no"), ATTEMPTS, 1),
    ],
)
def test_one_request(error: SourceError, tries: int, count: int, waits: list[float]) -> None:
    asked = 0

    async def ask() -> None:
        nonlocal asked
        asked += 1
        raise error

    with pytest.raises(type(error), match=str(error)):
        asyncio.run(retried(ask, tries=tries))
    assert asked == count
    assert len(waits) == count - 1


def test_work_that_got_somewhere_is_tried_as_often_without_a_network(waits: list[float]) -> None:
    class Work:
        fruitless = 0

    async def go_on() -> None:
        async for attempt in attempts(work):
            with attempt:
                work.fruitless += 1
                raise UnreachableError("nobody there")

    work = Work()
    with pytest.raises(UnreachableError):
        asyncio.run(go_on())
    assert work.fruitless == ATTEMPTS


def test_without_a_network_it_is_told_in_seconds(waits: list[float]) -> None:
    async def read() -> None:
        async with OutsideClient(trusted=(NOBODY,)) as client:
            await retried(lambda: client.read(f"{NOBODY}/x", max_bytes=100))

    with pytest.raises(UnreachableError, match="can't be reached; is there a network"):
        asyncio.run(read())
    assert len(waits) == ATTEMPTS_TO_REACH - 1
    assert sum(waits) < 3


@pytest.mark.parametrize("address", ["127.0.0.1", "255.255.255.255"])  # nobody listens; no way leads there
def test_a_large_file_of_nobody_is_out_of_reach(address: str) -> None:
    connection = BulkConnection()
    with pytest.raises(UnreachableError, match="can't be reached; is there a network"):
        connection.get(Hop(f"http://{address}:9/x", address=address, proxy=None, tls=None, headers={}))


@pytest.mark.parametrize("table", [outside, bulk])
@pytest.mark.parametrize("error", [httpx.ConnectTimeout(""), httpx.ConnectError("refused")])
def test_nobody_answered_by_a_proxy_or_directly(table: Any, error: httpx.HTTPError) -> None:
    problem = table._problem_of(error, "http://here")
    assert isinstance(problem, UnreachableError)
    assert str(problem).startswith("http://here can't be reached")
