"""pydantic-ai, unchanged, against a real server and a real engine: agents with typed answers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Literal

import pytest
from openai import AsyncOpenAI
from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput, ToolOutput
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.settings import ModelSettings
from support.models import CHAT_MODEL
from support.servers import TEST_DRIVER

Ask = Callable[[OpenAIChatModel], Awaitable[Any]]
SURE = ModelSettings(temperature=0, max_tokens=32)
needs_tools = pytest.mark.skipif(TEST_DRIVER == "openai", reason="the remote is declared without tools")


class City(BaseModel):
    """A city."""

    name: Literal["Rome", "Oslo"]


@pytest.fixture
def runs(base_url: str) -> Callable[[Ask], Any]:
    """Runs `ask(model)` with a model whose client is closed in the loop that it served."""

    def run(ask: Ask) -> Any:
        async def go() -> Any:
            async with AsyncOpenAI(base_url=base_url, api_key="unused", max_retries=0, timeout=120) as client:
                return await ask(OpenAIChatModel(CHAT_MODEL, provider=OpenAIProvider(openai_client=client)))

        return asyncio.run(go())

    return run


@needs_tools
def test_a_typed_answer_by_a_tool(runs: Callable[[Ask], Any]) -> None:
    async def ask(model: OpenAIChatModel) -> City:
        agent = Agent(model, output_type=ToolOutput(City), retries=0, model_settings=SURE)
        return (await agent.run("The capital of Italy?")).output

    assert isinstance(runs(ask), City)


def test_a_typed_answer_by_a_schema(runs: Callable[[Ask], Any]) -> None:
    async def ask(model: OpenAIChatModel) -> City:
        agent = Agent(model, output_type=NativeOutput(City), retries=0, model_settings=SURE)
        return (await agent.run("The capital of Italy?")).output

    assert isinstance(runs(ask), City)


def test_streamed_text(runs: Callable[[Ask], Any]) -> None:
    async def ask(model: OpenAIChatModel) -> list[str]:
        async with Agent(model, model_settings=SURE).run_stream("What is the capital of France?") as result:
            return [piece async for piece in result.stream_text(delta=True, debounce_by=None)]

    pieces = runs(ask)
    assert len(pieces) > 1
    assert "".join(pieces).strip()
