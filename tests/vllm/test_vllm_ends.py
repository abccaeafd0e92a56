"""How a real vLLM ends: with Oprel, without it, and before it was ready."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest
from support.servers import RealServer, descendants, is_alive, real_server, wait_until
from support.vllm_real import LOAD_LIMIT_S, tiny_folder

from oprel.drivers import DriverOptions, EngineStartError
from oprel.drivers.vllm import VllmDriver
from oprel.hardware import detect_hardware
from oprel.schema import LoadOptions, Model, Plan
from oprel.store import Trees


@pytest.fixture
def trees(tmp_path: Path) -> Trees:
    trees = Trees(tmp_path / "trees", state_dir=tmp_path / "state")
    trees.add(tiny_folder(), "tiny")
    return trees


def serve(python: Path, trees: Trees, **more: object):  # type: ignore[no-untyped-def]
    environ = {"OPREL_VLLM_PYTHON": str(python), "OPREL_TREES_DIR": str(trees.trees_dir)}
    flags = ("--driver", "vllm", "--model", "tiny", "--context", "512")
    return real_server(*flags, environ=environ, start_limit_s=LOAD_LIMIT_S, **more)  # type: ignore[arg-type]


def its_processes(server: RealServer) -> list[int]:
    found = descendants(server.process.pid)
    assert len(found) >= 4, "the shim, the server, its engine and its worker"
    return found


def test_nothing_outlives_a_server_that_is_killed(python: Path, trees: Trees) -> None:
    """Nobody is left to stop them, and vLLM's own processes would live on."""
    with serve(python, trees, expect_clean=False) as server:
        left = its_processes(server)
        server.process.send_signal(signal.SIGKILL)
        server.process.wait(10)
        wait_until(lambda: not any(is_alive(pid) for pid in left), what=f"the processes {left} to be gone")


@pytest.mark.vllm_full
@pytest.mark.parametrize("which", ["server", "worker"])
def test_a_part_that_dies_takes_the_rest_along(python: Path, trees: Trees, which: str) -> None:
    with serve(python, trees, expect_clean=False) as server:
        left = its_processes(server)
        victim = left[1] if which == "server" else left[-1]
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda: not any(is_alive(pid) for pid in left), limit_s=60, what=f"the processes {left} to be gone")


def plan_of(driver: VllmDriver, model: Model, **options: object) -> Plan:
    hardware = msgspec.structs.replace(detect_hardware(), engines=driver.probe())
    return driver.plan(model, LoadOptions(context_tokens=512, slots=2, **options), hardware)  # type: ignore[arg-type]


def refusal(driver: VllmDriver, plan: Plan) -> EngineStartError:
    async def start() -> None:
        async with asyncio.timeout(LOAD_LIMIT_S):
            engine = await driver.start(plan)
            with suppress(Exception):
                await engine.stop()

    with pytest.raises(EngineStartError) as caught:
        asyncio.run(start())
    return caught.value


WRONG: dict[str, tuple[tuple[str, ...], str, str]] = {
    "an option that it doesn't know": (("--no-such-option",), "engine", "command line"),
    "a context that the model hasn't": (("--max-model-len", "999999"), "model", "not that much context"),
    "a quantization that it isn't in": (("--quantization", "awq"), "model", "quantization"),
}


@pytest.mark.vllm_full
@pytest.mark.parametrize(("words", "cause", "said"), WRONG.values(), ids=WRONG.keys())
def test_what_it_rejects_is_one_sentence(
    python: Path, trees: Trees, tmp_path: Path, words: tuple[str, ...], cause: str, said: str
) -> None:
    run_dir = tmp_path / "run"
    driver = VllmDriver(DriverOptions(run_dir=str(run_dir), executables=(("vllm", str(python)),)))
    model = trees.find("tiny")
    assert model is not None
    plan = plan_of(driver, model)
    error = refusal(driver, msgspec.structs.replace(plan, argv=(*plan.argv, *words)))
    assert error.cause == cause
    assert said in error.message
    assert "\n" not in error.message
    assert error.log_tail
    assert list(run_dir.iterdir()) == []


@pytest.mark.vllm_full
def test_no_room_for_the_cache_is_memory(python: Path, trees: Trees, tmp_path: Path) -> None:
    driver = VllmDriver(DriverOptions(run_dir=str(tmp_path / "run"), executables=(("vllm", str(python)),)))
    model = trees.find("tiny")
    assert model is not None
    plan = plan_of(driver, model)
    environment = tuple((name, "0" if name == "VLLM_CPU_KVCACHE_SPACE" else value) for name, value in plan.environment)
    error = refusal(driver, msgspec.structs.replace(plan, environment=environment))
    assert error.cause == "memory", error.message
