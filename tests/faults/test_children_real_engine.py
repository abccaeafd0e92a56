"""The real engine, from the xllamacpp wheel, with real models: starts, is what it says, and leaves nothing."""

from __future__ import annotations

import asyncio
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
from support.llama_models import MIB, driver_for, make_model, real_chat_model

from oprel.drivers import EngineFailedError, EngineStartError
from oprel.drivers.children.processes import start_mark
from oprel.drivers.llama_cpp import LlamaCppDriver
from oprel.drivers.llama_cpp.probe import probe_bundled
from oprel.drivers.registry import Registry
from oprel.schema import (
    ChatRequest,
    EmbedRequest,
    EngineProbe,
    Finish,
    Hardware,
    LoadOptions,
    Message,
    Model,
    ModelFile,
    Plan,
    Sampling,
    Text,
    TextPart,
)

SMALL = LoadOptions(context_tokens=512, slots=2)


class Bundled(LlamaCppDriver):
    """Looks for no llama-server on this machine's PATH."""

    def probe(self) -> tuple[EngineProbe, ...]:
        return (probe_bundled(),)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def driver(run_dir: Path) -> LlamaCppDriver:
    return Bundled(driver_for(run_dir).options)


@pytest.fixture(scope="module")
def hardware(tmp_path_factory: pytest.TempPathFactory) -> Hardware:
    options = driver_for(tmp_path_factory.mktemp("unused")).options
    registry = Registry(options)
    registry.register("llama_cpp", Bundled(options))
    return registry.hardware()


def embedding_model(path: Path, **fields: Any) -> Model:
    chosen = {
        "name": "all-minilm",
        "path": str(path),
        "weights_bytes": path.stat().st_size,
        "context_tokens": 512,
        "embedding_length": 384,
        "layers": 6,
        "kv_bytes_per_token": 9216,
        "chat_template": None,
        "capabilities": frozenset({"embedding"}),
        "pooling": "mean",
    }
    return make_model(**{**chosen, **fields})


def run(work: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(90):
            await work

    asyncio.run(bounded())


def engines_of(parent: int) -> list[int]:
    """The engines among its children; a test run has servers too."""
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return [int(pid) for pid in children if b".sock" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def chat(text: str, *, max_tokens: int = 8) -> ChatRequest:
    sampling = Sampling(max_tokens=max_tokens, temperature=0.0)
    return ChatRequest((Message("user", (TextPart(text),)),), sampling=sampling)


def test_a_chat_model_starts_as_planned(driver: LlamaCppDriver, hardware: Hardware, smollm2_path: Path) -> None:
    plan = driver.plan(real_chat_model(smollm2_path), SMALL, hardware)

    async def work() -> None:
        engine = await driver.start(plan)
        try:
            assert (engine.plan.slots, engine.plan.context_tokens) == (2, 512)
            assert (engine.plan.device, engine.plan.fallbacks) == ("cpu", ())
            # What was planned from metadata alone, against what the engine told.
            assert engine.plan.bytes_total == pytest.approx(plan.bytes_total, rel=0.25)
            assert (engine.memory_bytes() or 0) < 3 * engine.plan.bytes_total
            can = engine.capabilities
            assert (can.chat, can.complete, can.embed, can.tools) == (True, True, False, False)
            events = [event async for batch in engine.chat(chat("Say hi")) for event in batch]
            assert "".join(event.text for event in events if isinstance(event, Text))
            assert isinstance(events[-1], Finish)
            assert (await engine.health()).state == "ready"
        finally:
            await engine.stop()
        assert (await engine.health()).state == "dead"

    run(work())
    assert list(Path(driver.options.run_dir).iterdir()) == []
    if sys.platform == "linux":
        assert engines_of(os.getpid()) == []


def test_an_embedding_model_pools_as_its_file_says(
    driver: LlamaCppDriver, hardware: Hardware, embed_path: Path
) -> None:
    plan = driver.plan(embedding_model(embed_path), LoadOptions(), hardware)

    async def work() -> None:
        engine = await driver.start(plan)
        try:
            assert (engine.capabilities.embed, engine.capabilities.chat) == (True, False)
            assert engine.plan.context_tokens == 512
            answer = await engine.embed(EmbedRequest(("a cat sat on the mat", "a kitten on a rug", "tax law")))
            cat, kitten, tax = answer.vectors
            assert len(cat) == 384
            assert math.isclose(sum(value * value for value in cat), 1.0, abs_tol=1e-3)
            near = sum(map(float.__mul__, cat, kitten))
            assert near > sum(map(float.__mul__, cat, tax)) + 0.2
            # An input that fills the context is one batch.
            await engine.embed(EmbedRequest(("word " * 400,)))
        finally:
            await engine.stop()

    run(work())


def test_pooling_reaches_the_engine(driver: LlamaCppDriver, hardware: Hardware, embed_path: Path) -> None:
    async def vector(pooling: str) -> tuple[float, ...]:
        plan = driver.plan(embedding_model(embed_path, pooling=pooling), LoadOptions(slots=1), hardware)
        engine = await driver.start(plan)
        try:
            return (await engine.embed(EmbedRequest(("a cat sat on the mat",)))).vectors[0]
        finally:
            await engine.stop()

    async def work() -> None:
        assert await vector("cls") != await vector("mean")

    run(work())


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"junk" * 100, "isn't GGUF"), (None, "damaged or incomplete")],
    ids=["junk", "truncated"],
)
def test_a_file_that_is_no_model_leaves_nothing(
    driver: LlamaCppDriver, hardware: Hardware, smollm2_path: Path, tmp_path: Path, content: bytes | None, said: str
) -> None:
    path = tmp_path / "model"
    with smollm2_path.open("rb") as file:
        path.write_bytes(content or file.read(8 * MIB))
    files = (ModelFile("weights", str(path), "ab" * 32, path.stat().st_size),)
    plan = driver.plan(make_model(name="broken", files=files, context_tokens=512), SMALL, hardware)

    async def work() -> None:
        with pytest.raises(EngineStartError, match="'broken'") as caught:
            await driver.start(plan)
        assert caught.value.cause == "model"
        assert said in caught.value.message
        assert caught.value.log_tail

    run(work())
    assert list(Path(driver.options.run_dir).iterdir()) == []


def test_a_chat_template_that_does_not_parse(driver: LlamaCppDriver, hardware: Hardware, smollm2_path: Path) -> None:
    options = LoadOptions(context_tokens=512, slots=1, chat_template="{% for x in %}")
    plan = driver.plan(real_chat_model(smollm2_path), options, hardware)

    async def work() -> None:
        with pytest.raises(EngineStartError, match="the chat template can't be used"):
            await driver.start(plan)

    run(work())


def test_an_engine_that_is_killed_in_mid_answer_says_so(
    driver: LlamaCppDriver, hardware: Hardware, smollm2_path: Path
) -> None:
    plan: Plan = driver.plan(real_chat_model(smollm2_path), SMALL, hardware)

    async def work() -> None:
        engine = await driver.start(plan)
        loop = asyncio.get_running_loop()
        stream = engine.chat(chat("Tell me a long story", max_tokens=400))
        try:
            async for batch in stream:
                if any(isinstance(event, Text) for event in batch):
                    break
            (pid,) = engines_of(os.getpid())
            began = loop.time()
            os.kill(pid, signal.SIGKILL)
            with pytest.raises(EngineFailedError, match="SIGKILL"):
                async for _ in stream:
                    pass
            assert loop.time() - began < 1
            assert "SIGKILL" in await engine.wait_dead()
        finally:
            await stream.aclose()
            await engine.stop()

    run(work())


PARENT = """
import asyncio, sys
import msgspec
from oprel.drivers import DriverOptions
from oprel.drivers.llama_cpp import LlamaCppDriver
from oprel.schema import Plan

async def main():
    plan = msgspec.json.decode(sys.stdin.buffer.read(), type=Plan)
    engine = await LlamaCppDriver(DriverOptions(run_dir=sys.argv[1])).start(plan)
    print("ready", flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc to find the engine")
def test_a_parent_that_is_killed_leaves_no_engine(
    driver: LlamaCppDriver, hardware: Hardware, smollm2_path: Path, run_dir: Path
) -> None:
    import msgspec

    plan = driver.plan(real_chat_model(smollm2_path), SMALL, hardware)
    command = (sys.executable, "-c", PARENT, str(run_dir))
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        try:
            assert parent.stdin is not None
            assert parent.stdout is not None
            parent.stdin.write(msgspec.json.encode(plan))
            parent.stdin.close()
            assert parent.stdout.readline() == b"ready\n"
            engines = engines_of(parent.pid)
            assert len(engines) == 1
        finally:
            parent.kill()
    deadline = time.monotonic() + 1
    while left := [pid for pid in engines if start_mark(pid) is not None]:
        if time.monotonic() > deadline:
            for pid in left:
                os.kill(pid, signal.SIGKILL)
            pytest.fail(f"{left} outlived their parent by a second")
        time.sleep(0.01)
