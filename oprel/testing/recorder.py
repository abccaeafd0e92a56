"""Engines that are recorded: a driver around another one, which notes on a cassette what passes."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

import msgspec

from oprel.drivers import Driver, Engine, EventStream, Health
from oprel.errors import OprelError
from oprel.scheduler.owner import Registry
from oprel.schema import (
    Availability,
    Capabilities,
    ChatRequest,
    CompletionRequest,
    Embeddings,
    EmbedRequest,
    EngineProbe,
    Event,
    Hardware,
    LoadOptions,
    Model,
    Plan,
    Support,
)
from oprel.testing.cassette import Cassette, Exchange, Kind, RecordedModel, asked, recorded_error, scrubbed

__all__ = ["RecordingDriver", "RecordingEngine", "RecordingRegistry"]

T = TypeVar("T")


class RecordingRegistry:
    """A registry whose drivers are all recorded."""

    def __init__(self, registry: Registry, cassette: Cassette) -> None:
        self._registry = registry
        self._cassette = cassette

    def hardware(self) -> Hardware:
        return self._registry.hardware()

    def choose(self, model: Model, hardware: Hardware, wanted: str = "auto") -> tuple[Driver, str]:
        driver, reason = self._registry.choose(model, hardware, wanted)
        return RecordingDriver(driver, self._cassette), reason

    def others(self, model: Model, hardware: Hardware, chosen: str | None) -> tuple[tuple[str, str], ...]:
        return self._registry.others(model, hardware, chosen)


class RecordingDriver(Driver):
    """`inner` does all the work."""

    def __init__(self, inner: Driver, cassette: Cassette) -> None:
        super().__init__(inner.options)
        self.name = inner.name  # type: ignore[misc]  # each instance wraps another driver
        self.can = inner.can  # type: ignore[misc]
        self._inner = inner
        self._cassette = cassette
        self._models: dict[str, Model] = {}
        cassette.driver = inner.name

    def probe(self) -> tuple[EngineProbe, ...]:
        return self._inner.probe()

    def availability(self, hardware: Hardware) -> Availability:
        return self._inner.availability(hardware)

    def supports(self, model: Model) -> Support:
        return self._inner.supports(model)

    def capabilities(self, model: Model, hardware: Hardware) -> Capabilities:
        return self._inner.capabilities(model, hardware)

    def plan(self, model: Model, options: LoadOptions, hardware: Hardware) -> Plan:
        self._models[model.digest] = model
        return self._inner.plan(model, options, hardware)

    async def start(self, plan: Plan) -> Engine:
        engine = await self._inner.start(plan)
        model = self._models[plan.model_digest]
        self._cassette.models[model.name] = RecordedModel(_bare(model), _bare_plan(engine.plan), engine.capabilities)
        return RecordingEngine(engine, self._cassette)


class RecordingEngine(Engine):
    """An exchange is on the cassette from the moment that it is asked, and grows."""

    def __init__(self, inner: Engine, cassette: Cassette) -> None:
        self.plan = inner.plan
        self.capabilities = inner.capabilities
        self._inner = inner
        self._cassette = cassette

    def chat(self, request: ChatRequest) -> EventStream:
        return self._stream("chat", request, lambda: self._inner.chat(request))

    def complete(self, request: CompletionRequest) -> EventStream:
        return self._stream("complete", request, lambda: self._inner.complete(request))

    async def embed(self, request: EmbedRequest) -> Embeddings:
        return await self._value("embed", asked(request), self._inner.embed(request))

    async def tokenize(self, text: str, *, add_special: bool = False) -> tuple[int, ...]:
        request = asked({"text": text, "add_special": add_special})
        return await self._value("tokenize", request, self._inner.tokenize(text, add_special=add_special))

    async def detokenize(self, tokens: tuple[int, ...]) -> str:
        return await self._value("detokenize", asked({"tokens": tokens}), self._inner.detokenize(tokens))

    async def render(self, request: ChatRequest) -> str:
        return await self._value("render", asked(request), self._inner.render(request))

    async def health(self) -> Health:
        return await self._inner.health()

    async def wait_dead(self) -> str:
        return await self._inner.wait_dead()

    async def stop(self) -> None:
        await self._inner.stop()

    def log_tail(self) -> tuple[str, ...]:
        return self._inner.log_tail()

    def memory_bytes(self) -> int | None:
        return self._inner.memory_bytes()

    # -- inside

    async def _stream(
        self, kind: Kind, request: ChatRequest | CompletionRequest, begin: Callable[[], EventStream]
    ) -> AsyncGenerator[tuple[Event, ...], None]:
        answer: list[tuple[float, tuple[Event, ...]]] = []
        exchange = self._begun(kind, asked(request))
        exchange.answer, exchange.is_cut = answer, True
        began = time.perf_counter()
        try:
            async with aclosing(begin()) as stream:
                async for batch in stream:
                    answer.append((_ms(began), batch))
                    yield batch
            exchange.is_cut = False
        except OprelError as error:
            exchange.is_cut = False
            exchange.error, exchange.took = recorded_error(error), _ms(began)
            raise

    async def _value(self, kind: Kind, request: Any, work: Coroutine[Any, Any, T]) -> T:
        exchange = self._begun(kind, request)
        began = time.perf_counter()
        try:
            found = await work
        except OprelError as error:
            exchange.error, exchange.took = recorded_error(error), _ms(began)
            raise
        exchange.value, exchange.took = msgspec.to_builtins(found), _ms(began)
        return found

    def _begun(self, kind: Kind, request: Any) -> Exchange:
        exchange = Exchange(engine=self.plan.model, kind=kind, request=request)
        self._cassette.exchanges.append(exchange)
        return exchange


def _bare(model: Model) -> Model:
    """What says something about the model, and nothing about the machine. Licences are long, and elsewhere."""
    files = tuple(msgspec.structs.replace(file, path="") for file in model.files)
    return msgspec.structs.replace(model, files=files, licenses=(), modified_at=0.0)


def _bare_plan(plan: Plan) -> Plan:
    files = tuple(msgspec.structs.replace(file, path="") for file in plan.files)
    reasons = tuple((subject, scrubbed(text)) for subject, text in plan.reasons)
    return msgspec.structs.replace(plan, files=files, reasons=reasons, argv=(), environment=(), fallbacks=())


def _ms(began: float) -> float:
    return round((time.perf_counter() - began) * 1000, 1)
