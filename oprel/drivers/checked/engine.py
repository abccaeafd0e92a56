"""A third party's engine, held to the contract: requests that it can't honour don't reach it, and what it yields, how
long it takes and what it leaves behind is looked at."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any, TypeVar

from oprel.drivers.calls import Hung, Raised, described, held, let_go
from oprel.drivers.checked.events import StreamCheck, check_embeddings, shown
from oprel.drivers.checked.faults import Broken, broke, log, own_error
from oprel.drivers.checked.processes import Claim, end_all
from oprel.drivers.contract import DriverOptions, Engine, EventStream, Health
from oprel.drivers.enforced import Request, check_request
from oprel.drivers.forcing import calls_of, forced, is_forced
from oprel.drivers.upstream.watch import LONGEST_S, prompt_budget_s
from oprel.errors import EngineFailedError, EngineTimeoutError, UnsupportedError
from oprel.schema import (
    ChatRequest,
    CompletionRequest,
    Embeddings,
    EmbedRequest,
    Event,
    Plan,
    Ranking,
    RerankRequest,
)

__all__ = ["CheckedEngine"]

_SMALL_ANSWER_S = 30.0
_HEALTH_S = 5.0
_STOP_S = 30.0
_LOOK_BEHIND_S = 0.1
_END = object()

T = TypeVar("T")


class CheckedEngine(Engine):
    """`inner` is the engine itself. An engine that hangs is reported dead, so that it is stopped and started anew."""

    def __init__(self, inner: Engine, *, driver: str, plan: Plan, options: DriverOptions, claim: Claim) -> None:
        self.inner = inner
        self.plan = inner.plan
        self.capabilities = inner.capabilities
        self.claim = claim
        self._driver = driver
        self._options = options
        self._given_up: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._stopping: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<CheckedEngine of {self.inner!r}>"

    # -- answers

    def chat(self, request: ChatRequest) -> EventStream:
        if is_forced(request, self.capabilities):
            asked = forced(request)
            return calls_of(self._stream("chat", asked, lambda: self.inner.chat(asked)), driver=self._driver)
        return self._stream("chat", request, lambda: self.inner.chat(request))

    def complete(self, request: CompletionRequest) -> EventStream:
        return self._stream("complete", request, lambda: self.inner.complete(request))

    async def _stream(
        self, what: str, request: ChatRequest | CompletionRequest, begin: Callable[[], Any]
    ) -> AsyncGenerator[tuple[Event, ...], None]:
        self._check(request)
        check = StreamCheck(what)
        async with _Pump(begin, on_refusal=lambda: self._give_up(f"its {what}() went on when it was closed")) as pump:
            limit_s = self._first_limit_s(request)
            while (batch := await self._next(what, pump, limit_s)) is not _END:
                try:
                    check.batch(batch)
                except Broken as broken:
                    raise self._failure(broken) from None
                if check.is_finished:
                    await self._look_behind(what, pump)
                    yield batch
                    return
                yield batch
                limit_s = self._options.stall_timeout_s
            self._check_end(check)

    async def embed(self, request: EmbedRequest) -> Embeddings:
        self._check(request)
        limit_s = self._first_limit_s(request)
        found = await self._answer("embed", lambda: self.inner.embed(request), limit_s)
        try:
            check_embeddings(found, count=len(request.inputs))
        except Broken as broken:
            raise self._failure(broken) from None
        return found

    async def rerank(self, request: RerankRequest) -> Ranking:
        if not self.capabilities.rerank:
            raise UnsupportedError(
                f"{self.plan.model!r} on the driver {self._driver!r} doesn't rank documents",
                capability="rerank",
                model=self.plan.model,
                driver=self._driver,
            )
        limit_s = min(
            self._options.stall_timeout_s + prompt_budget_s(sum(map(len, request.documents)), self.plan.context_tokens),
            LONGEST_S,
        )
        found: object = await self._answer("rerank", lambda: self.inner.rerank(request), limit_s)
        if not isinstance(found, Ranking) or len(found.scores) != len(request.documents):
            raise self._failure("its rerank() returned what isn't one score for each document")
        return found

    async def tokenize(self, text: str, *, add_special: bool = False) -> tuple[int, ...]:
        found: object = await self._answer("tokenize", lambda: self.inner.tokenize(text, add_special=add_special))
        if not isinstance(found, tuple | list) or not all(type(token) is int for token in found):
            raise self._failure("its tokenize() returned what isn't token ids")
        return tuple(found)

    async def detokenize(self, tokens: tuple[int, ...]) -> str:
        return self._text("detokenize", await self._answer("detokenize", lambda: self.inner.detokenize(tokens)))

    async def render(self, request: ChatRequest) -> str:
        return self._text("render", await self._answer("render", lambda: self.inner.render(request)))

    # -- its life

    async def health(self) -> Health:
        try:
            found = await held(self.inner.health, limit_s=_HEALTH_S)
        except (Raised, Hung) as failure:
            return Health("dead", broke(self._driver, f"its health() {failure}"))
        if isinstance(found, Health):
            return found
        return Health("dead", broke(self._driver, f"its health() returned a {type(found).__name__}"))

    async def wait_dead(self) -> str:
        """Returns too when the engine was given up."""
        watching = asyncio.ensure_future(self._wait_inner_dead())
        try:
            await asyncio.wait({watching, self._given_up}, return_when=asyncio.FIRST_COMPLETED)
            return self._given_up.result() if self._given_up.done() else watching.result()
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)

    async def _wait_inner_dead(self) -> str:
        try:
            reason: object = await held(self.inner.wait_dead, limit_s=None)
        except (Raised, Hung) as failure:
            return broke(self._driver, f"its wait_dead() {failure}")
        return reason if isinstance(reason, str) and reason else f"the engine of {self.plan.model!r} ended"

    async def stop(self) -> None:
        """Ends whatever the engine left running, too."""
        try:
            await held(self.inner.stop, limit_s=_STOP_S)
        except (Raised, Hung) as failure:
            log.error("%s", broke(self._driver, f"its engine's stop() {failure}"))
        if left := await end_all(self.claim):
            names = ", ".join(f"{name} ({pid})" for pid, name in left.items())
            log.error("%s", broke(self._driver, f"its engine's stop() left {names} running: ended now"))

    def log_tail(self) -> tuple[str, ...]:
        try:
            return tuple(str(line) for line in self.inner.log_tail())
        except Exception as error:
            return (broke(self._driver, f"its log_tail() raised {described(error)}"),)

    def memory_bytes(self) -> int | None:
        try:
            size: object = self.inner.memory_bytes()
        except Exception as error:
            log.error("%s", broke(self._driver, f"its memory_bytes() raised {described(error)}"))
            return None
        return size if type(size) is int and size >= 0 else None

    # -- inside

    def _check(self, request: Request) -> None:
        check_request(request, self.capabilities, driver=self._driver, model=self.plan.model)

    def _first_limit_s(self, request: Request) -> float:
        """How long nothing may come: the time for reading a prompt, on a slow machine, and then some."""
        inputs = len(request.inputs) if isinstance(request, EmbedRequest) else 1
        budget_s = prompt_budget_s(self.plan.context_tokens, self.plan.context_tokens) * inputs
        return min(self._options.stall_timeout_s + budget_s, LONGEST_S)

    async def _next(self, what: str, pump: _Pump, limit_s: float) -> Any:
        try:
            async with asyncio.timeout(limit_s):
                item = await pump.next()
        except TimeoutError:
            self._give_up(f"its {what}() yielded nothing for {limit_s:g} s")
            raise self._late(f"its {what}() yielded nothing for {limit_s:g} s") from None
        if isinstance(item, Raised):
            raise self._translated(what, item) from item.error
        return item

    def _check_end(self, check: StreamCheck) -> None:
        try:
            check.end()
        except Broken as broken:
            raise self._failure(broken) from None

    async def _look_behind(self, what: str, pump: _Pump) -> None:
        """The answer is whole; what comes after it is dropped, and told. One that takes its time to end isn't waited
        for."""
        try:
            async with asyncio.timeout(_LOOK_BEHIND_S):
                item = await pump.next()
        except TimeoutError:
            return
        if isinstance(item, Raised):
            log.error("%s", broke(self._driver, f"its {what}() {item} after its Finish"))
        elif item is not _END:
            log.error("%s", broke(self._driver, f"its {what}() yielded {shown(item)} after its Finish"))

    async def _answer(
        self, what: str, ask: Callable[[], Coroutine[Any, Any, T]], limit_s: float = _SMALL_ANSWER_S
    ) -> T:
        try:
            return await held(ask, limit_s=limit_s)
        except Raised as raised:
            raise self._translated(what, raised) from raised.error
        except Hung as hung:
            self._give_up(f"its {what}() {hung}")
            raise self._late(f"its {what}() {hung}") from None

    def _translated(self, what: str, raised: Raised) -> Exception:
        own = own_error(raised)
        if own is not None:
            return own
        if isinstance(raised.error, NotImplementedError):
            text = f"{self.plan.model!r} on the driver {self._driver!r} can't {what}"
            return UnsupportedError(text, capability=what, model=self.plan.model, driver=self._driver)
        return self._failure(f"its {what}() {raised}")

    def _text(self, what: str, found: object) -> str:
        if not isinstance(found, str):
            raise self._failure(f"its {what}() returned a {type(found).__name__} and not text")
        return found

    def _failure(self, what: object) -> EngineFailedError:
        text = broke(self._driver, what)
        log.error("%s", text)
        return EngineFailedError(text, driver=self._driver, log_tail=self.log_tail())

    def _late(self, what: str) -> EngineTimeoutError:
        return EngineTimeoutError(broke(self._driver, what), driver=self._driver, log_tail=self.log_tail())

    def _give_up(self, what: str) -> None:
        log.error("%s", broke(self._driver, what))
        if not self._given_up.done():
            self._given_up.set_result(broke(self._driver, what))


class _Pump:
    """Reads a stream in one task from its first step to its last, so that a stream which ignores its end holds up
    nobody but itself; `on_refusal` is told of that."""

    def __init__(self, begin: Callable[[], Any], *, on_refusal: Callable[[], None]) -> None:
        self._begin = begin
        self._on_refusal = on_refusal
        self._arrived: asyncio.Queue[Any] = asyncio.Queue(1)
        self._work = self._run()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> _Pump:
        self._task = asyncio.create_task(self._work)
        return self

    async def __aexit__(self, *failed: object) -> None:
        if self._task is not None and not self._task.done() and not await let_go(self._task, self._work):
            self._on_refusal()

    async def next(self) -> Any:
        """A batch, Raised, or `_END`."""
        return await self._arrived.get()

    async def _run(self) -> None:
        outcome: Any = _END
        try:
            await self._pass_on()
        except asyncio.CancelledError as error:
            if (task := asyncio.current_task()) is not None and task.cancelling():
                raise
            outcome = Raised(error)
        except BaseException as error:  # SystemExit would end the loop
            outcome = Raised(error)
        await self._arrived.put(outcome)

    async def _pass_on(self) -> None:
        stream = self._begin()
        try:
            async for batch in stream:
                await self._arrived.put(batch)
        finally:
            close = getattr(stream, "aclose", None)
            if close is not None:
                await close()
