"""An HttpEngine for tests: no process behind it, only the stand-in upstream."""

from __future__ import annotations

import asyncio

import msgspec

from oprel.drivers import Health
from oprel.drivers.upstream import LLAMA_SERVER, HttpEngine, Quirks
from oprel.net import QuickClient
from oprel.schema import (
    ALL_SAMPLING,
    Capabilities,
    ChatRequest,
    Event,
    LoadOptions,
    Message,
    Plan,
    Sampling,
    TextPart,
)

__all__ = ["EVERYTHING", "FakeEngine", "ask", "collect", "make_engine"]

EVERYTHING = Capabilities(
    chat=True,
    complete=True,
    embed=True,
    vision=True,
    audio=True,
    tools=True,
    thinking=True,
    json_schema=True,
    grammar=True,
    logprobs=True,
    infill=True,
    tokenize=True,
    sampling=ALL_SAMPLING,
)


class FakeEngine(HttpEngine):
    """`death` is what `wait_dead` answers, once it's set; `stalls` counts the hook's calls."""

    death: str | None = None
    stalls = 0

    async def on_stall(self) -> None:
        self.stalls += 1

    def describe_death(self) -> str | None:
        return self.death

    async def health(self) -> Health:
        return Health("ready")

    async def wait_dead(self) -> str:
        while self.death is None:  # noqa: ASYNC110 - tests set it from outside the loop's knowledge
            await asyncio.sleep(0.01)
        return self.death

    async def stop(self) -> None:
        await self.client.aclose()

    def log_tail(self) -> tuple[str, ...]:
        return ("the last line",)


def make_engine(
    address: str,
    *,
    capabilities: Capabilities = EVERYTHING,
    quirks: Quirks = LLAMA_SERVER,
    stall_timeout_s: float = 20.0,
    context_tokens: int = 64,
) -> FakeEngine:
    plan = Plan(
        driver="llama_cpp",
        engine="test",
        model="m:1",
        model_digest="0" * 64,
        files=(),
        options=LoadOptions(),
        gpu_layers=0,
        layers=None,
        bytes_by_device=(),
        context_tokens=context_tokens,
        slots=2,
        threads=1,
        argv=(),
    )
    return FakeEngine(
        plan=plan,
        capabilities=msgspec.structs.replace(capabilities, context_tokens=context_tokens),
        client=QuickClient(address),
        quirks=quirks,
        stall_timeout_s=stall_timeout_s,
    )


def ask(text: str = "hi", **sampling: object) -> ChatRequest:
    return ChatRequest((Message("user", (TextPart(text),)),), Sampling(**sampling))  # type: ignore[arg-type]


async def collect(stream: object) -> list[Event]:
    """All events, flat; no batch may be empty."""
    found: list[Event] = []
    async for batch in stream:  # type: ignore[attr-defined]
        assert isinstance(batch, tuple)
        assert batch
        found += batch
    return found
