"""The engine under this process: the same rooms as the server's, on an event loop in a thread of our own."""

from __future__ import annotations

import asyncio
import atexit
import queue
import threading
from collections.abc import Coroutine, Generator
from concurrent.futures import Future
from contextlib import aclosing
from typing import Any, TypeVar

from oprel.config import Settings
from oprel.dialects.services import Services
from oprel.errors import ModelNotFoundError, OprelError
from oprel.schema import ChatRequest, Message, Sampling, Text, TextPart, sampling, with_opening
from oprel.sdk.options import Config
from oprel.server.compose import compose
from oprel.server.lifetime import Lifetime
from oprel.sources import PullWish

__all__ = ["InProcess"]

T = TypeVar("T")

# Where neither the call nor the model says (decided once for SDK and command line).
_DEFAULTS = {"temperature": 0.7, "top_p": 0.9, "top_k": 40, "repeat_penalty": 1.1}


class _Loop:
    """An event loop in a daemon thread. Engines are started by this thread and die with it, at the latest when the
    process ends."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="oprel-in-process", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self.start(coroutine).result()

    def start(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class InProcess:
    """A scheduler with one model. Its calls block; they may come from several threads."""

    def __init__(self, model: str, settings: Settings, config: Config, *, wish: PullWish | None = None) -> None:
        self._model = model
        self._wish = wish
        self._load = config.as_load_options()
        self._sampling = config.as_sampling()
        self._loop = _Loop()
        self._services: Services = self._loop.run(_composed(settings))
        self._lifetime = Lifetime(self._services)
        self._is_closed = False
        self._loop.run(self._lifetime.__aenter__())
        atexit.register(self.close)

    def load(self) -> None:
        self._loop.run(self._loaded())

    def unload(self) -> None:
        self._loop.run(self._services.scheduler.unload(self._model))

    def chat(
        self, messages: list[dict[str, str]], *, max_tokens: int, temperature: float | None
    ) -> Generator[str, None, None]:
        own = Sampling(
            max_tokens=max_tokens,
            temperature=temperature if temperature is not None else self._sampling.temperature,
            top_p=self._sampling.top_p,
            top_k=self._sampling.top_k,
            repeat_penalty=self._sampling.repeat_penalty,
        )
        pieces: queue.SimpleQueue[str | BaseException | None] = queue.SimpleQueue()
        running = self._loop.start(self._answer(_messages(messages), own, pieces))
        try:
            while (piece := pieces.get()) is not None:
                if isinstance(piece, BaseException):
                    raise piece
                yield piece
        finally:
            running.cancel()

    def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        atexit.unregister(self.close)
        self._loop.run(self._lifetime.stop())
        self._loop.close()

    async def _loaded(self) -> None:
        scheduler = self._services.scheduler
        try:
            await asyncio.to_thread(self._services.catalog.find, self._model)
        except ModelNotFoundError:
            async for _ in self._services.puller.pull(self._model, wish=self._wish):
                pass
        # For ever: this process is the only one that uses it.
        async with scheduler.lease(self._model, need="load", load=self._load, keep_alive=float("inf")):
            pass

    async def _answer(
        self, messages: tuple[Message, ...], own: Sampling, pieces: queue.SimpleQueue[str | BaseException | None]
    ) -> None:
        try:
            await self._loaded()
            async with self._services.scheduler.lease(
                self._model, need="chat", load=self._load, keep_alive=float("inf")
            ) as lease:
                filled = sampling.filled(own, dialect={}, model=sampling.from_model(lease.model), defaults=_DEFAULTS)
                request = ChatRequest(messages=with_opening(lease.model, messages), sampling=filled)
                async with aclosing(lease.engine.chat(request)) as events:
                    async for batch in events:
                        for event in batch:
                            if isinstance(event, Text) and event.text:
                                pieces.put(event.text)
            pieces.put(None)
        except OprelError as error:
            pieces.put(error)
        except BaseException as error:
            pieces.put(error)
            raise


async def _composed(settings: Settings) -> Services:
    return compose(settings)


def _messages(plain: list[dict[str, str]]) -> tuple[Message, ...]:
    return tuple(Message(role=m["role"], content=(TextPart(m["content"]),)) for m in plain)  # type: ignore[arg-type]
