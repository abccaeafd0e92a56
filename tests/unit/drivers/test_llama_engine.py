"""An engine from start to stop, on a stand-in that speaks llama-server's HTTP."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
from support import fake_llama_server as fake
from support.llama_models import MIB, driver_for, make_hardware, make_model

from oprel.drivers import Engine, EngineFailedError, EngineStartError, EngineTimeoutError
from oprel.drivers.children.processes import start_mark
from oprel.drivers.llama_cpp import LlamaCppDriver
from oprel.drivers.local.start import Starting
from oprel.schema import ChatRequest, LoadOptions, Message, Plan, Sampling, Text, TextPart

REQUEST = ChatRequest((Message("user", (TextPart("hello"),)),), sampling=Sampling(max_tokens=50))
MODEL = make_model(name="small", weights_bytes=90 * MIB, context_tokens=2048, embedding_length=576, layers=30)


class Bench:
    """A driver whose llama-server is the stand-in."""

    def __init__(self, folder: Path, **script: Any) -> None:
        options = {name: script.pop(name) for name in ("start_timeout_s", "stall_timeout_s") if name in script}
        self.engines = folder / "bin"
        self.run_dir = folder / "run"
        self.driver: LlamaCppDriver = driver_for(
            self.run_dir, executable=fake.install(self.engines, **script), **options
        )
        self.hardware = make_hardware(*self.driver.probe())

    def plan(self, options: LoadOptions | None = None) -> Plan:
        return self.driver.plan(MODEL, options or LoadOptions(), self.hardware)

    async def start(self, options: LoadOptions | None = None) -> Engine:
        return await self.driver.start(self.plan(options))

    @property
    def runs(self) -> list[fake.FakeRun]:
        return fake.runs(self.engines)

    def sent_template(self) -> tuple[str, int]:
        """Text and access rights of the file that the engine was given."""
        path = Path(self.runs[0].option("--chat-template-file") or "")
        return path.read_text(), path.stat().st_mode & 0o777

    def assert_nothing_is_left(self) -> None:
        assert list(self.run_dir.iterdir()) == []
        assert [run.pid for run in self.runs if start_mark(run.pid) is not None] == []


def run(work: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(30):
            await work

    asyncio.run(bounded())


def test_a_start_tells_what_became_of_the_plan(tmp_path: Path) -> None:
    bench = Bench(tmp_path, slots_context=1024)

    async def work() -> None:
        engine = await bench.start()
        try:
            assert (engine.plan.slots, engine.plan.context_tokens, engine.plan.device) == (4, 1024, "cpu")
            assert "1024 tokens" in dict(engine.plan.reasons)["context_reduced"]
            # Buffers of the log, and the program itself.
            assert dict(engine.plan.bytes_by_device) == {"cpu": (31 * 3 + 20 + 10 + 64) * MIB}
            can = engine.capabilities
            assert (can.chat, can.complete, can.tools, can.thinking, can.embed) == (True, True, True, True, False)
            assert can.context_tokens == 1024
            assert (await engine.health()).state == "ready"
            assert engine.log_tail()
        finally:
            await engine.stop()

    run(work())
    bench.assert_nothing_is_left()


def test_the_key_goes_by_environment_and_secrets_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "LLAMA_ARG_MODEL", "AWS_SECRET_ACCESS_KEY", "HTTP_PROXY"):
        monkeypatch.setenv(name, "canary")
    bench = Bench(tmp_path)

    async def work() -> None:
        await (await bench.start()).stop()
        await (await bench.start()).stop()

    run(work())
    first, second = bench.runs
    keys = [run.environment["LLAMA_API_KEY"] for run in (first, second)]
    assert len(set(keys)) == 2
    assert all(len(key) == 64 for key in keys)
    assert "canary" not in first.environment.values()
    assert not any(key in " ".join(run.argv) for key in keys for run in (first, second))
    socket = first.option("--host") or ""
    assert socket.startswith(str(bench.run_dir))
    assert len(os.fsencode(socket)) <= 107


def test_exactly_the_plan_is_started(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    plan = bench.plan(LoadOptions(slots=2, context_tokens=512))

    async def work() -> None:
        await (await bench.driver.start(plan)).stop()

    run(work())
    (seen,) = bench.runs
    assert (seen.option("--parallel"), seen.option("--ctx-size")) == ("2", "1024")
    planned = [word for word in plan.argv[1:] if word != "{socket}"]
    assert [word for word in seen.argv[1:] if not word.endswith(".sock")] == planned


def test_a_chat_template_goes_by_a_file_of_its_own(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    template = "{% for m in messages %}{socket} {{ m }}{% endfor %}"

    async def work() -> None:
        engine = await bench.start(LoadOptions(chat_template=template))
        assert bench.sent_template() == (template, 0o600)
        await engine.stop()

    run(work())
    bench.assert_nothing_is_left()


@pytest.mark.parametrize(
    ("script", "cause", "said"),
    [
        (
            {"dies_with": 1, "last_words": ("E srv  load: tensor 'a': model is corrupted or incomplete",)},
            "model",
            "the file is damaged or incomplete",
        ),
        ({"dies_with": 1, "last_words": ("E failed to allocate buffer for kv cache",)}, "memory", "enough memory"),
        ({"dies_with": -9}, "memory", "memory runs out"),
        ({"dies_with": 3, "last_words": ("E a most unusual end",)}, "engine", "a most unusual end"),
        ({"dies_with": 0}, "engine", "its last line was"),
    ],
    ids=["model", "memory", "killed", "other", "quiet"],
)  # fmt: skip
def test_a_failed_start_says_why_and_leaves_nothing(
    tmp_path: Path, script: dict[str, Any], cause: str, said: str
) -> None:
    bench = Bench(tmp_path, **script)

    async def work() -> None:
        with pytest.raises(EngineStartError) as caught:
            await bench.start()
        assert caught.value.cause == cause
        assert said in caught.value.message
        assert "'small'" in caught.value.message
        assert all(word in " ".join(caught.value.log_tail) for word in script.get("last_words", ()))

    run(work())
    bench.assert_nothing_is_left()


def test_a_command_line_that_the_engine_does_not_understand(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    plan = bench.plan()
    fake.install(bench.engines, lacks=("--no-kv-unified",))

    async def work() -> None:
        with pytest.raises(EngineStartError, match="invalid argument: --no-kv-unified") as caught:
            await bench.driver.start(plan)
        assert caught.value.cause == "engine"

    run(work())
    bench.assert_nothing_is_left()


def test_an_engine_that_is_gone_since_the_probe(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    plan = bench.plan()
    (bench.engines / "llama-server").unlink()

    async def work() -> None:
        with pytest.raises(EngineStartError, match="No such file"):
            await bench.driver.start(plan)

    run(work())
    bench.assert_nothing_is_left()


def test_a_start_without_progress_is_given_up(tmp_path: Path) -> None:
    bench = Bench(tmp_path, hangs_in_load=True, start_timeout_s=0.4)

    async def work() -> None:
        with pytest.raises(EngineStartError, match=r"no progress for 0\.4 s"):
            await bench.start()

    run(work())
    bench.assert_nothing_is_left()


def test_a_slow_start_that_makes_progress_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(tmp_path, load_s=0.8, start_timeout_s=0.4)
    steps = iter(range(1_000_000))
    monkeypatch.setattr(Starting, "progress", lambda _: next(steps))

    async def work() -> None:
        await (await bench.start()).stop()

    run(work())
    bench.assert_nothing_is_left()


def test_a_cancelled_start_leaves_nothing(tmp_path: Path) -> None:
    bench = Bench(tmp_path, hangs_in_load=True, ignores_term=True)

    async def work() -> None:
        starting = asyncio.create_task(bench.start())
        while not bench.runs:  # noqa: ASYNC110 - it is another process
            await asyncio.sleep(0.01)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting

    run(work())
    bench.assert_nothing_is_left()


def test_a_flood_while_loading_blocks_nothing_and_hides_nothing(tmp_path: Path) -> None:
    bench = Bench(tmp_path, flood_bytes=2 * MIB, devices=(fake.GPU,))

    async def work() -> None:
        engine = await bench.start()
        assert engine.plan.device == "gpu"
        assert sum(map(len, engine.log_tail())) <= 64 * 1024
        await engine.stop()

    run(work())
    bench.assert_nothing_is_left()


class TestStop:
    def test_an_engine_that_ignores_term_is_killed(self, tmp_path: Path) -> None:
        bench = Bench(tmp_path, ignores_term=True)

        async def work() -> None:
            engine = await bench.start()
            await engine.stop()
            await engine.stop()
            assert (await engine.health()).state == "dead"
            assert "SIGKILL" in await engine.wait_dead()

        run(work())
        bench.assert_nothing_is_left()

    def test_clients_are_let_go_first(self, tmp_path: Path) -> None:
        """A stream that is being read gets an error at once, whatever the engine does about TERM."""
        bench = Bench(tmp_path, ignores_term=True, tokens=10_000, token_s=0.01)

        async def work() -> None:
            engine = await bench.start()
            stream = engine.chat(REQUEST)
            await anext(stream)
            loop = asyncio.get_running_loop()
            reading = asyncio.create_task(drain(stream))
            began = loop.time()
            stopping = asyncio.create_task(engine.stop())
            with pytest.raises(EngineFailedError):
                await reading
            assert loop.time() - began < 5
            await stopping

        run(work())
        bench.assert_nothing_is_left()


class TestDeath:
    def test_it_is_noticed_at_once_and_told(self, tmp_path: Path) -> None:
        bench = Bench(tmp_path)

        async def work() -> None:
            engine = await bench.start()
            dead = asyncio.create_task(engine.wait_dead())
            await asyncio.sleep(0)
            began = asyncio.get_running_loop().time()
            os.kill(bench.runs[0].pid, signal.SIGKILL)
            assert "SIGKILL" in await dead
            assert asyncio.get_running_loop().time() - began < 0.5
            assert (await engine.health()).state == "dead"
            await engine.stop()

        run(work())
        bench.assert_nothing_is_left()

    def test_in_the_middle_of_an_answer(self, tmp_path: Path) -> None:
        bench = Bench(tmp_path, tokens=10, dies_after_tokens=2)

        async def work() -> None:
            engine = await bench.start()
            texts: list[str] = []
            with pytest.raises(EngineFailedError, match="SIGKILL") as caught:
                async for batch in engine.chat(REQUEST):
                    texts += [event.text for event in batch if isinstance(event, Text)]
            assert texts == ["t0 ", "t1 "]
            assert caught.value.log_tail
            await engine.stop()

        run(work())
        bench.assert_nothing_is_left()

    def test_a_stalled_engine_is_ended(self, tmp_path: Path) -> None:
        bench = Bench(tmp_path, tokens=10, stalls_after_tokens=1, ignores_term=True, stall_timeout_s=0.3)

        async def work() -> None:
            engine = await bench.start()
            with pytest.raises(EngineTimeoutError, match="no progress"):
                await drain(engine.chat(REQUEST))
            assert "SIGKILL" in await engine.wait_dead()
            await engine.stop()

        run(work())
        bench.assert_nothing_is_left()

    def test_a_process_that_it_started_goes_with_it(self, tmp_path: Path) -> None:
        bench = Bench(tmp_path, grandchild=True)

        async def work() -> None:
            engine = await bench.start()
            await engine.stop()

        run(work())
        pid = int((bench.engines / "grandchild.pid").read_text())
        assert start_mark(pid) is None


async def freeze(pid: int) -> None:
    """Returns when all of its threads stand: the signal alone takes a moment."""
    os.kill(pid, signal.SIGSTOP)
    status = Path(f"/proc/{pid}/stat")
    while status.exists() and status.read_text().rpartition(")")[2].split()[0] != "T":  # noqa: ASYNC110, ASYNC240
        await asyncio.sleep(0.005)


def test_busy_is_not_dead(tmp_path: Path) -> None:
    bench = Bench(tmp_path, tokens=10_000, token_s=0.02)

    async def work() -> None:
        engine = await bench.start(LoadOptions(slots=1))
        stream = engine.chat(REQUEST)
        await anext(stream)
        assert (await engine.health()).state == "busy"
        await stream.aclose()
        await freeze(bench.runs[0].pid)
        frozen = await engine.health()
        assert (frozen.state, "doesn't answer" in frozen.detail) == ("busy", True)
        await engine.stop()

    run(work())
    bench.assert_nothing_is_left()


async def drain(stream: Any) -> None:
    async for _ in stream:
        pass
