"""A third party's engine has forced calls and rankings too, and is held to what it declares."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from oprel.drivers import DriverOptions
from oprel.drivers.checked.engine import CheckedEngine
from oprel.drivers.checked.processes import Claim
from oprel.errors import EngineFailedError, UnsupportedError
from oprel.schema import (
    ALL_SAMPLING,
    Capabilities,
    ChatRequest,
    Finish,
    Hardware,
    JsonSchema,
    LoadOptions,
    Message,
    Ranking,
    RerankRequest,
    TextPart,
    Tool,
    ToolCallDelta,
)
from oprel.testing import Script, ScriptedDriver, ScriptedEngine, scripted_model

ASKED = ChatRequest((Message("user", (TextPart("hi"),)),), tools=(Tool("clock"),), tool_choice="required")


def run(script: Script, tmp_path: Path, test: Callable[[CheckedEngine, ScriptedEngine], Awaitable[Any]]) -> Any:
    async def go() -> Any:
        driver = ScriptedDriver(script)
        hardware = Hardware("Linux", "x86_64", 1, 1, 1 << 30, 1 << 30)
        plan = driver.plan(scripted_model(), LoadOptions(), hardware)
        inner = await driver.start(plan)
        assert isinstance(inner, ScriptedEngine)
        options = DriverOptions(run_dir=str(tmp_path))
        claim = Claim({}, {}, str(tmp_path))
        return await test(CheckedEngine(inner, driver="theirs", plan=plan, options=options, claim=claim), inner)

    return asyncio.run(go())


def test_a_call_is_forced_from_an_engine_that_knows_json_only(tmp_path: Path) -> None:
    script = Script(
        text=('{"name": "clo', 'ck", "arguments": {', "}}"),
        capabilities=Capabilities(chat=True, json_schema=True, sampling=ALL_SAMPLING),
    )

    async def test(engine: CheckedEngine, inner: ScriptedEngine) -> None:
        found = [event async for batch in engine.chat(ASKED) for event in batch]
        calls = [event for event in found if isinstance(event, ToolCallDelta)]
        assert calls[0].name == "clock" and "".join(call.arguments for call in calls) == "{}"
        assert isinstance(found[-1], Finish) and found[-1].reasons == ("tool_calls",)
        asked = inner.calls[0].request
        assert isinstance(asked, ChatRequest) and isinstance(asked.format, JsonSchema) and not asked.tools

    run(script, tmp_path, test)


def test_a_call_that_may_come_or_not_is_still_refused(tmp_path: Path) -> None:
    async def test(engine: CheckedEngine, inner: ScriptedEngine) -> None:
        with pytest.raises(UnsupportedError):
            async for _ in engine.chat(msgspec.structs.replace(ASKED, tool_choice="auto")):
                pass
        assert inner.calls == []

    run(Script(capabilities=Capabilities(chat=True, json_schema=True)), tmp_path, test)


def test_rankings_are_passed_on_and_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = RerankRequest("a b", ("a", "b a", "c"))

    async def short(self: ScriptedEngine, request: RerankRequest) -> Ranking:
        return Ranking((1.0,), 1)

    async def test(engine: CheckedEngine, inner: ScriptedEngine) -> None:
        assert (await engine.rerank(asked)).scores == (0.5, 1.0, 0.0)
        monkeypatch.setattr(ScriptedEngine, "rerank", short)
        with pytest.raises(EngineFailedError, match="rerank"):
            await engine.rerank(asked)

    run(Script(capabilities=Capabilities(rerank=True)), tmp_path, test)


def test_an_engine_that_ranks_nothing_is_not_asked(tmp_path: Path) -> None:
    async def test(engine: CheckedEngine, inner: ScriptedEngine) -> None:
        with pytest.raises(UnsupportedError):
            await engine.rerank(RerankRequest("a", ("b",)))

    run(Script(), tmp_path, test)
