"""Starting vLLM and speaking with it: on a stand-in with the real one's log, HTTP and habits."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Coroutine
from contextlib import aclosing
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest
from support.fake_vllm import install, runs
from support.servers import is_alive, wait_until
from support.tree_folders import write_folder

from oprel.drivers import DriverOptions, EngineFailedError, EngineStartError, EngineTimeoutError, UnsupportedError
from oprel.drivers.vllm import VllmDriver
from oprel.drivers.vllm.engine import VllmEngine
from oprel.schema import ChatRequest, Finish, Hardware, LoadOptions, Model, Plan, Sampling, Thinking
from oprel.store import Trees
from oprel.testing.subject import ask, chat_request, child_processes, completion_request

T = TypeVar("T")
GIB = 1024**3


class Stand:
    """A driver over a stand-in, and the models that it is asked to run."""

    def __init__(
        self, home: Path, *, table: dict[str, Any] | None = None, limits: dict[str, float], **script: Any
    ) -> None:
        self.home = home
        self.env = home / "env"
        self.python = install(self.env, **script)
        self.run_dir = home / "run"
        self.trees = Trees(home / "trees", state_dir=home / "state")
        self.trees.add(write_folder(home / "source"), "one")
        self.driver = VllmDriver(
            DriverOptions(
                run_dir=str(self.run_dir),
                executables=(("vllm", str(self.python)),),
                tables=(("vllm", table or {}),),
                **limits,
            )
        )
        machine = Hardware("Linux", "x86_64", 2, 2, 32 * GIB, 32 * GIB)
        self.hardware = msgspec.structs.replace(machine, engines=self.driver.probe())
        self.before = child_processes()

    @property
    def model(self) -> Model:
        model = self.trees.find("one")
        assert model is not None
        return model

    def plan(self, **load: Any) -> Plan:
        return self.driver.plan(self.model, LoadOptions(**load), self.hardware)

    async def start(self, **load: Any) -> VllmEngine:
        engine = await self.driver.start(self.plan(**load))
        assert isinstance(engine, VllmEngine)
        return engine

    def requests(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.env / "requests.jsonl").read_text().splitlines()]

    def assert_nothing_left(self) -> None:
        assert not self.run_dir.exists() or list(self.run_dir.iterdir()) == []
        wait_until(lambda: child_processes() <= self.before, what="its processes to be gone")


class Make:
    def __init__(self, home: Path) -> None:
        self.home = home

    def __call__(
        self, *, table: dict[str, Any] | None = None, limits: dict[str, float] | None = None, **script: Any
    ) -> Stand:
        return Stand(self.home, table=table, limits=limits or {}, **script)


@pytest.fixture
def make(tmp_path: Path) -> Make:
    return Make(tmp_path)


def run(work: Coroutine[Any, Any, T]) -> T:
    async def bounded() -> T:
        async with asyncio.timeout(30):
            return await work

    return asyncio.run(bounded())


def test_an_engine_answers_and_ends(make: Make) -> None:
    stand = make(workers=2)

    async def work() -> None:
        engine = await stand.start(context_tokens=1024, slots=2)
        assert (await engine.health()).state == "ready"
        assert (engine.plan.context_tokens, engine.plan.slots, engine.plan.fallbacks) == (1024, 2, ())
        assert "46592" in dict(engine.plan.reasons[-1:])["cache"]
        caps = engine.capabilities
        assert (caps.chat, caps.complete, caps.tools, caps.json_schema, caps.logprobs) == (True,) * 5
        assert (caps.embed, caps.grammar, caps.thinking, caps.vision, caps.infill) == (False,) * 5
        assert "typical_p" not in caps.sampling and caps.context_tokens == 1024
        answer = await ask(engine.chat(chat_request("Hello")))
        assert (answer.text, answer.finish.reasons, answer.finish.stop_sequence) == ("t0 t1 t2 ", ("stop",), "end")
        assert (answer.finish.usage.prompt, answer.finish.usage.completion) == (5, 3)
        assert (await ask(engine.complete(completion_request("Once")))).text == "t0 t1 t2 "
        assert engine.memory_bytes()
        assert engine.log_tail()
        await engine.stop()
        await engine.stop()
        assert (await engine.health()).state == "dead"

    run(work())
    stand.assert_nothing_left()


def test_how_it_is_started(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "PYTHONPATH", "VLLM_PORT", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "nobody's business")
    stand = make()

    async def work() -> None:
        engine = await stand.start(chat_template="{{ messages }}")
        templates.append(await asyncio.to_thread(template().read_text))
        await engine.stop()

    def started() -> Any:
        (only,) = runs(stand.env)
        return only

    def template() -> Path:
        return Path(started().option("--chat-template"))

    templates: list[str] = []
    run(work())
    assert templates == ["{{ messages }}"]
    assert not template().exists()
    environment = started().environment
    assert environment["HF_HUB_OFFLINE"] == environment["VLLM_NO_USAGE_STATS"] == "1"
    assert len(environment["VLLM_API_KEY"]) == 64
    assert environment["VLLM_API_KEY"] not in " ".join(started().argv)
    assert environment["PATH"].split(os.pathsep)[0] == str(stand.python.parent)
    assert not {"HF_TOKEN", "PYTHONPATH", "VLLM_PORT", "AWS_SECRET_ACCESS_KEY"} & set(environment)
    socket = started().option("--uds")
    assert socket is not None and socket.startswith(str(stand.run_dir))
    assert started().option("--model") == str(stand.trees.folder_of(stand.model))


def sent(stand: Stand, **sampling: Any) -> dict[str, Any]:
    async def work() -> None:
        engine = await stand.start(context_tokens=1024)
        try:
            request = ChatRequest(chat_request().messages, Sampling(**sampling), logprobs=3)
            await ask(engine.chat(request))
        finally:
            await engine.stop()

    run(work())
    body: dict[str, Any] = stand.requests()[-1]["body"]
    return body


def test_what_is_sent_is_in_its_words(make: Make) -> None:
    body = sent(
        make(),
        temperature=0.5,
        top_k=7,
        min_p=0.1,
        repeat_penalty=1.1,
        presence_penalty=0.2,
        seed=3,
        stop=("a",),
        logit_bias=((5, -2.0),),
        max_tokens=9,
    )
    assert body["repetition_penalty"] == 1.1
    assert body["logit_bias"] == {"5": -2.0}
    assert body["top_logprobs"] == 4, "one more than asked for: the chosen token may take the place of a likely one"
    assert (body["stream"], body["stream_options"], body["max_tokens"]) == (True, {"include_usage": True}, 9)
    assert "model" not in body
    assert not {"repeat_penalty", "return_progress", "cache_prompt", "typical_p"} & set(body)


@pytest.mark.parametrize(("asked", "said"), [(None, None), (1023, 1023), (1024, None), (10**6, None)])
def test_more_tokens_than_the_context_holds_is_what_is_left(make: Make, asked: int | None, said: int | None) -> None:
    assert sent(make(), max_tokens=asked).get("max_tokens") == said


def test_an_adapter_is_a_model_of_its_own(make: Make, tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    stand = make(table={"lora": str(tmp_path / "adapter")})
    assert sent(stand)["model"] == "adapter"


def test_tokens_and_prompts(make: Make) -> None:
    stand = make()

    async def work() -> None:
        engine = await stand.start()
        try:
            assert await engine.tokenize("ab") == (97, 98)
            assert await engine.detokenize((97, 98)) == "ab"
            request = msgspec.structs.replace(chat_request("Hello"), sampling=Sampling(typical_p=0.5))
            assert await engine.render(request) == "Hello"
        finally:
            await engine.stop()

    run(work())


def test_what_it_can_not_do_is_refused_before_it_is_asked(make: Make) -> None:
    stand = make()

    async def work() -> None:
        engine = await stand.start()
        try:
            for request in (
                msgspec.structs.replace(chat_request(), thinking=Thinking(enabled=True)),
                msgspec.structs.replace(chat_request(), sampling=Sampling(typical_p=0.5)),
                msgspec.structs.replace(chat_request(), sampling=Sampling(repeat_last_n=5)),
            ):
                with pytest.raises(UnsupportedError):
                    await ask(engine.chat(request))
        finally:
            await engine.stop()

    run(work())


def test_busy_is_told_by_its_metrics(make: Make) -> None:
    stand = make(tokens=500, token_s=0.05)

    async def work() -> None:
        engine = await stand.start(slots=1)
        try:
            async with aclosing(engine.chat(chat_request())) as answer:
                await anext(answer)
                assert (await engine.health()).state == "busy"
            async with asyncio.timeout(5):
                while (await engine.health()).state != "ready":  # noqa: ASYNC110 - it is another process
                    await asyncio.sleep(0.01)
        finally:
            await engine.stop()

    run(work())


# -- starts that fail


FAILS = {
    "memory": ("ValueError: No available memory for the cache blocks. Try increasing it.", "memory", "for the cache"),
    "a model": ("ValueError: Model architectures ['X'] are not supported for now.", "model", "architecture"),
    "a GPU": ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB.", "gpu", "not enough free memory"),
    "something else": ("KeyError: 'lm_head.weird'", "engine", "lm_head.weird"),
}


@pytest.mark.parametrize(("line", "cause", "said"), FAILS.values(), ids=FAILS.keys())
def test_a_start_that_fails_says_why(make: Make, line: str, cause: str, said: str) -> None:
    stand = make(fails=line, workers=1)
    with pytest.raises(EngineStartError) as caught:
        run(stand.start())
    assert (caught.value.cause, caught.value.driver) == (cause, "vllm")
    assert said in caught.value.message
    assert "'one:latest'" in caught.value.message
    assert any(line in told for told in caught.value.log_tail)
    stand.assert_nothing_left()


def test_a_start_without_progress_is_given_up(make: Make) -> None:
    stand = make(hangs_in_load=True, workers=1, limits={"start_timeout_s": 0.5})
    with pytest.raises(EngineStartError, match=r"no progress for 0\.5 s"):
        run(stand.start())
    stand.assert_nothing_left()


@pytest.mark.parametrize("after_s", [0.0, 0.05, 0.5])
def test_a_start_that_is_cancelled_leaves_nothing(make: Make, after_s: float) -> None:
    stand = make(hangs_in_load=True, workers=2)

    async def work() -> None:
        starting = asyncio.create_task(stand.start())
        await asyncio.sleep(after_s)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting

    run(work())
    stand.assert_nothing_left()


MISSING = {
    "the folder": lambda stand: stand.trees.delete("one"),
    "its config": lambda stand: (stand.trees.folder_of(stand.model) / "config.json").unlink(),
    "its weights": lambda stand: (stand.trees.folder_of(stand.model) / "model.safetensors").unlink(),
}


@pytest.mark.parametrize("spoil", MISSING.values(), ids=MISSING.keys())
def test_what_is_missing_is_told_before_vllm_looks_for_it(make: Make, spoil: Any) -> None:
    stand = make()
    plan = stand.plan()
    spoil(stand)
    with pytest.raises(EngineStartError) as caught:
        run(stand.driver.start(plan))  # type: ignore[arg-type]
    assert caught.value.cause == "model"
    assert runs(stand.env) == []
    stand.assert_nothing_left()


def test_an_adapter_that_is_missing(make: Make, tmp_path: Path) -> None:
    stand = make(table={"lora": str(tmp_path / "adapter")})
    with pytest.raises(EngineStartError, match="lora"):
        run(stand.start())


def test_less_context_than_planned_is_told(make: Make) -> None:
    stand = make(max_model_len=512)

    async def work() -> Plan:
        engine = await stand.start(context_tokens=1024)
        await engine.stop()
        return engine.plan

    plan = run(work())
    assert plan.context_tokens == 512
    assert any(subject == "context_reduced" for subject, _ in plan.reasons)


# -- ends


def test_term_that_is_ignored_is_followed_by_kill(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM does that while clients wait."""
    monkeypatch.setattr("oprel.drivers.vllm.start._STOP_GRACE_S", 0.3)
    stand = make(ignores_term=True, workers=2, limits={"stop_grace_s": 0.3})

    async def work() -> None:
        engine = await stand.start()
        await engine.stop()

    run(work())
    stand.assert_nothing_left()


@pytest.mark.parametrize("which", ["the server alone", "the shim alone", "the whole group"])
def test_no_part_outlives_another(make: Make, which: str) -> None:
    stand = make(workers=2)

    async def work() -> None:
        engine = await stand.start()
        shim, server = engine._child.pid, runs(stand.env)[-1].pid
        assert shim != server, "somebody must stay to end the workers"
        if which == "the whole group":
            os.killpg(shim, signal.SIGKILL)
        else:
            os.kill(server if which == "the server alone" else shim, signal.SIGKILL)
        assert await engine.wait_dead()
        assert (await engine.health()).state == "dead"
        await engine.stop()

    run(work())
    stand.assert_nothing_left()


def test_death_in_an_answer_is_told(make: Make) -> None:
    stand = make(dies_after_tokens=1, workers=1)

    async def work() -> None:
        engine = await stand.start()
        with pytest.raises(EngineFailedError, match="ended"):
            await ask(engine.chat(chat_request()))
        await engine.stop()

    run(work())
    stand.assert_nothing_left()


def test_silence_ends_it(make: Make) -> None:
    stand = make(stalls_after_tokens=1, limits={"stall_timeout_s": 0.3})

    async def work() -> None:
        engine = await stand.start()
        with pytest.raises(EngineTimeoutError):
            await ask(engine.chat(chat_request()))
        assert await engine.wait_dead()
        await engine.stop()

    run(work())
    stand.assert_nothing_left()


def test_closing_an_answer_frees_its_slot(make: Make) -> None:
    stand = make(tokens=1000, token_s=0.02)

    async def work() -> None:
        engine = await stand.start()
        async with aclosing(engine.chat(chat_request())) as answer:
            batch = await anext(answer)
            assert not any(isinstance(event, Finish) for event in batch)
        async with asyncio.timeout(5):
            while "0 of" not in (await engine.health()).detail:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await engine.stop()

    run(work())
    assert not any(is_alive(one.pid) for one in runs(stand.env))
