"""Calls into code that isn't ours come back, whatever that code does."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Any

import pytest

from oprel.drivers import calls
from oprel.drivers.calls import Hung, Raised, bounded, described, held


@pytest.fixture(autouse=True)
def short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "GRACE_S", 0.05)


def test_an_answer_is_an_answer() -> None:
    assert bounded(lambda: 7, limit_s=5) == 7


@pytest.mark.parametrize("error", [ValueError("a"), SystemExit(3), KeyboardInterrupt(), GeneratorExit()])
def test_whatever_is_raised_comes_back(error: BaseException) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(Raised) as caught:
        bounded(fail, limit_s=5)
    assert caught.value.error is error
    assert type(error).__name__ in str(caught.value)


def test_what_does_not_return_is_not_waited_for() -> None:
    began = time.monotonic()
    with pytest.raises(Hung, match=r"didn't return within 0.05 s"):
        bounded(lambda: time.sleep(2), limit_s=0.05)
    assert time.monotonic() - began < 1


async def _seven() -> int:
    await asyncio.sleep(0)
    return 7


async def _exits() -> None:
    raise SystemExit(2)


async def _cancels_itself() -> None:
    raise asyncio.CancelledError


async def _waits() -> None:
    await asyncio.sleep(3600)


async def _ignores() -> None:
    while True:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(3600)


def run(call: Callable[[], Any], limit_s: float | None = 5.0) -> Any:
    """A loop that ends, whatever was left on it."""
    return asyncio.run(held(call, limit_s=limit_s))


def test_a_coroutine_is_awaited() -> None:
    assert run(_seven) == 7


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (_exits, "SystemExit: 2"),
        (_cancels_itself, "CancelledError: it cancelled itself"),
        (lambda: 7, "TypeError"),
        (lambda: 1 // 0, "ZeroDivisionError"),
    ],
    ids=["exits", "cancels itself", "no coroutine", "raises at once"],
)
def test_coroutines_that_go_wrong_come_back(call: Any, said: str) -> None:
    with pytest.raises(Raised, match=said):
        run(call)


@pytest.mark.parametrize("call", [_waits, _ignores])
def test_coroutines_that_hang_are_let_go(call: Any) -> None:
    with pytest.raises(Hung):
        run(call, limit_s=0.05)


@pytest.mark.parametrize("call", [_waits, _ignores])
def test_who_is_cancelled_is_not_held_by_what_it_waits_for(call: Any) -> None:
    async def leave() -> float:
        waiting = asyncio.create_task(held(call, limit_s=None))
        await asyncio.sleep(0.02)
        began = time.monotonic()
        waiting.cancel()
        (outcome,) = await asyncio.gather(waiting, return_exceptions=True)
        assert isinstance(outcome, asyncio.CancelledError)
        return time.monotonic() - began

    assert asyncio.run(leave()) < 1


def test_an_error_without_a_text_is_told_by_its_name() -> None:
    assert (described(ValueError()), described(ValueError("x"))) == ("ValueError", "ValueError: x")
