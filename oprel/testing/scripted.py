"""A driver and an engine that keep the contract by a script: no process, no model, any behaviour that a test needs.

The script is data; what happened is recorded (`ScriptedDriver.starts`, `.engines`, `ScriptedEngine.calls`), so that
a test can say what was asked of an engine and that nothing was left running.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Iterator, Mapping
from typing import Literal

import msgspec

from oprel.drivers import (
    ContextLengthError,
    Driver,
    DriverOptions,
    EngineFailedError,
    EngineStartError,
    EngineTimeoutError,
    EventStream,
    Health,
    UnsupportedError,
)
from oprel.drivers import Engine as BaseEngine
from oprel.scheduler.clock import Clock, SystemClock
from oprel.scheduler.waits import first_of
from oprel.schema import (
    ALL_SAMPLING,
    Availability,
    Capabilities,
    ChatRequest,
    CompletionRequest,
    Embeddings,
    EmbedRequest,
    Event,
    Finish,
    Hardware,
    LoadOptions,
    Model,
    Plan,
    Ranking,
    RerankRequest,
    Support,
    Timings,
    Usage,
    events,
)
from oprel.testing.script import Answer, GenerateRequest, Script, ending, vector

__all__ = ["Call", "Script", "ScriptedDriver", "ScriptedEngine"]


_CHAT = Capabilities(
    chat=True,
    complete=True,
    tools=True,
    thinking=True,
    json_schema=True,
    grammar=True,
    logprobs=True,
    tokenize=True,
    prefill=True,
    sampling=ALL_SAMPLING,
)
_EMBED = Capabilities(embed=True, tokenize=True)
_RANK = Capabilities(rerank=True, tokenize=True)


class Call:
    """One request that an engine got. `ended`: "" while it runs, then "finished", "closed" (by its reader) or
    "failed"; `tokens` counts what was sent."""

    def __init__(self, kind: str, request: GenerateRequest | EmbedRequest, started_at: float) -> None:
        self.kind = kind
        self.request = request
        self.started_at = started_at
        self.ended_at: float | None = None
        self.ended = ""
        self.tokens = 0

    def __repr__(self) -> str:
        return f"Call({self.kind!r}, tokens={self.tokens}, ended={self.ended!r})"


class ScriptedEngine(BaseEngine):
    """`calls` in order of arrival; `running` and `most_running` count requests; `is_stopped` after `stop`."""

    def __init__(self, plan: Plan, script: Script, *, clock: Clock, stall_timeout_s: float = 60.0) -> None:
        embedding = _RANK if "rank" in plan.argv else _EMBED
        base = script.capabilities or (embedding if plan.embedding else _CHAT)
        self.plan = plan
        self.script = script
        self.capabilities = msgspec.structs.replace(base, context_tokens=plan.context_tokens)
        self.calls: list[Call] = []
        self.running = 0
        self.most_running = 0
        self.is_stopped = False
        self._clock = clock
        self._stall_timeout_s = stall_timeout_s
        self._dead: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def chat(self, request: ChatRequest) -> EventStream:
        refuse = _refusal(request, self.capabilities, "chat", self.plan)
        return self._generate("chat", request, refuse)

    def complete(self, request: CompletionRequest) -> EventStream:
        refuse = _refusal(request, self.capabilities, "complete", self.plan)
        return self._generate("complete", request, refuse)

    async def embed(self, request: EmbedRequest) -> Embeddings:
        if not self.capabilities.embed:
            raise _unsupported("embed", self.plan)
        self._check_context(request)
        with self._recorded("embed", request) as call:
            await self._pause(self.script.embed_delay_s)
            vectors = tuple(vector(text, self.script.dimensions, request.normalize) for text in request.inputs)
            call.tokens = sum(_count(text) for text in request.inputs)
            return Embeddings(vectors, prompt_tokens=call.tokens)

    async def rerank(self, request: RerankRequest) -> Ranking:
        """By the share of the query's words that a document has."""
        if not self.capabilities.rerank:
            raise _unsupported("rerank", self.plan)
        query = set(request.query.split())
        scores = tuple(len(query & set(document.split())) / max(1, len(query)) for document in request.documents)
        return Ranking(scores, sum(_count(document) for document in request.documents))

    async def tokenize(self, text: str, *, add_special: bool = False) -> tuple[int, ...]:
        self._check_tokenize()
        return (*((256,) if add_special else ()), *text.encode())

    async def detokenize(self, tokens: tuple[int, ...]) -> str:
        self._check_tokenize()
        return bytes(token for token in tokens if token < 256).decode(errors="replace")

    async def render(self, request: ChatRequest) -> str:
        self._check_tokenize()
        return "".join(f"{message.role}: {message.text}\n" for message in request.messages)

    async def health(self) -> Health:
        if self._dead.done():
            return Health("dead", self._dead.result())
        return Health("busy" if self.running >= self.plan.slots else "ready")

    async def wait_dead(self) -> str:
        return await asyncio.shield(self._dead)

    async def stop(self) -> None:
        if self.script.stop_delay_s and not self._dead.done():
            await self._clock.sleep(self.script.stop_delay_s)
        self.is_stopped = True
        self.kill("stopped")

    def kill(self, reason: str = "the scripted engine was killed") -> None:
        """Ends the engine as a crash would: running requests fail, `wait_dead` returns."""
        if not self._dead.done():
            self._dead.set_result(reason)

    @property
    def is_dead(self) -> bool:
        return self._dead.done()

    def memory_bytes(self) -> int | None:
        return self.script.memory_bytes

    def log_tail(self) -> tuple[str, ...]:
        return (f"scripted engine for {self.plan.model}", *((self._dead.result(),) if self._dead.done() else ()))

    # -- one request

    async def _generate(self, kind: str, request: GenerateRequest, refused: UnsupportedError | None) -> EventStream:
        if refused is not None:
            raise refused
        self._check_context(request)
        with self._recorded(kind, request) as call:
            await self._pause(self.script.prompt_delay_s)
            if self.script.silent:
                await self._stall()
            async for batch in self._batches(request, call):
                yield batch

    async def _batches(self, request: GenerateRequest, call: Call) -> AsyncGenerator[tuple[Event, ...], None]:
        if self.script.warnings:
            yield self.script.warnings
        for thought in self.script.thinking:
            await self._step(call)
            yield (events.Thinking(thought),)
        answer = Answer(request, self.script)
        waiting: list[Event] = []
        for event in answer.events():
            await self._step(call)
            call.tokens += 1
            waiting.append(event)
            if len(waiting) >= self.script.batch:
                yield tuple(waiting)
                waiting.clear()
        finish = Finish((answer.reason,), self._usage(request, call), Timings(0.001, 0.001), answer.stop_sequence)
        for batch in ending((*waiting, *self.script.late_warnings), finish, self.script.broken):
            yield batch

    async def _step(self, call: Call) -> None:
        if self.script.dies_at is not None and call.tokens >= self.script.dies_at:
            self.kill(f"the scripted engine died at token {call.tokens}")
        if self.script.broken == "raises" and call.tokens >= 1:
            raise RuntimeError("the scripted engine raised what is not in the tree of errors")
        if self.script.token_delay_s or call.tokens % self.script.batch == 0:
            await self._pause(self.script.token_delay_s)

    async def _stall(self) -> None:
        await self._pause(self._stall_timeout_s)
        self.kill("the scripted engine was silent for too long")
        raise EngineTimeoutError(f"the engine sent nothing for {self._stall_timeout_s:g} s", driver=self.plan.driver)

    async def _pause(self, seconds: float) -> None:
        """Sleeps, or fails at once when the engine dies."""
        self._check_alive()
        if seconds <= 0:
            await asyncio.sleep(0)
        else:
            await first_of(self._clock.sleep(seconds), self.wait_dead())
        self._check_alive()

    def _check_alive(self) -> None:
        if self._dead.done():
            raise EngineFailedError(
                f"the engine of {self.plan.model!r} ended: {self._dead.result()}",
                driver=self.plan.driver,
                log_tail=self.log_tail(),
            )

    def _check_tokenize(self) -> None:
        if not self.capabilities.tokenize:
            raise _unsupported("tokenize", self.plan)

    def _check_context(self, request: GenerateRequest | EmbedRequest) -> None:
        if isinstance(request, EmbedRequest):
            words = max(map(_count, request.inputs), default=0)
        else:
            words = _prompt_tokens(request)
        if words > self.plan.context_tokens:
            raise ContextLengthError(
                f"the prompt has {words} tokens and the context holds {self.plan.context_tokens}: shorten the prompt",
                prompt_tokens=words,
                context_tokens=self.plan.context_tokens,
            )

    def _usage(self, request: GenerateRequest, call: Call) -> Usage:
        return self.script.usage or Usage(_prompt_tokens(request), call.tokens, self.script.cached_tokens)

    @contextlib.contextmanager
    def _recorded(self, kind: str, request: GenerateRequest | EmbedRequest) -> Iterator[Call]:
        call = Call(kind, request, self._clock.monotonic())
        self.calls.append(call)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        call_ended = "finished"
        try:
            yield call
        except (GeneratorExit, asyncio.CancelledError):
            call_ended = "closed"
            raise
        except BaseException:
            call_ended = "failed"
            raise
        finally:
            self.running -= 1
            call.ended = call_ended
            call.ended_at = self._clock.monotonic()


class ScriptedDriver(Driver):
    """Runs every model by one script, or each by its own (`scripts`, by model name).

    `starts` are the plans that were tried, in order; `cancelled_starts` those of them that were given up; `engines`
    those that came up; `planned` the (model, options) pairs that were planned.
    """

    name = "scripted"
    can = msgspec.structs.replace(_CHAT, embed=True)

    def __init__(
        self,
        script: Script | None = None,
        *,
        scripts: Mapping[str, Script] | None = None,
        clock: Clock | None = None,
        options: DriverOptions | None = None,
        formats: frozenset[str] = frozenset({"gguf"}),
    ) -> None:
        super().__init__(options or DriverOptions(run_dir=""))
        self.script = script or Script()
        self.scripts = dict(scripts or {})
        self.starts: list[Plan] = []
        self.cancelled_starts: list[Plan] = []
        self.engines: list[ScriptedEngine] = []
        self.planned: list[tuple[Model, LoadOptions]] = []
        self._clock = clock or SystemClock()
        self._formats = formats

    def script_of(self, model: str) -> Script:
        return self.scripts.get(model, self.script)

    @property
    def alive(self) -> list[ScriptedEngine]:
        """The engines that nobody stopped and that did not die."""
        return [engine for engine in self.engines if not engine.is_dead]

    def availability(self, hardware: Hardware) -> Availability:
        return Availability(True, "scripted: needs nothing")

    def capabilities(self, model: Model, hardware: Hardware) -> Capabilities:
        script = self.script_of(model.name)
        base = script.capabilities or (_EMBED if model.is_embedding else _CHAT)
        if model.pooling == "rank" and script.capabilities is None:
            base = _RANK
        return msgspec.structs.replace(base, context_tokens=model.context_tokens)

    def supports(self, model: Model) -> Support:
        if model.format not in self._formats:
            return Support(False, f"scripted runs {', '.join(sorted(self._formats))}, not {model.format}")
        return Support(True, f"scripted runs {model.format}")

    def plan(self, model: Model, options: LoadOptions, hardware: Hardware) -> Plan:
        support = self.supports(model)
        if not support.supported:
            raise UnsupportedError(support.reason, capability="format", model=model.name, driver=self.name)
        self.planned.append((model, options))
        script = self.script_of(model.name)
        ladder = (script.bytes_by_device or (("cpu", model.size_bytes),), *script.fallbacks)
        first, *rest = (self._plan(model, options, script, step) for step in ladder)
        return msgspec.structs.replace(first, fallbacks=tuple(rest))

    def _plan(self, model: Model, options: LoadOptions, script: Script, by_device: tuple[tuple[str, int], ...]) -> Plan:
        on_gpu = sum(size for device, size in by_device if device != "cpu")
        on_cpu = sum(size for device, size in by_device if device == "cpu")
        total = on_gpu + on_cpu
        layers = model.layers or 0
        context = min(options.context_tokens or script.context_tokens, model.context_tokens or script.context_tokens)
        slots = options.slots or script.slots
        return Plan(
            driver=self.name,
            engine="scripted",
            model=model.name,
            model_digest=model.digest,
            files=model.files,
            options=options,
            gpu_layers=round(layers * on_gpu / total) if total else 0,
            layers=model.layers,
            bytes_by_device=by_device,
            context_tokens=context,
            slots=slots,
            threads=options.threads or 1,
            argv=("scripted", "{socket}", *(("--pooling", "rank") if model.pooling == "rank" else ())),
            device="gpu+cpu" if on_gpu and on_cpu else "gpu" if on_gpu else "cpu",
            embedding=model.is_embedding,
            remote=model.remote,
            reasons=(
                ("context", f"{context} tokens, by the script"),
                ("slots", f"{slots}, by the script"),
                ("device", f"{on_gpu} of {total} bytes on GPUs, by the script"),
            ),
        )

    async def start(self, plan: Plan) -> ScriptedEngine:
        script = self.script_of(plan.model)
        attempt = sum(1 for earlier in self.starts if earlier.model == plan.model)
        self.starts.append(plan)
        try:
            await self._clock.sleep(script.start_delay_s)
        except asyncio.CancelledError:
            self.cancelled_starts.append(plan)
            raise
        if attempt < len(script.refusals):
            cause = script.refusals[attempt]
            raise EngineStartError(
                f"the scripted engine refused to start ({cause})", driver=self.name, log_tail=(cause,), cause=cause
            )
        engine = ScriptedEngine(plan, script, clock=self._clock, stall_timeout_s=self.options.stall_timeout_s)
        self.engines.append(engine)
        return engine


def _refusal(
    request: GenerateRequest, capabilities: Capabilities, need: Literal["chat", "complete"], plan: Plan
) -> UnsupportedError | None:
    """What `capabilities` denies of what `request` asks for, or None."""
    asked = {need: True, "logprobs": request.logprobs is not None}
    if isinstance(request, ChatRequest):
        asked["tools"] = bool(request.tools)
        asked["thinking"] = request.thinking is not None and request.thinking.enabled
        parts = {type(part).__name__ for message in request.messages for part in message.content}
        asked["vision"] = "ImagePart" in parts
        asked["audio"] = "AudioPart" in parts
    else:
        asked["infill"] = request.suffix is not None
        asked["vision"] = bool(request.images)
    format_name = type(request.format).__name__
    asked["json_schema"] = format_name in ("JsonObject", "JsonSchema")
    asked["grammar"] = format_name == "Grammar"
    for capability, is_asked in asked.items():
        if is_asked and not getattr(capabilities, capability):
            return _unsupported(capability, plan)
    return None


def _unsupported(capability: str, plan: Plan) -> UnsupportedError:
    return UnsupportedError(
        f"{plan.model!r} on driver {plan.driver!r} does not support {capability}",
        capability=capability,
        model=plan.model,
        driver=plan.driver,
    )


def _prompt_tokens(request: GenerateRequest) -> int:
    if isinstance(request, CompletionRequest):
        return _count(request.prompt)
    return sum(_count(message.text) for message in request.messages) + len(request.messages)


def _count(text: str | tuple[int, ...]) -> int:
    return max(1, len(text.split()) if isinstance(text, str) else len(text))
