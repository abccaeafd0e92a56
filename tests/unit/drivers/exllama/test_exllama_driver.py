"""An ExLlama engine from start to stop, by its driver, with stand-ins for the libraries."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
from support.exllama_driver import driver_for, make_hardware, model_in
from support.exllama_python import events, install, runs

from oprel.drivers import ContextLengthError, Engine, EngineFailedError, EngineStartError, EngineTimeoutError
from oprel.drivers.children.processes import start_mark
from oprel.schema import ChatRequest, JsonObject, LoadOptions, Message, Model, Plan, Sampling, Text, TextPart, Usage

pytest.importorskip("jinja2", reason="chat templates are rendered by jinja2, which an engine's environment has")

SMALL = LoadOptions(context_tokens=512, slots=2)


def ask(text: str = "hello", **sampling: Any) -> ChatRequest:
    return ChatRequest(
        (Message("user", (TextPart(text),)),), Sampling(**{"temperature": 0.0, "max_tokens": 50, **sampling})
    )


class Bench:
    """A driver whose environment is the stand-ins'."""

    def __init__(self, folder: Path, *, name: str = "exllamav3", model: Model | None = None, **script: Any) -> None:
        names = ("start_timeout_s", "stall_timeout_s", "stop_grace_s", "table")
        options = {one: script.pop(one) for one in names if one in script}
        self.environment = folder / "env"
        self.run_dir = folder / "run"
        self.driver = driver_for(self.run_dir, install(self.environment, **script), name=name, **options)
        self.hardware = make_hardware(*self.driver.probe())
        self.model = model or model_in(folder / "model", {"exllamav3": "exl3", "exllamav2": "exl2"}[name])

    def plan(self, options: LoadOptions = SMALL) -> Plan:
        plan: Plan = self.driver.plan(self.model, options, self.hardware)
        return plan

    async def start(self, options: LoadOptions = SMALL) -> Engine:
        engine: Engine = await self.driver.start(self.plan(options))
        return engine

    @property
    def runs(self) -> list[dict[str, Any]]:
        return runs(self.environment)

    def assert_nothing_is_left(self) -> None:
        assert list(self.run_dir.iterdir()) == []
        assert [run["pid"] for run in self.runs if start_mark(run["pid"]) is not None] == []


def run(work: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(40):
            await work

    asyncio.run(bounded())


@pytest.mark.parametrize("name", ["exllamav2", "exllamav3"])
def test_a_start_tells_what_became_of_the_plan(tmp_path: Path, name: str) -> None:
    bench = Bench(tmp_path, name=name)

    async def work() -> None:
        engine = await bench.start()
        try:
            slots = 1 if name == "exllamav2" else 2  # without flash-attn
            assert (engine.plan.slots, engine.plan.context_tokens, engine.plan.device) == (slots, 512, "gpu")
            assert dict(engine.plan.bytes_by_device)["CUDA0"] == 5 * 2**30
            can = engine.capabilities
            assert (can.chat, can.complete, can.tools, can.embed, can.tokenize) == (True, True, False, False, True)
            assert can.json_schema is (name == "exllamav3")
            assert can.context_tokens == 512
            assert (await engine.health()).state == "ready"
            answer = [event async for batch in engine.chat(ask()) for event in batch]
            assert "".join(event.text for event in answer if isinstance(event, Text)).startswith("Once upon a time")
            assert answer[-1].usage == Usage(24, 50)  # type: ignore[union-attr]
        finally:
            await engine.stop()

    run(work())
    bench.assert_nothing_is_left()


def test_the_environment_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The key comes by it, secrets don't, programs beside the interpreter (ninja) are found, kernels have a place."""
    for name in ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "HTTP_PROXY", "PYTHONPATH", "TORCH_EXTENSIONS_DIR"):
        monkeypatch.setenv(name, "canary")
    bench = Bench(tmp_path)

    async def work() -> None:
        await (await bench.start()).stop()
        await (await bench.start()).stop()

    run(work())
    first, second = bench.runs
    keys = [run["environment"]["OPREL_HOST_KEY"] for run in (first, second)]
    assert len(set(keys)) == 2
    assert all(len(key) == 64 for key in keys)
    assert not any(key in " ".join(run["argv"]) for key in keys for run in (first, second))
    environment = first["environment"]
    assert "canary" not in environment.values()
    assert environment["PATH"].split(os.pathsep)[0] == str(bench.environment)
    build = Path(environment["TORCH_EXTENSIONS_DIR"])
    assert build.parent == tmp_path / "build"
    assert build.name.startswith("exllamav3-1.6.5-torch2.11.0-py3")
    assert int(environment["MAX_JOBS"]) >= 1


def test_exactly_the_plan_is_started(tmp_path: Path) -> None:
    draft = model_in(tmp_path / "draft").weights.path
    table = {"gpu_split": [20], "cache_type": "q6_0", "draft_model": str(Path(draft).parent), "draft_tokens": 3}
    bench = Bench(tmp_path, table=table)

    async def work() -> None:
        await (await bench.start()).stop()

    run(work())
    words = bench.runs[0]["argv"]
    options = dict(zip(words[1::2], words[2::2], strict=True))
    assert options.pop("--socket").startswith(str(bench.run_dir))
    assert options == {
        "--engine": "exllamav3",
        "--model": str(Path(bench.model.weights.path).parent),
        "--name": "cd" * 6,
        "--context": "512",
        "--slots": "2",
        "--cache-type": "q6",
        "--gpu-split": "20",
        "--draft": str(Path(draft).parent),
        "--draft-tokens": "3",
    }


def test_a_chat_template_goes_by_a_file_of_its_own(tmp_path: Path) -> None:
    bench = Bench(tmp_path)

    async def work() -> None:
        engine = await bench.start(LoadOptions(context_tokens=512, chat_template="own:{{ messages[0].content }}"))
        assert await engine.render(ask("x")) == "own:x"
        await engine.stop()

    run(work())
    bench.assert_nothing_is_left()


@pytest.mark.parametrize(
    ("script", "cause", "said"),
    [
        ({"import_error": "CUDA_HOME environment variable is not set."}, "engine", "CUDA_HOME"),
        ({"gpus": 0}, "gpu", "it finds no CUDA device"),
        ({"load_error": ["ValueError", "Could not find lm_head.* in model"]}, "model", "lm_head"),
        ({"tokens_max": 512}, "gpu", "GPU memory ran out"),
    ],
    ids=["import", "cuda", "model", "memory"],
)
def test_a_failed_start_says_why_and_leaves_nothing(
    tmp_path: Path, script: dict[str, Any], cause: str, said: str
) -> None:
    bench = Bench(tmp_path, **script)

    async def work() -> None:
        with pytest.raises(EngineStartError) as caught:
            await bench.start()
        assert caught.value.cause == cause
        assert said in caught.value.message
        assert "'small:exl3'" in caught.value.message
        assert caught.value.driver == "exllamav3"
        assert any("oprel_exit" in line for line in caught.value.log_tail)

    run(work())
    bench.assert_nothing_is_left()


def test_an_environment_that_is_gone_since_the_probe(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    plan = bench.plan()
    (bench.environment / "python").unlink()

    async def work() -> None:
        with pytest.raises(EngineStartError, match="No such file"):
            await bench.driver.start(plan)

    run(work())
    bench.assert_nothing_is_left()


def test_loading_without_progress_is_given_up(tmp_path: Path) -> None:
    bench = Bench(tmp_path, hangs_in_load=True, start_timeout_s=0.8)

    async def work() -> None:
        with pytest.raises(EngineStartError, match=r"no progress for 0\.8 s"):
            await bench.start()

    run(work())
    bench.assert_nothing_is_left()


def test_building_has_a_limit_of_its_own(tmp_path: Path) -> None:
    """Longer than the one for loading: a compiler shows no progress."""
    bench = Bench(tmp_path, build_s=2.0, start_timeout_s=0.9)

    async def work() -> None:
        await (await bench.start()).stop()

    run(work())
    bench.assert_nothing_is_left()


def test_building_that_takes_too_long_is_given_up(tmp_path: Path) -> None:
    bench = Bench(tmp_path, build_s=30.0, table={"build_timeout_s": 0.5})

    async def work() -> None:
        with pytest.raises(EngineStartError, match=r"not compiled within 0\.5 s"):
            await bench.start()

    run(work())
    bench.assert_nothing_is_left()


def test_a_cancelled_start_leaves_nothing(tmp_path: Path) -> None:
    bench = Bench(tmp_path, hangs_in_load=True)

    async def work() -> None:
        starting = asyncio.create_task(bench.start())
        while not events(bench.environment, "load"):  # noqa: ASYNC110 - it is another process
            await asyncio.sleep(0.01)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting

    run(work())
    bench.assert_nothing_is_left()


class TestDeath:
    def test_in_the_middle_of_an_answer(self, tmp_path: Path) -> None:
        bench = Bench(tmp_path, dies_at=4)

        async def work() -> None:
            engine = await bench.start()
            with pytest.raises(EngineFailedError, match="SIGKILL"):
                await drain(engine.chat(ask()))
            assert "SIGKILL" in await engine.wait_dead()
            assert (await engine.health()).state == "dead"
            await engine.stop()

        run(work())
        bench.assert_nothing_is_left()

    def test_a_dead_generator_says_so(self, tmp_path: Path) -> None:
        bench = Bench(tmp_path, fails_at=(3,), failure="CUDA error: device-side assert triggered")

        async def work() -> None:
            engine = await bench.start()
            with pytest.raises(EngineFailedError, match="device-side assert"):
                await drain(engine.chat(ask()))
            assert "the generator is dead" in await engine.wait_dead()
            await engine.stop()

        run(work())
        bench.assert_nothing_is_left()

    def test_one_that_is_mended_fails_one_request(self, tmp_path: Path) -> None:
        bench = Bench(tmp_path, fails_at=(3,))

        async def work() -> None:
            engine = await bench.start()
            with pytest.raises(EngineFailedError, match="a kernel went wrong"):
                await drain(engine.chat(ask()))
            await drain(engine.chat(ask()))
            await engine.stop()

        run(work())
        bench.assert_nothing_is_left()

    def test_a_stalled_engine_is_ended(self, tmp_path: Path) -> None:
        bench = Bench(tmp_path, stalls_at=4, stall_timeout_s=0.5)

        async def work() -> None:
            engine = await bench.start()
            with pytest.raises(EngineTimeoutError, match="no progress"):
                await drain(engine.chat(ask()))
            assert "SIGKILL" in await engine.wait_dead()
            await engine.stop()

        run(work())
        bench.assert_nothing_is_left()

    def test_a_stop_under_load_ends_the_streams(self, tmp_path: Path) -> None:
        bench = Bench(tmp_path, token_s=0.01, endless=True)

        async def work() -> None:
            engine = await bench.start()
            stream = engine.chat(ask(max_tokens=400))
            await anext(stream)
            reading = asyncio.create_task(drain(stream))
            await engine.stop()
            with pytest.raises(EngineFailedError):
                await reading

        run(work())
        bench.assert_nothing_is_left()


def test_busy_is_not_dead(tmp_path: Path) -> None:
    bench = Bench(tmp_path, token_s=0.01, endless=True)

    async def work() -> None:
        engine = await bench.start(LoadOptions(context_tokens=512, slots=1))
        stream = engine.chat(ask(max_tokens=400))
        await anext(stream)
        assert (await engine.health()).state == "busy"
        await stream.aclose()
        os.kill(bench.runs[0]["pid"], signal.SIGSTOP)
        frozen = await engine.health()
        assert (frozen.state, "doesn't answer" in frozen.detail) == ("busy", True)
        await engine.stop()

    run(work())
    bench.assert_nothing_is_left()


def test_errors_are_translated(tmp_path: Path) -> None:
    bench = Bench(tmp_path)

    async def work() -> None:
        engine = await bench.start()
        with pytest.raises(ContextLengthError) as caught:
            await drain(engine.chat(ask("x" * 600)))
        assert (caught.value.context_tokens, (caught.value.prompt_tokens or 0) > 600) == (512, True)
        schema = ChatRequest(ask().messages, ask().sampling, format=JsonObject())
        answer = [event async for batch in engine.chat(schema) for event in batch]
        assert "".join(event.text for event in answer if isinstance(event, Text)) == '{"ok":1}'
        await engine.stop()

    run(work())


async def drain(stream: Any) -> None:
    async for _ in stream:
        pass
