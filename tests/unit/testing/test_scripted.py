"""The scripted engine does what its script says, and the clock what the test says."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from contextlib import aclosing
from typing import Any

import pytest

import oprel.testing
from oprel.drivers import DriverOptions
from oprel.drivers.registry import Registry
from oprel.errors import (
    DriverUnavailableError,
    EngineFailedError,
    EngineStartError,
    EngineTimeoutError,
    InvalidNameError,
    ModelNotFoundError,
)
from oprel.schema import (
    ChatRequest,
    EmbedRequest,
    Finish,
    LoadOptions,
    Message,
    Sampling,
    Text,
    TextPart,
    ToolCall,
    ToolCallDelta,
    events,
)
from oprel.testing import (
    Call,
    FakeClock,
    Script,
    ScriptedCatalog,
    ScriptedDriver,
    ScriptedEngine,
    ScriptedRegistry,
    eventually,
    scripted_model,
)
from oprel.testing.subject import Answer, ask, chat_request, completion_request

MODEL = scripted_model("tiny:latest")


async def started(script: Script, clock: FakeClock | None = None, **options: Any) -> ScriptedEngine:
    driver = ScriptedDriver(script, clock=clock, options=DriverOptions(run_dir="", **options))
    return await driver.start(driver.plan(MODEL, LoadOptions(), ScriptedRegistry(driver).hardware()))


def answer(script: Script, request: ChatRequest | None = None) -> Answer:
    async def main() -> Answer:
        engine = await started(script)
        return await ask(engine.chat(request or chat_request(max_tokens=1000)))

    return asyncio.run(main())


def test_the_text_is_the_scripts() -> None:
    assert answer(Script(text=("a", "b"))).text == "ab"


def test_the_text_may_depend_on_the_request() -> None:
    script = Script(text=lambda request: request.messages[0].text.upper().split())
    assert answer(script, chat_request("so it is")).text == "SOITIS"


def test_thinking_comes_first_and_tool_calls_last() -> None:
    script = Script(thinking=("hm",), text=("well",), tool_calls=(ToolCall("look", '{"at": 1}'),))
    found = answer(script)
    kinds = [type(event) for event in found.events]
    assert kinds == [events.Thinking, Text, ToolCallDelta, ToolCallDelta, Finish]
    assert found.finish.reasons == ("tool_calls",)


def test_tool_calls_may_follow_from_the_request() -> None:
    script = Script(text=(), tool_calls=lambda request: (ToolCall("say", f'"{request.messages[-1].text}"'),))
    deltas = [event for event in answer(script, chat_request("so it is")).events if isinstance(event, ToolCallDelta)]
    assert "".join(delta.arguments for delta in deltas) == '"so it is"'


def test_tokens_arrive_in_batches() -> None:
    sizes = [len(batch) for batch in answer(Script(text=("x",) * 5, batch=2)).batches]
    assert sizes == [2, 2, 2]  # the last holds one token and the Finish


@pytest.mark.parametrize("stop", ["lo w", "o wor", "ld", "Hel"])
def test_a_stop_string_is_found_across_tokens(stop: str) -> None:
    whole = "Hello world"
    request = ChatRequest((Message("user", (TextPart("x"),)),), Sampling(stop=("never", stop)))
    found = answer(Script(text=("Hel", "lo", " ", "wo", "rld")), request)
    assert found.text == whole[: whole.index(stop)]
    assert found.finish.stop_sequence == stop


def test_what_only_begins_like_a_stop_string_is_sent() -> None:
    request = ChatRequest((Message("user", (TextPart("x"),)),), Sampling(stop=("world!",)))
    assert answer(Script(text=("Hello ", "wor", "ld")), request).text == "Hello world"


def test_calls_are_recorded() -> None:
    async def main() -> list[Call]:
        engine = await started(Script())
        await ask(engine.chat(chat_request()))
        async with aclosing(engine.complete(completion_request())) as stream:
            await anext(stream)
        await engine.embed(EmbedRequest(("x",))) if engine.capabilities.embed else None
        assert engine.running == 0
        return engine.calls

    first, second = asyncio.run(main())
    assert (first.kind, first.ended, first.tokens) == ("chat", "finished", 4)
    assert (second.kind, second.ended, second.tokens) == ("complete", "closed", 1)
    assert "closed" in repr(second)


def test_it_dies_at_the_token_it_is_told_to() -> None:
    async def main() -> None:
        engine = await started(Script(text=("a", "b", "c"), dies_at=2))
        found = Answer()
        with pytest.raises(EngineFailedError, match="token 2"):
            await ask(engine.chat(chat_request()), into=found)
        assert found.text == "ab"
        assert (await engine.health()).state == "dead"
        assert "token 2" in await engine.wait_dead()

    asyncio.run(main())


def test_a_silent_engine_is_given_up_after_the_stall_limit() -> None:
    async def main() -> None:
        clock = FakeClock()
        engine = await started(Script(silent=True), clock, stall_timeout_s=30)
        asking = asyncio.create_task(ask(engine.chat(chat_request())))
        await eventually(lambda: clock.sleeping)
        await clock.advance(29)
        assert not asking.done()
        await clock.advance(1)
        with pytest.raises(EngineTimeoutError):
            await asking

    asyncio.run(main())


def test_a_killed_engine_fails_its_requests_at_once() -> None:
    async def main() -> None:
        clock = FakeClock()
        engine = await started(Script(token_delay_s=1000), clock)
        asking = asyncio.create_task(ask(engine.chat(chat_request())))
        await eventually(lambda: clock.sleeping)
        engine.kill("signal 9")
        with pytest.raises(EngineFailedError, match="signal 9"):
            await asking

    asyncio.run(main())


def test_it_refuses_its_first_starts() -> None:
    async def main() -> None:
        driver = ScriptedDriver(Script(refusals=("gpu", "model")))
        plan = driver.plan(MODEL, LoadOptions(), ScriptedRegistry(driver).hardware())
        for cause in ("gpu", "model"):
            with pytest.raises(EngineStartError) as caught:
                await driver.start(plan)
            assert caught.value.cause == cause
        await driver.start(plan)
        assert len(driver.starts) == 3
        assert len(driver.alive) == 1

    asyncio.run(main())


def test_the_clock_wakes_sleepers_in_order_and_only_when_it_is_turned() -> None:
    async def main() -> None:
        clock = FakeClock()
        woken: list[tuple[str, float]] = []

        async def sleeper(name: str, seconds: float) -> None:
            began = clock.monotonic()
            await clock.sleep(seconds)
            woken.append((name, clock.monotonic() - began))

        tasks = [asyncio.create_task(sleeper(name, seconds)) for name, seconds in (("late", 5), ("soon", 2))]
        await clock.advance(1.9)
        assert not woken
        assert clock.sleeping == 2
        await clock.advance(10)
        assert woken == [("soon", 2), ("late", 5)]
        await asyncio.gather(*tasks)

    asyncio.run(main())


def test_waiting_for_what_never_comes_ends() -> None:
    async def main() -> None:
        with pytest.raises(AssertionError, match="still not so"):
            await eventually(lambda: False, limit_s=0.01)

    asyncio.run(main())


def test_the_catalog_finds_by_the_stores_rules() -> None:
    catalog = ScriptedCatalog(MODEL, scripted_model("other:1b", aliases=("short",)))
    assert [catalog.find(name).name for name in ("tiny", "TINY:latest", "short")] == [
        "tiny:latest",
        "tiny:latest",
        "other:1b",
    ]
    assert [model.name for model in catalog.list()] == ["other:1b", "tiny:latest"]
    with pytest.raises(ModelNotFoundError):
        catalog.find("nowhere")
    with pytest.raises(InvalidNameError):
        catalog.find("../../etc/passwd")


def test_the_scripted_registry_keeps_what_the_scheduler_asks_of_the_real_one() -> None:
    """The same driver in both gives the same answers."""
    driver = ScriptedDriver()
    real = Registry(DriverOptions(run_dir=""))
    real.register("scripted", driver)
    scripted = ScriptedRegistry(driver)
    hardware = scripted.hardware()
    assert scripted.choose(MODEL, hardware, "scripted")[0] is real.choose(MODEL, hardware, "scripted")[0] is driver
    for registry in (scripted, real):
        with pytest.raises(DriverUnavailableError):
            registry.choose(MODEL, hardware, "nowhere")


def test_the_public_names_are_there() -> None:
    for name in oprel.testing.__all__:
        assert getattr(oprel.testing, name).__name__ == name
    with pytest.raises(AttributeError):
        oprel.testing.nothing  # noqa: B018 - looking it up is the test


def test_the_plugin_costs_pytest_nothing() -> None:
    """It is imported at every start of pytest, also by those who never use it."""
    program = (
        "import sys; import oprel.testing.plugin; "
        "print(sorted({name.split('.')[0] for name in sys.modules} & "
        "{'msgspec', 'pydantic', 'litestar', 'stevedore', 'asyncio', 'pytest', 'httpx'}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
