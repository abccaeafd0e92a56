"""The shared implementation of engines that are HTTP servers: llama-server, vLLM, an ExLlama host, a remote.

What a driver adds is its `Quirks`, and how it knows and ends the engine's process (`health`, `wait_dead`, `stop`,
`log_tail`, and the hooks `on_stall` and `describe_death`). `docs/architecture/hot-path.md` explains the way of a token.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing, suppress
from typing import TypeVar

import msgspec

from oprel.drivers.contract import Engine, EventStream
from oprel.drivers.forcing import calls_of, forced, is_forced, without_tools
from oprel.drivers.upstream.failures import Failures, garbage, quoted
from oprel.drivers.upstream.quirks import Quirks
from oprel.drivers.upstream.reading import ChatReader, NativeReader
from oprel.drivers.upstream.refusals import Refusals
from oprel.drivers.upstream.turns import MAX_TRUNCATIONS, TRUNCATED, shortened
from oprel.drivers.upstream.vectors import read_scores, read_vectors
from oprel.drivers.upstream.watch import LONGEST_S, Pulse, Stalled, TimeLimitReached, Watch, prompt_budget_s
from oprel.drivers.upstream.writing import RequestWriter
from oprel.errors import ContextLengthError, EngineFailedError, EngineTimeoutError, OprelError
from oprel.net import AnswerTimeout, CannotConnect, ConnectionCut, QuickClient, QuickError, QuickResponse, QuickStream
from oprel.schema import (
    Capabilities,
    ChatRequest,
    CompletionRequest,
    Embeddings,
    EmbedRequest,
    Event,
    Finish,
    Plan,
    Progress,
    Ranking,
    RerankRequest,
    Sampling,
    TextPart,
    Usage,
    events,
)

__all__ = ["HttpEngine"]

# A dead engine's connection breaks a moment before its end is known.
_DEATH_NOTICE_S = 1.0
_STALL_HOOK_S = 10.0
_DRAIN_S = 1.0
_SMALL_ANSWER_S = 30.0
_MAX_ERROR_BYTES = 256 * 1024

Reader = ChatReader | NativeReader
AnswerT = TypeVar("AnswerT")


class HttpEngine(Engine):
    """One running engine behind `client`. `stall_timeout_s` bounds the wait for the next token; before the first one
    the prompt's length adds to it. `failures` says what the engine's own words come to."""

    def __init__(
        self,
        *,
        plan: Plan,
        capabilities: Capabilities,
        client: QuickClient,
        quirks: Quirks,
        stall_timeout_s: float,
        failures: Failures | None = None,
    ) -> None:
        self.client = client
        self.stall_timeout_s = stall_timeout_s
        self.learn(plan, capabilities, quirks)
        self._failures = failures or Failures(plan.driver, plan.model)
        self._pulse = Pulse()
        self._media_marker: str | None = None
        self._is_stalled = False

    def learn(self, plan: Plan, capabilities: Capabilities, quirks: Quirks) -> None:
        """What the engine is and can, for all requests from now on."""
        self.plan = plan
        self.capabilities = capabilities
        self.quirks = quirks
        self._refusals = Refusals(capabilities, quirks, driver=plan.driver, model=plan.model)
        self._writer = RequestWriter(quirks, context_tokens=plan.context_tokens, can_think=capabilities.thinking)

    # Hooks

    async def on_stall(self) -> None:
        """The engine makes no progress: end its processes. Called once; does nothing where there are none."""

    def describe_death(self) -> str | None:
        """A sentence, if the engine is known to have ended."""
        return None

    # The contract

    def chat(self, request: ChatRequest) -> EventStream:
        answer = self._chat(request)
        return calls_of(answer, driver=self.plan.driver) if is_forced(request, self.capabilities) else answer

    async def _chat(self, request: ChatRequest) -> AsyncGenerator[tuple[Event, ...], None]:
        self._refusals.chat(request)
        if is_forced(request, self.capabilities):
            request = forced(request)
        elif not self.capabilities.tools:
            request = msgspec.structs.replace(request, messages=without_tools(request.messages))
        notice: tuple[Event, ...] = ()
        for attempt in range(MAX_TRUNCATIONS):
            has_begun = False
            try:
                reader = self._chat_reader(request)
                body = await self._chat_body(request)
                path = self.quirks.chat_path
                async with aclosing(self._answer(path, body, reader, request.sampling)) as answer:
                    async for batch in answer:
                        has_begun = True
                        yield notice + batch if notice else batch
                        notice = ()
                return
            except ContextLengthError as error:
                shorter = None if has_begun or not request.truncate else shortened(request, error)
                if shorter is None or attempt == MAX_TRUNCATIONS - 1:
                    raise
                request, notice = shorter, (TRUNCATED,)

    async def complete(self, request: CompletionRequest) -> AsyncGenerator[tuple[Event, ...], None]:
        self._refusals.complete(request)
        quirks = self.quirks
        path = quirks.completion_path
        if request.suffix is not None and quirks.infill_path is not None:
            path = quirks.infill_path
        marker = await self._find_media_marker() if request.images else None
        body = self._writer.complete(request, media_marker=marker)
        reader: Reader
        if quirks.completion_shape == "native":
            reader = NativeReader(self._failures, keep_top=request.logprobs or 0)
        else:
            reader = self._chat_reader(request)
        async with aclosing(self._answer(path, body, reader, request.sampling)) as answer:
            async for batch in answer:
                yield batch

    async def embed(self, request: EmbedRequest) -> Embeddings:
        self._refusals.embed(request)
        vectors: list[tuple[float, ...]] = []
        tokens = 0
        size = self.quirks.embedding_batch
        for start in range(0, len(request.inputs), size):
            inputs = request.inputs[start : start + size]
            body = self._writer.embed(inputs, normalize=request.normalize)
            budget_s = prompt_budget_s(len(body), self.plan.context_tokens * len(inputs))
            timeout_s = min(self.stall_timeout_s + budget_s, LONGEST_S)
            answer = await self._post(self.quirks.embedding_path, body, timeout_s=timeout_s, is_work=True)
            some, used = read_vectors(answer.body, count=len(inputs), driver=self.plan.driver)
            vectors += some
            tokens += used
        return Embeddings(tuple(vectors), tokens)

    async def rerank(self, request: RerankRequest) -> Ranking:
        path = self._refusals.rerank(request, self.quirks.rerank_path)
        scores: list[float] = []
        tokens = 0
        size = self.quirks.embedding_batch
        for start in range(0, len(request.documents), size):
            documents = request.documents[start : start + size]
            body = self._writer.rerank(request.query, documents)
            budget_s = prompt_budget_s(len(body), self.plan.context_tokens * len(documents))
            timeout_s = min(self.stall_timeout_s + budget_s, LONGEST_S)
            answer = await self._post(path, body, timeout_s=timeout_s, is_work=True)
            some, used = read_scores(answer.body, count=len(documents), driver=self.plan.driver)
            scores += some
            tokens += used
        return Ranking(tuple(scores), tokens)

    async def tokenize(self, text: str, *, add_special: bool = False) -> tuple[int, ...]:
        path = self._refusals.tokenize(self.quirks.tokenize_path)
        body = self._writer.tokenize(text, add_special=add_special)
        return self._decoded(await self._post(path, body), _Tokens).tokens

    async def detokenize(self, tokens: tuple[int, ...]) -> str:
        path = self._refusals.tokenize(self.quirks.detokenize_path)
        return self._decoded(await self._post(path, self._writer.detokenize(tokens)), _Content).content

    async def render(self, request: ChatRequest) -> str:
        path = self._refusals.tokenize(self.quirks.render_path)
        self._refusals.chat(msgspec.structs.replace(request, sampling=Sampling()))  # nothing is drawn
        return self._decoded(await self._post(path, self._writer.render(request)), _Prompt).prompt

    # One answer

    def _chat_reader(self, request: ChatRequest | CompletionRequest) -> ChatReader:
        return ChatReader(self._failures, keep_top=request.logprobs or 0, is_done_enough=self.quirks.is_done_enough)

    async def _chat_body(self, request: ChatRequest) -> bytes:
        if _has_media(request):  # tens of megabytes of base64: not on the loop
            return await asyncio.to_thread(self._writer.chat, request)
        return self._writer.chat(request)

    async def _answer(
        self, path: str, body: bytes, reader: Reader, sampling: Sampling
    ) -> AsyncGenerator[tuple[Event, ...], None]:
        """The events of one streamed answer. Left early, by whatever way, it closes the connection at once."""
        budget_s = prompt_budget_s(len(body), self.plan.context_tokens)
        watch = Watch(self._pulse, stall_timeout_s=self.stall_timeout_s, prompt_budget_s=budget_s)
        try:
            async with AsyncExitStack() as stack:
                stream = await self._opened(stack, watch, path, body)
                stack.callback(watch.close)  # before the connection can serve another request
                while not reader.is_finished:
                    batch: list[Event] = []
                    failure = _read_into(batch, reader, await stream.read())
                    if batch:
                        self._note_progress(watch, reader, sampling)
                        if sampling.max_tokens == 0:
                            batch = _muted(batch)
                    if batch:
                        watch.pause()
                        yield tuple(batch)
                        watch.resume()
                    if failure is not None:
                        raise failure
                await _drain(stream)
        except TimeLimitReached:
            yield (_time_limit(sampling), reader.cut_short())
        except Stalled as stalled:
            raise await self._stalled(stalled.seconds, has_begun=reader.has_begun) from None
        except QuickError as error:
            raise await self._gone(error) from error
        finally:
            watch.close()

    async def _opened(self, stack: AsyncExitStack, watch: Watch, path: str, body: bytes) -> QuickStream:
        """The stream, its head checked. Waits for the head as long as the engine makes progress for anybody."""
        try:
            async with asyncio.timeout(None) as deadline:
                watch.stop = lambda _: deadline.reschedule(0)  # the moment has passed: now
                stream = await stack.enter_async_context(self.client.stream("POST", path, body, timeout_s=None))
        except TimeoutError:
            raise Stalled(watch.limit_s) from None
        watch.stop = stream.interrupt
        kind = stream.headers.get("content-type", "")
        if stream.status == 200 and kind.startswith("text/event-stream"):
            return stream
        body_told = await stream.read_all(limit_bytes=_MAX_ERROR_BYTES)
        raise self._failures.answered(stream.status, body_told, kind, stream.headers.get("retry-after", ""))

    def _note_progress(self, watch: Watch, reader: Reader, sampling: Sampling) -> None:
        watch.progress()
        if watch.has_begun:
            return
        if reader.has_begun:
            watch.begin(sampling.time_limit_s)
        elif reader.prompt_left is not None:
            watch.prompt_left(reader.prompt_left)

    # Failures

    async def _stalled(self, seconds: float, *, has_begun: bool) -> EngineTimeoutError:
        doing = "while it generated" if has_begun else "before the first token"
        if not self._is_stalled:
            self._is_stalled = True
            with suppress(TimeoutError):
                async with asyncio.timeout(_STALL_HOOK_S):
                    await self.on_stall()
        return EngineTimeoutError(
            f"{self._failures.named} made no progress for {seconds:.0f} s {doing}, so it was given up; try again",
            driver=self.plan.driver,
            log_tail=self.log_tail(),
        )

    async def _gone(self, error: QuickError) -> EngineFailedError:
        """The error for a connection that failed: with the reason, when the engine itself is what ended."""
        death = self.describe_death()
        if death is None and isinstance(error, ConnectionCut | CannotConnect):
            try:
                async with asyncio.timeout(_DEATH_NOTICE_S):
                    death = await self.wait_dead()
            except TimeoutError:
                death = None
        # Where it listens is nobody's business but the log's.
        seen = "it takes no connections" if isinstance(error, CannotConnect) else str(error)
        text = f"{self.plan.driver} failed: {death or seen}"
        return EngineFailedError(text, driver=self.plan.driver, log_tail=self.log_tail())

    # Small answers

    async def _post(
        self, path: str, body: bytes, *, timeout_s: float = _SMALL_ANSWER_S, is_work: bool = False
    ) -> QuickResponse:
        """`is_work`: the model itself is asked, so that silence means a stalled engine."""
        began = asyncio.get_running_loop().time()
        try:
            answer = await self.client.request("POST", path, body, timeout_s=timeout_s)
        except AnswerTimeout as error:
            if is_work and self._pulse.last < began:
                raise await self._stalled(timeout_s, has_begun=False) from None
            raise EngineTimeoutError(f"{self._failures.named}: {error}; try again", driver=self.plan.driver) from error
        except QuickError as error:
            raise await self._gone(error) from error
        if answer.status != 200:
            raise self._refused(answer)
        if is_work:
            self._pulse.beat()
        return answer

    def _refused(self, answer: QuickResponse) -> OprelError:
        headers = answer.headers
        kind, retry_after = headers.get("content-type", ""), headers.get("retry-after", "")
        return self._failures.answered(answer.status, answer.body, kind, retry_after)

    def _decoded(self, answer: QuickResponse, kind: type[AnswerT]) -> AnswerT:
        try:
            return msgspec.json.decode(answer.body, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise garbage(self.plan.driver, quoted(answer.body), f"not {kind.__name__}") from None

    async def _find_media_marker(self) -> str:
        """What stands for an image in a raw prompt; llama-server draws it at each start."""
        if self._media_marker is None and self.quirks.props_path is not None:
            try:
                answer = await self.client.request("GET", self.quirks.props_path, timeout_s=_SMALL_ANSWER_S)
            except QuickError as error:
                raise await self._gone(error) from error
            if answer.status != 200:
                raise self._refused(answer)
            self._media_marker = self._decoded(answer, _Props).media_marker
        return self._media_marker or "<__media__>"


def _read_into(batch: list[Event], reader: Reader, data: bytes) -> OprelError | None:
    """What arrived, read into events (b"" is the end). A failure comes back, since what was read before it counts."""
    try:
        if data:
            reader.feed(data, batch)
        else:
            reader.end(batch)
    except OprelError as failure:
        return failure
    return None


async def _drain(stream: QuickStream) -> None:
    """Takes the end of a body whose events are all there, so that the connection can be used again."""
    with suppress(TimeoutError, QuickError):
        async with asyncio.timeout(_DRAIN_S):
            while await stream.read():
                pass


def _muted(batch: list[Event]) -> list[Event]:
    """For `max_tokens` 0, where engines make one token all the same: nothing but the end."""
    kept: list[Event] = []
    for event in batch:
        if isinstance(event, Finish):
            usage = Usage(event.usage.prompt, 0, event.usage.cached)
            kept.append(Finish(("length",), usage, event.timings))
        elif isinstance(event, Progress | events.Warning):
            kept.append(event)
    return kept


def _time_limit(sampling: Sampling) -> events.Warning:
    limit = f"{sampling.time_limit_s:g} s" if sampling.time_limit_s is not None else "its time"
    return events.Warning("time_limit", f"the answer was ended after {limit}, the limit for one without max_tokens")


def _has_media(request: ChatRequest) -> bool:
    return any(not isinstance(part, TextPart) for message in request.messages for part in message.content)


class _Tokens(msgspec.Struct):
    tokens: tuple[int, ...]


class _Content(msgspec.Struct):
    content: str


class _Prompt(msgspec.Struct):
    prompt: str


class _Props(msgspec.Struct):
    media_marker: str = ""
