"""A remote model as an engine: its replicas, one of them chosen for each request, tried again only before the first
token. `docs/architecture/remote.md` has the rules."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, aclosing, contextmanager
from typing import TypeVar

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception

from oprel.drivers.contract import Engine, EventStream, Health
from oprel.drivers.openai.failures import RemoteGoneError
from oprel.drivers.openai.replica import Replica
from oprel.drivers.openai.standing import choose
from oprel.drivers.upstream import Quirks
from oprel.errors import BackendError, BusyError, EngineFailedError, EngineTimeoutError, OprelError
from oprel.schema import (
    Capabilities,
    ChatRequest,
    CompletionRequest,
    Embeddings,
    EmbedRequest,
    Event,
    Plan,
    Progress,
    Ranking,
    RerankRequest,
    events,
)

__all__ = ["RETRY_WAIT_S", "Realized", "RemoteEngine"]

_log = logging.getLogger("oprel.drivers.openai")

# How long a request waits, in all, for a remote that is gone or busy; and how long a remote may have been gone for
# waiting to be worth it.
RETRY_WAIT_S = 5.0
_KEPT_FAILURES = 20
_QUIET = (Progress, events.Warning)

T = TypeVar("T")

Realized = tuple[Plan, Capabilities, Quirks]
"""What a remote turned out to be."""


class RemoteEngine(Engine):
    """Owns the connections to its replicas. `secret` is the key, which no error may hold, whoever wrote it there.
    `ask_again` is given where nobody could be asked what the remote is: it's called once the remote is there."""

    def __init__(
        self,
        replicas: tuple[Replica, ...],
        *,
        plan: Plan,
        capabilities: Capabilities,
        secret: str | None = None,
        ask_again: Callable[[], Awaitable[Realized | None]] | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        now: Callable[[], float] | None = None,
    ) -> None:
        self.plan = plan
        self.capabilities = capabilities
        self.replicas = replicas
        self._standings = [replica.standing for replica in replicas]
        self._secret = secret
        self._ask_again = ask_again
        self._has_answered = False
        self._sleep = sleep
        loop = asyncio.get_running_loop()
        self._now = now or loop.time
        self._turn = 0
        self._failures: deque[str] = deque(maxlen=_KEPT_FAILURES)
        self._ended: asyncio.Future[None] = loop.create_future()

    def __repr__(self) -> str:
        return f"<RemoteEngine {self.plan.model} on {len(self.replicas)} replicas: {self._stand()}>"

    # The contract

    def chat(self, request: ChatRequest) -> EventStream:
        return self._relayed(lambda replica: replica.chat(request))

    def complete(self, request: CompletionRequest) -> EventStream:
        return self._relayed(lambda replica: replica.complete(request))

    async def embed(self, request: EmbedRequest) -> Embeddings:
        return await self._answered(lambda replica: replica.embed(request))

    async def rerank(self, request: RerankRequest) -> Ranking:
        return await self._answered(lambda replica: replica.rerank(request))

    async def health(self) -> Health:
        """By progress: nobody is asked."""
        if self._ended.done():
            return Health("dead", "The remote was given up.")
        in_use = sum(standing.in_use for standing in self._standings)
        return Health("busy" if in_use >= self.plan.slots else "ready", f"Its replicas: {self._stand()}.")

    async def wait_dead(self) -> str:
        """A remote is never dead for good: it ends when it is given up."""
        await asyncio.shield(self._ended)
        return f"the remote {self.plan.engine!r} was given up"

    async def stop(self) -> None:
        if not self._ended.done():
            self._ended.set_result(None)
        for replica in self.replicas:
            await replica.stop()

    def log_tail(self) -> tuple[str, ...]:
        """What failed last."""
        return tuple(self._failures)

    # One request

    async def _relayed(self, ask: Callable[[Replica], EventStream]) -> AsyncGenerator[tuple[Event, ...], None]:
        async with AsyncExitStack() as held:
            replica, began, first, stream = await self._begun(held, ask)
            yield first
            try:
                async for batch in stream:
                    yield batch
            except OprelError as error:
                raise self._noted(replica, began, error) from None

    async def _begun(
        self, held: AsyncExitStack, ask: Callable[[Replica], EventStream]
    ) -> tuple[Replica, float, tuple[Event, ...], EventStream]:
        """A stream with its first batch that says something; what must be closed is in `held`."""
        await self._learn()
        tried: set[int] = set()
        async for attempt in self._attempts(tried):
            with attempt:
                async with AsyncExitStack() as trying:
                    replica, began = trying.enter_context(self._taken(tried))
                    with self._judged(replica, began):
                        stream = await trying.enter_async_context(aclosing(ask(replica)))
                        first = await _first(stream)
                    await held.enter_async_context(trying.pop_all())
                return replica, began, first, stream
        raise AssertionError("attempts end with an answer or an error")

    async def _answered(self, ask: Callable[[Replica], Awaitable[T]]) -> T:
        await self._learn()
        tried: set[int] = set()
        async for attempt in self._attempts(tried):
            with attempt, self._taken(tried) as (replica, began), self._judged(replica, began):
                return await ask(replica)
        raise AssertionError("attempts end with an answer or an error")

    @contextmanager
    def _taken(self, tried: set[int]) -> Iterator[tuple[Replica, float]]:
        """The replica whose turn it is, and when it was asked."""
        if len(tried) == len(self.replicas):
            tried.clear()
        now = self._now()
        position = choose(self._standings, now, passed_over=tried)
        tried.add(position)
        self._turn += 1
        standing = self._standings[position]
        standing.begin(now, self._turn)
        try:
            yield self.replicas[position], now
        finally:
            standing.end()

    @contextmanager
    def _judged(self, replica: Replica, began: float) -> Iterator[None]:
        """What came of asking changes how the replica stands."""
        try:
            yield
        except OprelError as error:
            raise self._noted(replica, began, error) from None
        except BaseException:
            replica.standing.is_tried = False  # given up from this side: nothing was learned
            raise
        replica.standing.answered(began)
        self._has_answered = True

    async def _learn(self) -> None:
        """A remote that was down when it was started, and has answered since, is asked what it is: once."""
        if self._ask_again is None or not self._has_answered:
            return
        ask, self._ask_again = self._ask_again, None
        if (realized := await ask()) is None:
            return
        self.plan, self.capabilities, _ = realized
        for replica in self.replicas:
            replica.learn(*realized)

    def _noted(self, replica: Replica, began: float, error: OprelError) -> OprelError:
        """`error`, clean of secrets, after the replica's standing took it in."""
        _scrub(error, self._secret)
        standing, now = replica.standing, self._now()
        if isinstance(error, BusyError):
            standing.busy(now, error.retry_after_s)
        elif isinstance(error, BackendError):
            standing.failed(began, now)
            self._failures.append(error.message)
            _log.warning("%s at %s: %s", self.plan.model, replica.client.address, error.message)
        else:
            standing.answered(began)  # it refused: it's alive
        return error

    # Trying again

    def _attempts(self, tried: set[int]) -> AsyncRetrying:
        return AsyncRetrying(
            retry=retry_if_exception(self._may_try_again),
            wait=lambda _: self._wait_s(tried),
            stop=lambda state: self._is_over(state, tried),
            sleep=self._sleep,
            reraise=True,
        )

    def _may_try_again(self, error: BaseException) -> bool:
        return isinstance(error, RemoteGoneError | BusyError | EngineTimeoutError) and not self._ended.done()

    def _wait_s(self, tried: set[int]) -> float:
        """Until a replica may be asked: none at all where another one is ready."""
        now = self._now()
        if self._others(tried, now):
            return 0.0
        return max(0.0, min(standing.rests_until for standing in self._standings) - now)

    def _is_over(self, state: RetryCallState, tried: set[int]) -> bool:
        now = self._now()
        if self._others(tried, now):
            return False
        error = state.outcome.exception() if state.outcome is not None else None
        if isinstance(error, EngineTimeoutError):
            return True  # it was waited for long enough
        since = [standing.failing_since for standing in self._standings]
        if all(moment is not None and now - moment > RETRY_WAIT_S for moment in since):
            return True  # known to be gone: nobody is kept waiting for nothing
        return state.idle_for + self._wait_s(tried) > RETRY_WAIT_S

    def _others(self, tried: set[int], now: float) -> bool:
        """Whether a replica that this request hasn't tried can be asked at once."""
        return any(
            position not in tried and standing.state(now) != "resting"
            for position, standing in enumerate(self._standings)
        )

    def _stand(self) -> str:
        now = self._now()
        states = [standing.state(now) for standing in self._standings]
        return ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))


async def _first(stream: EventStream) -> tuple[Event, ...]:
    """All events up to the first that is part of the answer, and what came with it: until then the request could be
    sent to another replica, and nobody would notice."""
    held: tuple[Event, ...] = ()
    async for batch in stream:
        held += batch
        if not all(isinstance(event, _QUIET) for event in batch):
            return held
    raise EngineFailedError("the remote ended its answer before it began")


def _scrub(error: OprelError, secret: str | None) -> None:
    if secret is not None and secret in error.message:
        error.message = error.message.replace(secret, "***")
        error.args = (error.message,)
