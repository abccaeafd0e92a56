"""Each rule of the contract finds out the driver that breaks it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Iterable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from oprel.drivers import DriverOptions, Engine, EventStream, Health
from oprel.schema import (
    Availability,
    Capabilities,
    CompletionRequest,
    Embeddings,
    EmbedRequest,
    Hardware,
    LoadOptions,
    Model,
    Plan,
)
from oprel.testing import Script, ScriptedDriver, ScriptedEngine, scripted_model
from oprel.testing.contract import DriverContract, Subject
from oprel.testing.subject import Bench

HARDWARE = Hardware("Linux", "x86_64", cores=2, threads=2, ram_total_bytes=2**34, ram_available_bytes=2**33)
CHAT = scripted_model("chat")
EMBED = scripted_model("embed", capabilities=frozenset({"embedding"}))
STORY = Script(text=("once", " there", " was", " a", " pri", "nce"), endless=True, token_delay_s=0.002, slots=2)


# What a broken rule shows as: a failed check, a limit, or the exception that should have been another.
FOUND_OUT = (AssertionError, TimeoutError, pytest.fail.Exception, RuntimeError, ArithmeticError, OSError, TypeError)


class BadEngine(ScriptedEngine):
    """Keeps the contract but for one fault."""

    fault = ""

    def chat(self, request: Any) -> EventStream:
        return super().chat(self._spoiled(request))

    def complete(self, request: CompletionRequest) -> EventStream:
        stream = super().complete(self._spoiled(request))
        match self.fault:
            case "works on":
                return self._working_on(stream)
            case "one at a time":
                return self._in_turn(stream)
            case "endless after death":
                return self._deaf()
            case "blocks":
                return self._blocking(stream)
        return stream

    def _spoiled(self, request: Any) -> Any:
        sampling = request.sampling
        if self.fault == "ignores max_tokens":
            sampling = msgspec.structs.replace(sampling, max_tokens=20)
        if self.fault == "ignores stop":
            sampling = msgspec.structs.replace(sampling, stop=())
        request = msgspec.structs.replace(request, sampling=sampling)
        if self.fault == "ignores logprobs":
            request = msgspec.structs.replace(request, logprobs=None)
        if self.fault == "drops what it can't" and hasattr(request, "tools"):
            request = msgspec.structs.replace(request, tools=())
        return request

    async def _working_on(self, stream: EventStream) -> AsyncGenerator[Any, None]:
        """Goes on when it is closed."""
        self.running += 1
        async for batch in stream:
            yield batch
        self.running -= 1

    async def _blocking(self, stream: EventStream) -> AsyncGenerator[Any, None]:
        async with contextlib.aclosing(stream):
            async for batch in stream:
                yield batch
                time.sleep(1.2)  # noqa: ASYNC251 - this is the fault

    async def _in_turn(self, stream: EventStream) -> AsyncGenerator[Any, None]:
        self.__dict__.setdefault("turn", asyncio.Lock())
        async with self.__dict__["turn"], contextlib.aclosing(stream):
            async for batch in stream:
                yield batch

    async def _deaf(self) -> AsyncGenerator[Any, None]:
        """Waits for ever for an engine that is gone."""
        stream = super().complete(CompletionRequest("x"))
        async with contextlib.aclosing(stream):
            yield await anext(stream)
        await asyncio.Event().wait()

    def _check_context(self, request: Any) -> None:
        if self.fault != "cuts prompts":
            super()._check_context(request)

    async def embed(self, request: EmbedRequest) -> Embeddings:
        if self.fault == "blocks":
            time.sleep(1.2)  # noqa: ASYNC251 - this is the fault
        if self.fault == "never normalizes":
            request = msgspec.structs.replace(request, normalize=False)
        found = await super().embed(request)
        if self.fault == "out of order":
            return msgspec.structs.replace(found, vectors=found.vectors[::-1])
        if self.fault == "one short":
            return msgspec.structs.replace(found, vectors=found.vectors[:1])
        return found

    async def health(self) -> Health:
        if self.fault == "never says dead":
            return Health("ready")
        return await super().health()

    async def wait_dead(self) -> str:
        if self.fault == "death unnoticed":
            await asyncio.Event().wait()
        return await super().wait_dead()

    async def stop(self) -> None:
        if self.fault == "stops once" and self.is_stopped:
            raise RuntimeError("stopped already")
        if self.fault == "leaves a socket":
            leave_file(BadDriver.run_dir, "engine.sock")
        if self.fault != "stops nothing":
            await super().stop()


class BadDriver(ScriptedDriver):
    fault = ""
    run_dir = ""

    def __init__(self, script: Script, *, options: DriverOptions) -> None:
        random = iter(range(10**9))
        if self.fault == "never the same":
            script = msgspec.structs.replace(script, text=lambda request: self._random(random))
        super().__init__(
            script, scripts={"damaged": msgspec.structs.replace(script, refusals=("model",) * 9)}, options=options
        )
        BadDriver.run_dir = options.run_dir
        self._count = random

    def _random(self, random: Any) -> Iterable[str]:
        return (f"{next(random)} ",)

    def availability(self, hardware: Hardware) -> Availability:
        if self.fault == "availability raises" and not hardware.ram_total_bytes:
            raise ZeroDivisionError
        return super().availability(hardware)

    def plan(self, model: Model, options: LoadOptions, hardware: Hardware) -> Plan:
        match self.fault:
            case "plans by chance":
                options = msgspec.structs.replace(options, threads=next(self._count) + 1)
            case "plans from the file" if not model.weights.path.startswith("/models"):
                raise FileNotFoundError(model.weights.path)
            case "ignores options":
                options = LoadOptions()
        plan = super().plan(model, options, hardware)
        return msgspec.structs.replace(plan, reasons=()) if self.fault == "gives no reasons" else plan

    async def start(self, plan: Plan) -> ScriptedEngine:
        if self.fault == "litters":
            leave_file(self.options.run_dir, "litter")
        if self.fault == "swallows cancellation":
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0.05)
                return await super().start(plan)
            raise RuntimeError("no")
        engine = await super().start(plan)
        engine.__class__ = type("Faulty", (BadEngine,), {"fault": self.fault})
        return engine


def leave_file(folder: str, name: str) -> None:
    Path(folder, name).touch()


def kill(engine: Engine) -> None:
    assert isinstance(engine, ScriptedEngine)
    engine.kill()


def found_out(fault: str, rule: str, script: Script = STORY, *args: Any) -> None:
    """The rule holds for the good driver, and fails for the one with the fault."""
    _apply("", rule, STORY, *args)
    with pytest.raises(FOUND_OUT):
        _apply(fault, rule, script, *args)


def _apply(fault: str, rule: str, script: Script, *args: Any) -> None:
    make = type("Faulty", (BadDriver,), {"fault": fault})
    damaged = scripted_model("damaged")
    subject = Subject(
        make=lambda options: make(script, options=options),
        chat=CHAT,
        embed=EMBED,
        damaged=damaged,
        kill=kill,
        hardware=HARDWARE,
        stop_limit_s=0.5,
        answer_limit_s=1.0,
        leftovers=lambda: (),
    )
    test = getattr(DriverContract, rule)
    with Bench(subject) as bench:
        offered = {
            "bench": bench,
            "subject": subject,
            "chat_model": CHAT,
            "embed_model": EMBED,
            "any_model": CHAT,
        }
        names = test.__code__.co_varnames[1 : test.__code__.co_argcount]
        if "engine" in names:
            offered["engine"] = bench.engine(CHAT, subject.chat_options)
        if "embedder" in names:
            offered["embedder"] = bench.engine(EMBED)
        free = [name for name in names if name not in offered]
        test(
            DriverContract(),
            **{name: offered[name] for name in names if name in offered},
            **dict(zip(free, args, strict=True)),
        )


@pytest.mark.parametrize("broken", ["empty", "not_events", "no_finish", "two_finishes", "raises"])
def test_a_malformed_answer_is_found_out(broken: Any) -> None:
    script = msgspec.structs.replace(STORY, broken=broken)
    found_out("", "test_an_answer_is_well_formed", script, "complete")


@pytest.mark.parametrize(
    ("fault", "rule", "args"),
    [
        ("ignores max_tokens", "test_a_limit_of_tokens_is_kept", ("complete",)),
        ("ignores stop", "test_a_stop_string_ends_the_text_before_it", ()),
        ("never the same", "test_a_seed_makes_it_repeatable", ()),
        ("ignores logprobs", "test_logprobs_belong_to_the_tokens", ()),
        ("works on", "test_closing_the_iterator_stops_the_work", ()),
        ("works on", "test_cancelling_the_reader_stops_the_work", ()),
        ("one at a time", "test_as_many_requests_as_slots_run_at_once", ()),
        ("never says dead", "test_death_is_noticed", ()),
        ("death unnoticed", "test_death_is_noticed", ()),
        ("endless after death", "test_death_is_noticed", ()),
        ("endless after death", "test_stopping_under_load_ends_the_streams", ()),
        ("cuts prompts", "test_a_prompt_that_is_too_long_is_refused_and_the_engine_goes_on", ()),
        ("blocks", "test_it_does_not_hold_the_loop_up", ()),
        ("blocks", "test_embedding_does_not_hold_the_loop_up", ()),
        ("cuts prompts", "test_a_text_that_is_too_long_is_refused_and_the_engine_goes_on", ()),
        ("never normalizes", "test_vectors_have_unit_length_where_asked", ()),
        ("out of order", "test_one_vector_for_each_input_in_order", ()),
        ("one short", "test_more_inputs_than_slots", ()),
        ("stops nothing", "test_stopping_leaves_nothing_and_may_be_repeated", ()),
        ("stops once", "test_stopping_leaves_nothing_and_may_be_repeated", ()),
        ("leaves a socket", "test_stopping_leaves_nothing_and_may_be_repeated", ()),
        ("availability raises", "test_availability_is_fast_and_never_raises", ("a bare machine",)),
        ("plans by chance", "test_planning_is_pure", ()),
        ("plans from the file", "test_planning_is_pure", ()),
        ("ignores options", "test_a_plan_does_what_was_asked", ()),
        ("gives no reasons", "test_a_plan_explains_itself", ()),
        ("litters", "test_a_start_that_fails_says_why_and_leaves_nothing", ()),
        ("swallows cancellation", "test_a_start_that_is_cancelled_leaves_nothing", (0.02,)),
    ],
)
def test_a_broken_rule_is_found_out(fault: str, rule: str, args: tuple[Any, ...]) -> None:
    found_out(fault, rule, STORY, *args)


def test_what_is_dropped_in_silence_is_found_out() -> None:
    little = Capabilities(chat=True, complete=True)
    script = msgspec.structs.replace(STORY, capabilities=little)
    rule = "test_what_a_chat_can_not_do_is_refused"
    _apply("", rule, script, "tools")
    with pytest.raises(pytest.fail.Exception):
        _apply("drops what it can't", rule, script, "tools")
