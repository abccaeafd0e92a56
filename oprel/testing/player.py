"""Engines that play a cassette: the same answers, with their timing or as quick as possible, and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import msgspec

from oprel.drivers import Driver, DriverOptions, Engine, EngineFailedError, EventStream, Health, UnsupportedError
from oprel.scheduler.clock import Clock, SystemClock
from oprel.scheduler.waits import first_of
from oprel.schema import (
    Availability,
    Capabilities,
    ChatRequest,
    CompletionRequest,
    Embeddings,
    EmbedRequest,
    Event,
    Hardware,
    LoadOptions,
    Model,
    Plan,
    Support,
)
from oprel.testing.cassette import Cassette, CassetteError, Exchange, Kind, asked, error_of

__all__ = ["PlayingDriver", "PlayingEngine"]


class PlayingDriver(Driver):
    """Runs the models of one cassette. `pace`: 1 as it was recorded, 0 at once, 0.5 in half the time."""

    name = "cassette"

    def __init__(self, cassette: Cassette, *, pace: float = 0.0, clock: Clock | None = None) -> None:
        super().__init__(DriverOptions(run_dir=""))
        self._cassette = cassette
        self._pace = pace
        self._clock = clock or SystemClock()

    def availability(self, hardware: Hardware) -> Availability:
        return Availability(usable=True, reason=f"plays {self._cassette!r}")

    def supports(self, model: Model) -> Support:
        is_there = model.name in self._cassette.models
        return Support(supported=is_there, reason=f"it is {'' if is_there else 'not '}on {self._cassette.name}")

    def capabilities(self, model: Model, hardware: Hardware) -> Capabilities:
        recorded = self._cassette.models.get(model.name)
        return recorded.capabilities if recorded is not None else Capabilities()

    def plan(self, model: Model, options: LoadOptions, hardware: Hardware) -> Plan:
        recorded = self._cassette.models.get(model.name)
        if recorded is None:
            text = f"{model.name!r} is not on the cassette {self._cassette.name}"
            raise UnsupportedError(text, capability="format", model=model.name, driver=self.name)
        return msgspec.structs.replace(
            recorded.plan,
            driver=self.name,
            engine=f"{recorded.plan.engine} (recorded)",
            options=options,
            bytes_by_device=(("cpu", 0),),
        )

    async def start(self, plan: Plan) -> Engine:
        recorded = self._cassette.models[plan.model]
        return PlayingEngine(plan, recorded.capabilities, self._cassette, pace=self._pace, clock=self._clock)


class PlayingEngine(Engine):
    def __init__(
        self, plan: Plan, capabilities: Capabilities, cassette: Cassette, *, pace: float, clock: Clock
    ) -> None:
        self.plan = plan
        self.capabilities = capabilities
        self._cassette = cassette
        self._pace = pace
        self._clock = clock
        self._ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def chat(self, request: ChatRequest) -> EventStream:
        return self._stream("chat", request)

    def complete(self, request: CompletionRequest) -> EventStream:
        return self._stream("complete", request)

    async def embed(self, request: EmbedRequest) -> Embeddings:
        return msgspec.convert(await self._value("embed", request), Embeddings)

    async def tokenize(self, text: str, *, add_special: bool = False) -> tuple[int, ...]:
        return tuple(await self._value("tokenize", {"text": text, "add_special": add_special}))

    async def detokenize(self, tokens: tuple[int, ...]) -> str:
        return str(await self._value("detokenize", {"tokens": tokens}))

    async def render(self, request: ChatRequest) -> str:
        return str(await self._value("render", request))

    async def health(self) -> Health:
        return Health("dead", self._ended.result()) if self._ended.done() else Health("ready")

    async def wait_dead(self) -> str:
        return await asyncio.shield(self._ended)

    async def stop(self) -> None:
        if not self._ended.done():
            self._ended.set_result("stopped")

    # -- inside

    async def _stream(
        self, kind: Kind, request: ChatRequest | CompletionRequest
    ) -> AsyncGenerator[tuple[Event, ...], None]:
        began = self._clock.monotonic()
        exchange = self._found(kind, request)
        for at_ms, batch in exchange.answer or ():
            await self._wait(began, at_ms)
            yield batch
        await self._end(exchange, began)
        if exchange.is_cut:
            raise CassetteError(f"the recording of this {kind} ends here: its reader left")

    async def _value(self, kind: Kind, request: Any) -> Any:
        began = self._clock.monotonic()
        exchange = self._found(kind, request)
        await self._wait(began, exchange.took)
        await self._end(exchange, began)
        return exchange.value

    def _found(self, kind: Kind, request: Any) -> Exchange:
        self._check_alive()
        return self._cassette.play(self.plan.model, kind, asked(request))

    async def _end(self, exchange: Exchange, began: float) -> None:
        if exchange.error is not None:
            await self._wait(began, exchange.took)
            raise error_of(exchange.error)

    async def _wait(self, began: float, at_ms: float) -> None:
        left = began + at_ms / 1000 * self._pace - self._clock.monotonic()
        if self._pace <= 0 or left <= 0:
            await asyncio.sleep(0)
        else:
            await first_of(self._clock.sleep(left), self.wait_dead())
        self._check_alive()

    def _check_alive(self) -> None:
        if self._ended.done():
            raise EngineFailedError(f"the engine of {self.plan.model!r} ended: stopped", driver=self.plan.driver)
