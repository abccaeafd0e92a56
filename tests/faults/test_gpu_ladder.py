"""A GPU that fails at start: all layers, then fewer, then the CPU, each time with the real engine's last words."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from support import fake_llama_server as fake
from support.llama_models import MIB, driver_for, make_hardware, make_model

from oprel.drivers import EngineStartError
from oprel.drivers.children.processes import start_mark
from oprel.schema import LoadOptions, Plan

MODEL = make_model(name="small", weights_bytes=90 * MIB, context_tokens=2048, embedding_length=576, layers=30)


def climb_down(
    folder: Path, options: LoadOptions | None = None, *, devices: tuple[str, ...] = (fake.GPU,), **script: Any
) -> tuple[Plan, list[EngineStartError]]:
    """What the scheduler does: the plan, then its fallbacks in order. The realized plan and the errors before it."""
    driver = driver_for(folder / "run", executable=fake.install(folder / "bin", devices=devices, **script))
    plan = driver.plan(MODEL, options or LoadOptions(), make_hardware(*driver.probe()))
    errors: list[EngineStartError] = []

    async def work() -> Plan:
        for rung in (plan, *plan.fallbacks):
            try:
                engine = await driver.start(rung)
            except EngineStartError as error:
                assert list((folder / "run").iterdir()) == []
                errors.append(error)
                continue
            await engine.stop()
            return engine.plan
        raise AssertionError("no rung held")

    realized = asyncio.run(asyncio.wait_for(work(), 30))
    assert [run.pid for run in fake.runs(folder / "bin") if start_mark(run.pid) is not None] == []
    return realized, errors


def layers_tried(folder: Path) -> list[str | None]:
    return [run.option("--gpu-layers") for run in fake.runs(folder / "bin")]


def test_a_gpu_that_works_takes_everything(tmp_path: Path) -> None:
    realized, errors = climb_down(tmp_path)
    assert not errors
    assert (realized.device, realized.gpu_layers) == ("gpu", 31)
    assert dict(realized.bytes_by_device)["CUDA0"] == 31 * 3 * MIB
    assert "gpu_fallback" not in dict(realized.reasons)


def test_fewer_layers_come_before_the_cpu(tmp_path: Path) -> None:
    realized, errors = climb_down(tmp_path, gpu_layers_max=20)
    assert layers_tried(tmp_path) == ["auto", "15"]
    assert [error.cause for error in errors] == ["gpu"]
    assert "not enough free memory" in errors[0].message
    assert "cudaMalloc failed: out of memory" in " ".join(errors[0].log_tail)
    assert (realized.device, realized.gpu_layers) == ("gpu+cpu", 15)
    assert "15 of 31 layers" in dict(realized.reasons)["fallback"]


@pytest.mark.parametrize(
    ("failure", "said"), [("oom", "enough free memory"), ("busy", "busy or unavailable"), ("no_kernel", "doesn't suit")]
)
def test_the_cpu_comes_last(tmp_path: Path, failure: str, said: str) -> None:
    realized, errors = climb_down(tmp_path, gpu_layers_max=0, gpu_failure=failure)
    assert layers_tried(tmp_path) == ["auto", "15", "0"]
    assert [error.cause for error in errors] == ["gpu", "gpu"]
    assert all(said in error.message for error in errors)
    assert (realized.device, realized.gpu_layers, realized.bytes_on_gpu) == ("cpu", 0, 0)
    assert "on the CPU" in dict(realized.reasons)["fallback"]
    assert fake.runs(tmp_path / "bin")[-1].environment["CUDA_VISIBLE_DEVICES"] == ""


def test_an_engine_that_gives_up_the_gpu_by_itself_is_found_out(tmp_path: Path) -> None:
    """llama-server goes on without a GPU that it can't initialize: ready, but not as planned."""
    realized, errors = climb_down(tmp_path, gpu_failure="lost")
    assert not errors
    assert (realized.device, realized.gpu_layers, realized.bytes_on_gpu) == ("cpu", 0, 0)
    assert "no CUDA-capable device is detected" in dict(realized.reasons)["gpu_fallback"]


def test_layers_that_were_asked_for_climb_down_too(tmp_path: Path) -> None:
    realized, _ = climb_down(tmp_path, LoadOptions(gpu_layers=24), gpu_layers_max=11)
    assert layers_tried(tmp_path) == ["24", "12", "0"]
    assert realized.device == "cpu"


def test_a_cpu_that_was_asked_for_is_no_fallback(tmp_path: Path) -> None:
    realized, errors = climb_down(tmp_path, LoadOptions(gpu_layers=0), gpu_layers_max=0)
    assert not errors
    assert realized.device == "cpu"
    assert "gpu_fallback" not in dict(realized.reasons)


def test_memory_that_runs_out_costs_half_of_the_context(tmp_path: Path) -> None:
    realized, errors = climb_down(tmp_path, devices=(), tokens_max=5000)
    assert [error.cause for error in errors] == ["memory"]
    assert (realized.slots, realized.context_tokens) == (4, 1024)


def test_a_context_that_was_asked_for_is_not_halved(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="no rung held"):
        climb_down(tmp_path, LoadOptions(context_tokens=2048), devices=(), tokens_max=5000)
    assert len(fake.runs(tmp_path / "bin")) == 1
