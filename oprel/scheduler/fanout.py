"""Several choices, or several prompts, as one stream: engines answer one choice for each request.

Each choice takes its own lease and gives it back as soon as it is done, so that more choices than slots follow one
another. The buffer between them is bounded: a client that reads slowly slows the engine down. The first failure, or
closing the stream, ends them all.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, aclosing
from types import TracebackType

import msgspec

from oprel.drivers import Engine, EngineFailedError, EventStream
from oprel.scheduler.lease import Lease
from oprel.schema import (
    ChatRequest,
    CompletionRequest,
    Event,
    Finish,
    Text,
    Timings,
    ToolCallDelta,
    Usage,
    events,
)

__all__ = ["Choices", "Prepare", "Source", "chat_choices", "completion_choices"]

GenerateRequest = ChatRequest | CompletionRequest

Source = Callable[[], AbstractAsyncContextManager[Lease]]
"""Makes one lease for each choice: `lambda: scheduler.lease(…)`."""

Prepare = Callable[[GenerateRequest, Lease], GenerateRequest]
"""Completes a request with what only the lease tells (the model's own parameters, what the engine can)."""

_BUFFERED = 4  # batches for each choice
_SEEDS = 2**32
_Batch = tuple[Event, ...]


def chat_choices(source: Source, request: ChatRequest, n: int) -> EventStream:
    """`n` choices for one conversation, as one stream. Close it (`aclosing`)."""
    return _stream(Choices(source, [request], n))


def completion_choices(source: Source, requests: Sequence[CompletionRequest], n: int = 1) -> EventStream:
    """`n` choices for each prompt, numbered prompt by prompt. Close it (`aclosing`)."""
    return _stream(Choices(source, requests, n))


async def _stream(choices: Choices) -> AsyncGenerator[_Batch, None]:
    async with choices, aclosing(choices.events()) as stream:
        async for batch in stream:
            yield batch


class Choices:
    """The choices as a context manager, for who needs the lease before the first event.

    Entering waits for the first lease, `lease` (any of them: they are for one model), and raises what prevents it.
    `events()` is the merged stream, read once: choices are numbered prompt by prompt; given seeds are shifted, so that
    choices differ; the one Finish counts each prompt once and sums what was generated; its times are the longest.
    A single choice is passed on as it is.
    """

    lease: Lease

    def __init__(
        self, source: Source, requests: Sequence[GenerateRequest], n: int = 1, *, prepare: Prepare | None = None
    ) -> None:
        if n < 1 or not requests:
            raise ValueError("there must be at least one choice of one request")
        self._source = source
        self._prepare = prepare or _as_it_is
        self._requests = [_shifted(request, choice) for request in requests for choice in range(n)]
        self._choices_each = n
        self._tasks: list[asyncio.Task[None]] = []
        self._entered: AbstractAsyncContextManager[Lease] | None = None
        self._arrived: asyncio.Queue[tuple[int, _Batch] | Exception] = asyncio.Queue(_BUFFERED * len(self._requests))
        self._finishes: dict[int, Finish] = {}
        self._told: set[events.Warning] = set()

    async def __aenter__(self) -> Choices:
        if len(self._requests) == 1:
            await self._enter_single()
            return self
        leased: asyncio.Future[Lease] = asyncio.get_running_loop().create_future()
        self._tasks = [
            asyncio.create_task(self._choice(number, request, leased)) for number, request in enumerate(self._requests)
        ]
        try:
            self.lease = await leased
        except BaseException:
            await self._end()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._end()
        if self._entered is not None:
            await self._entered.__aexit__(kind, error, trace)

    async def events(self) -> AsyncGenerator[_Batch, None]:
        if len(self._requests) == 1:
            batch: _Batch = ()
            async with aclosing(_answer(self.lease.engine, self._requests[0])) as single:
                async for batch in single:
                    yield batch
            if not (batch and isinstance(batch[-1], Finish)):
                raise _unfinished(self.lease)
            return
        while len(self._finishes) < len(self._requests):
            batch = self._merged(await self._arrived.get())
            if len(self._finishes) == len(self._requests):
                batch = (*batch, self._finish())
            if batch:
                yield batch

    # -- inside

    async def _enter_single(self) -> None:
        entered = self._source()
        self.lease = await entered.__aenter__()
        try:
            self._requests[0] = self._prepare(self._requests[0], self.lease)
        except BaseException as error:
            await entered.__aexit__(type(error), error, error.__traceback__)
            raise
        self._entered = entered

    async def _choice(self, number: int, request: GenerateRequest, leased: asyncio.Future[Lease]) -> None:
        try:
            async with self._source() as lease:
                request = self._prepare(request, lease)
                if not leased.done():
                    leased.set_result(lease)
                async with aclosing(_answer(lease.engine, request)) as stream:
                    async for batch in stream:
                        await self._arrived.put((number, batch))
                        if isinstance(batch[-1], Finish):
                            return
            raise _unfinished(lease)
        except Exception as error:
            if not leased.done():
                leased.set_exception(error)
            else:
                await self._arrived.put(error)

    def _merged(self, first: tuple[int, _Batch] | Exception) -> _Batch:
        """`first` and all that arrived with it, numbered; finishes are kept back."""
        together: list[Event] = []
        item: tuple[int, _Batch] | Exception = first
        while True:
            if isinstance(item, Exception):
                raise item
            together += self._numbered(*item)
            if self._arrived.empty():
                return tuple(together)
            item = self._arrived.get_nowait()

    def _numbered(self, number: int, batch: _Batch) -> Iterator[Event]:
        for event in batch:
            if isinstance(event, Finish):
                self._finishes[number] = event
            elif isinstance(event, Text | events.Thinking | ToolCallDelta):
                yield msgspec.structs.replace(event, index=number) if number else event
            elif isinstance(event, events.Warning) and event not in self._told:  # each choice has the same to say
                self._told.add(event)
                yield event
            # progress of one choice among several says nothing

    def _finish(self) -> Finish:
        finishes = [self._finishes[number] for number in range(len(self._requests))]
        prompts = finishes[:: self._choices_each]
        return Finish(
            reasons=tuple(reason for finish in finishes for reason in finish.reasons),
            usage=Usage(
                prompt=sum(finish.usage.prompt for finish in prompts),
                completion=sum(finish.usage.completion for finish in finishes),
                cached=sum(finish.usage.cached for finish in prompts),
                reasoning=_sum(finish.usage.reasoning for finish in finishes),
            ),
            timings=Timings(
                prompt_s=_longest(finish.timings.prompt_s for finish in finishes),
                completion_s=_longest(finish.timings.completion_s for finish in finishes),
            ),
        )

    async def _end(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def _answer(engine: Engine, request: GenerateRequest) -> EventStream:
    return engine.chat(request) if isinstance(request, ChatRequest) else engine.complete(request)


def _unfinished(lease: Lease) -> EngineFailedError:
    return EngineFailedError("the engine ended its answer without saying so", driver=lease.plan.driver)


def _as_it_is(request: GenerateRequest, lease: Lease) -> GenerateRequest:
    return request


def _shifted(request: GenerateRequest, choice: int) -> GenerateRequest:
    seed = request.sampling.seed
    if seed is None or choice == 0:
        return request
    shifted = seed + choice if seed + choice < _SEEDS else seed - choice
    return msgspec.structs.replace(request, sampling=msgspec.structs.replace(request.sampling, seed=shifted))


def _sum(counts: Iterable[int | None]) -> int | None:
    """None where one of them isn't known."""
    known = list(counts)
    return None if None in known else sum(count for count in known if count is not None)


def _longest(times: Iterable[float | None]) -> float | None:
    return max((time for time in times if time is not None), default=None)
