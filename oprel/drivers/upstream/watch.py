"""The clocks of one answer: an engine that makes no progress, and a generation that takes too long.

An engine's `/health` says nothing here: a wedged llama-server answers it. Progress is what counts: tokens, or parts
of the prompt; comment lines (`:`) that keep the connection open aren't progress. Progress of any stream of an engine
counts for all of them: llama-server reads one long prompt before it begins the next, so that a request may wait long
on a healthy engine.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

__all__ = ["LONGEST_S", "Pulse", "Stalled", "TimeLimitReached", "Watch", "prompt_budget_s"]

# 20 tokens a second: slower than what anybody would wait for.
_PROMPT_TOKEN_S = 0.05
# Between two reports of progress an engine reads at most one batch.
_BATCH_TOKENS = 2048
# Loops take no infinite delays; this is eleven days.
LONGEST_S = 1e6
# JSON text has three bytes for a token or more, except for a few scripts; those only get the patience of fewer tokens.
_BYTES_PER_TOKEN = 3


def prompt_budget_s(body_bytes: int, context_tokens: int) -> float:
    """How long an engine that tells no progress may read a prompt, in seconds."""
    return _PROMPT_TOKEN_S * min(body_bytes / _BYTES_PER_TOKEN, context_tokens)


class Stalled(Exception):
    """Nothing came for `seconds`."""

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.seconds = seconds


class TimeLimitReached(Exception):
    """The generation took all the time that it was given."""


class Pulse:
    """When an engine last made progress for anybody, in the loop's time."""

    __slots__ = ("last",)

    def __init__(self) -> None:
        self.last = -math.inf

    def beat(self) -> float:
        self.last = asyncio.get_running_loop().time()
        return self.last


class Watch:
    """Calls `stop` (to be set) with Stalled or TimeLimitReached. One timer, moved when it
    fires: progress costs nothing.

    The stall clock runs only while this side waits for the engine (`resume` to `pause`), not while a slow client
    holds an answer back. `close` ends it.
    """

    def __init__(
        self,
        pulse: Pulse,
        *,
        stall_timeout_s: float,
        prompt_budget_s: float,
    ) -> None:
        self.stop: Callable[[Exception], None] = _nothing_to_stop
        self.has_begun = False
        self._pulse = pulse
        self._stall_timeout_s = stall_timeout_s
        self._limit_s = min(stall_timeout_s + prompt_budget_s, LONGEST_S)
        self._loop = asyncio.get_running_loop()
        self._since = self._loop.time()
        self._is_paused = False
        self._limit_timer: asyncio.TimerHandle | None = None
        self._timer = self._loop.call_later(self._limit_s, self._look)

    @property
    def limit_s(self) -> float:
        return self._limit_s

    def progress(self) -> None:
        self._since = self._pulse.beat()

    def prompt_left(self, tokens: int) -> None:
        """The engine told how much of the prompt it still has to read."""
        self._set_limit(self._stall_timeout_s + _PROMPT_TOKEN_S * min(tokens, _BATCH_TOKENS))

    def begin(self, time_limit_s: float | None) -> None:
        """The first token is there: from now on the plain limit holds, and the generation's own."""
        self.has_begun = True
        self._set_limit(self._stall_timeout_s)
        if time_limit_s is not None and time_limit_s < LONGEST_S:
            self._limit_timer = self._loop.call_later(time_limit_s, self._end)

    def pause(self) -> None:
        self._is_paused = True

    def resume(self) -> None:
        self._is_paused = False
        self._since = self._loop.time()

    def close(self) -> None:
        self._timer.cancel()
        if self._limit_timer is not None:
            self._limit_timer.cancel()

    def _set_limit(self, limit_s: float) -> None:
        limit_s = min(limit_s, LONGEST_S)
        if limit_s == self._limit_s:
            return
        self._limit_s = limit_s
        self._timer.cancel()
        self._timer = self._loop.call_later(limit_s, self._look)

    def _look(self) -> None:
        now = self._loop.time()
        since = now if self._is_paused else max(self._since, self._pulse.last)
        left = since + self._limit_s - now
        # Timers may fire a little early: loops round their clock.
        if left <= 0.001:
            self.stop(Stalled(self._limit_s))
        else:
            self._timer = self._loop.call_later(left, self._look)

    def _end(self) -> None:
        self.stop(TimeLimitReached())


def _nothing_to_stop(_: Exception) -> None:
    pass
