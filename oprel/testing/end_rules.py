"""What the contract asks of ends: stopping, dying, failing to start, being cancelled. Nothing is left after them."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from oprel.drivers import (
    Engine,
    EngineFailedError,
    EngineStartError,
    OprelError,
)
from oprel.schema import (
    EmbedRequest,
    Model,
)
from oprel.testing.checks import SOON_S, answering
from oprel.testing.subject import Bench, Subject, ask, chat_request, completion_request

__all__ = ["EndRules"]


class EndRules:
    """Tests that end engines, each its own."""

    def test_stopping_leaves_nothing_and_may_be_repeated(
        self, bench: Bench, subject: Subject, any_model: Model
    ) -> None:
        """No process, no socket, no file; twice is as good as once; what comes after is an error of the tree."""
        before = bench.remains()
        engine = bench.start(any_model, subject.chat_options if any_model is subject.chat else None)
        watching = engine.wait_dead()

        async def stop() -> str:
            watch = asyncio.ensure_future(watching)
            await asyncio.gather(engine.stop(), engine.stop())
            await engine.stop()
            return await watch

        assert bench.run(stop(), limit_s=subject.stop_limit_s)
        assert bench.remains() == before
        assert bench.run(engine.health(), limit_s=5).state == "dead"
        with pytest.raises(OprelError):
            bench.run(_any_use(engine), limit_s=10)

    def test_stopping_under_load_ends_the_streams(self, bench: Bench, subject: Subject, chat_model: Model) -> None:
        """Running requests fail with EngineFailedError; nothing hangs, nothing is left."""
        before = bench.remains()
        engine = bench.start(chat_model, subject.chat_options)

        async def stop() -> None:
            async with aclosing(answering(engine, "complete", max_tokens=400)) as stream:
                await anext(stream)
                await engine.stop()
                with pytest.raises(EngineFailedError):
                    while True:
                        await anext(stream)

        bench.run(stop(), limit_s=subject.stop_limit_s)
        assert bench.remains() == before

    def test_death_is_noticed(self, bench: Bench, subject: Subject, chat_model: Model) -> None:
        """The stream that runs fails, `wait_dead` returns with a reason, `health` says dead, and stopping cleans up."""
        kill = subject.kill or pytest.skip("the subject can't kill its engine")
        before = bench.remains()
        engine = bench.start(chat_model, subject.chat_options)

        async def die() -> str:
            watch = asyncio.ensure_future(engine.wait_dead())
            async with aclosing(answering(engine, "complete", max_tokens=400)) as stream:
                await anext(stream)
                kill(engine)
                with pytest.raises(EngineFailedError):
                    while True:
                        await anext(stream)
            async with asyncio.timeout(SOON_S):
                reason = await watch
            assert (await engine.health()).state == "dead"
            await engine.stop()
            return reason

        assert bench.run(die(), limit_s=subject.stop_limit_s)
        assert bench.remains() == before

    def test_waiting_for_the_end_can_be_given_up(self, bench: Bench, engine: Engine) -> None:
        """Cancelling `wait_dead` does nothing to the engine, nor to others who wait."""

        async def give_up() -> str:
            other = asyncio.ensure_future(engine.wait_dead())
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await engine.wait_dead()
            assert not other.done()
            other.cancel()
            await asyncio.gather(other, return_exceptions=True)
            return (await engine.health()).state

        assert bench.run(give_up()) == "ready"

    def test_a_start_that_fails_says_why_and_leaves_nothing(self, bench: Bench, subject: Subject) -> None:
        """EngineStartError with the driver, a cause and the engine's last lines."""
        model = subject.damaged or pytest.skip("the subject has no damaged model")
        before = bench.remains()
        with pytest.raises(EngineStartError) as caught:
            bench.start(model)
        error = caught.value
        assert error.cause in ("gpu", "memory", "model", "engine")
        assert error.driver == bench.driver.name
        assert isinstance(error.log_tail, tuple)
        assert error.message
        assert bench.remains() == before

    @pytest.mark.parametrize("after_s", [0.0, 0.02, 0.2])
    def test_a_start_that_is_cancelled_leaves_nothing(
        self, bench: Bench, subject: Subject, any_model: Model, after_s: float
    ) -> None:
        """At whatever moment; the cancellation comes through."""
        before = bench.remains()
        plan = bench.plan(any_model, subject.chat_options if any_model is subject.chat else None)

        async def cancel() -> None:
            starting = asyncio.create_task(bench.driver.start(plan))
            await asyncio.sleep(after_s)
            if not starting.cancel():
                await (await starting).stop()
                return
            (outcome,) = await asyncio.gather(starting, return_exceptions=True)
            if isinstance(outcome, Engine):  # it was ready in that very moment
                await outcome.stop()
            else:
                assert isinstance(outcome, asyncio.CancelledError), f"cancelled, and yet: {outcome!r}"

        bench.run(cancel(), limit_s=subject.start_limit_s)
        assert bench.remains() == before


async def _any_use(engine: Engine) -> None:
    if engine.capabilities.complete:
        await ask(engine.complete(completion_request()))
    elif engine.capabilities.chat:
        await ask(engine.chat(chat_request()))
    else:
        await engine.embed(EmbedRequest(("text",)))
