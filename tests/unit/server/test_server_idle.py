"""What a server does that nobody asks."""

from __future__ import annotations

import time

import httpx
import pytest
from support.servers import scripted_server, wait_until

from oprel.server.running import _Server


def test_it_wakes_once_a_second_and_when_it_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[float] = []
    look = _Server.on_tick

    async def on_tick(self: _Server, counter: int) -> bool:
        looks.append(time.monotonic())
        return await look(self, counter)

    monkeypatch.setattr(_Server, "on_tick", on_tick)
    with scripted_server() as server:
        first = httpx.get(f"{server.url}/api/version").headers["date"]
        wait_until(lambda: httpx.get(f"{server.url}/api/version").headers["date"] != first, what="the next second")
        asked = time.monotonic()
    assert len(looks) <= 3 + asked - looks[0]
    assert looks[-1] - asked < 0.9, "it was told at once that it is over"
