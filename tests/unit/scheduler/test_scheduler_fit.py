"""Budgets, and what a plan is told of the machine."""

from __future__ import annotations

from typing import Any

import pytest

from oprel.config import Settings
from oprel.scheduler import fit
from oprel.scheduler.state import Family, Limits, Resident
from oprel.schema import Device, EngineProbe, Gpu, Hardware, LoadOptions, Plan
from oprel.testing import scripted_model

GIB = 1024**3
MACHINE = Hardware(
    system="Linux",
    machine="x86_64",
    cores=8,
    threads=16,
    ram_total_bytes=32 * GIB,
    ram_available_bytes=20 * GIB,
    gpus=(
        Gpu(0, "A", "nvidia", 24 * GIB, 22 * GIB, "nvml"),
        Gpu(0, "B", "amd", 16 * GIB, 15 * GIB, "sysfs"),
    ),
    engines=(
        EngineProbe("llama_cpp", "llama-server", ("x",), devices=(Device("CUDA0", "A", 24 * GIB, 21 * GIB),)),
        EngineProbe("llama_cpp", "xllamacpp", ("y",), devices=(Device("Vulkan0", "iGPU", 8 * GIB, 8 * GIB, True),)),
    ),
)


def resident(threads: int = 4, *, phase: Any = "ready", measured: int | None = None, **sizes: int) -> Resident:
    plan = Plan(
        driver="d",
        engine="e",
        model="m",
        model_digest="m",
        files=(),
        options=LoadOptions(),
        gpu_layers=0,
        layers=None,
        bytes_by_device=tuple(sizes.items()),
        context_tokens=4096,
        slots=1,
        threads=threads,
        argv=(),
    )
    options = LoadOptions()
    return Resident(Family("d", ()), 1, "m", options, 300.0, phase=phase, plan=plan, measured_bytes=measured)


def test_the_budget_is_what_is_free_and_an_integrated_gpu_has_none() -> None:
    assert dict(fit.budget_of(MACHINE)) == {"cpu": 20 * GIB, "CUDA0": 21 * GIB}


def test_settings_become_limits() -> None:
    limits = fit.limits_of(Settings(memory_limit_bytes=5, max_loaded=2, max_queue=3, keep_alive=4, load_timeout=6))
    assert limits == Limits((), 5, 2, 3, 4, 60)


@pytest.mark.parametrize("phase", ["starting", "ready", "stopping"])
def test_an_engine_counts_until_it_has_ended(phase: str) -> None:
    assert fit.charge(resident(phase=phase, cpu=10)) == {"cpu": 10}


@pytest.mark.parametrize("phase", ["planning", "room"])
def test_an_engine_counts_for_nothing_before_it_starts(phase: str) -> None:
    assert fit.charge(resident(phase=phase, cpu=10)) == {}


def test_what_was_measured_counts_only_where_it_is_more() -> None:
    assert fit.charge(resident(cpu=10, measured=5)) == {"cpu": 10}
    assert fit.charge(resident(CUDA0=10, measured=5)) == {"cpu": 5, "CUDA0": 10}


def test_a_device_without_a_budget_has_no_limit() -> None:
    plan = resident(cpu=1, Strange0=10**15).known_plan
    assert not fit.deficit(plan, fit.free(Limits(budget=(("cpu", 2),)), ()))


def test_planning_sees_what_the_others_leave() -> None:
    limits = fit.with_budget(Limits(), fit.budget_of(MACHINE))
    seen = fit.seen_free(MACHINE, fit.free(limits, [resident(cpu=2 * GIB, CUDA0=20 * GIB)]))
    assert seen.ram_available_bytes == 18 * GIB
    assert seen.engines[0].devices[0].free_bytes == GIB
    assert [gpu.free_bytes for gpu in seen.gpus] == [GIB, 15 * GIB]


def test_planning_sees_the_bound_on_the_sum_everywhere_and_nothing_below_nothing() -> None:
    limits = Limits(budget=fit.budget_of(MACHINE), total_bytes=3 * GIB)
    seen = fit.seen_free(MACHINE, fit.free(limits, [resident(cpu=GIB)]))
    assert seen.ram_available_bytes == 2 * GIB
    assert seen.engines[0].devices[0].free_bytes == 2 * GIB
    assert fit.seen_free(MACHINE, {"cpu": -5}).ram_available_bytes == 0


@pytest.mark.parametrize(
    ("asked", "taken", "expected"),
    [
        pytest.param(None, (), None, id="alone: the driver plans"),
        pytest.param(None, (3,), 5, id="what is left"),
        pytest.param(None, (8,), 4, id="an equal share where nothing is left"),
        pytest.param(None, (8,) * 20, 1, id="at least one"),
        pytest.param(6, (8,), 6, id="what was asked for"),
    ],
)
def test_threads_beside_other_engines(asked: int | None, taken: tuple[int, ...], expected: int | None) -> None:
    others = [resident(threads=threads) for threads in taken]
    assert fit.threads_beside(LoadOptions(threads=asked), others, MACHINE).threads == expected


def test_a_models_own_parameters_stand_between_the_request_and_the_settings() -> None:
    model = scripted_model(parameters=(("num_ctx", 2048), ("num_gpu", 3)))
    merged = fit.merged(LoadOptions(gpu_layers=1), Settings(context=512, gpu_layers=9, parallel=2), model)
    assert (merged.context_tokens, merged.gpu_layers, merged.slots) == (2048, 1, 2)
