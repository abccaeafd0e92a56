"""What the contract asks of a driver and its plans, before anything is started."""

from __future__ import annotations

import time

import msgspec
import pytest

from oprel.drivers import (
    CONTRACT_VERSION,
    DriverOptions,
    OprelError,
)
from oprel.schema import (
    Availability,
    EngineProbe,
    Hardware,
    LoadOptions,
    Model,
    Plan,
    Support,
)
from oprel.testing.subject import Bench, Subject

__all__ = ["DriverRules"]

_BARE_MACHINE = Hardware("Nowhere", "none", cores=1, threads=1, ram_total_bytes=0, ram_available_bytes=0)


class DriverRules:
    """Tests that ask a driver, and look at its plans."""

    def test_it_says_what_it_is(self, bench: Bench) -> None:
        """`contract` is this version, `name` a plain word."""
        assert bench.driver.contract == CONTRACT_VERSION
        assert bench.driver.name.isidentifier()

    def test_making_it_does_nothing(self, bench: Bench, subject: Subject) -> None:
        """A driver that is only made has started nothing and written nothing."""
        before = bench.remains()
        subject.make(DriverOptions(run_dir=str(bench.run_dir)))
        assert bench.remains() == before

    def test_probing_never_raises(self, bench: Bench) -> None:
        """A problem is a field of the probe, with what to do about it."""
        probes = bench.driver.probe()
        assert all(isinstance(probe, EngineProbe) for probe in probes)
        assert all(probe.driver == bench.driver.name for probe in probes)
        assert all(probe.problem is None or len(probe.problem) > 10 for probe in probes)

    @pytest.mark.parametrize("machine", ["this machine", "a bare machine"])
    def test_availability_is_fast_and_never_raises(self, bench: Bench, machine: str) -> None:
        """It answers from data, with a reason, whatever the machine is."""
        hardware = bench.hardware if machine == "this machine" else _BARE_MACHINE
        began = time.perf_counter()
        available = bench.driver.availability(hardware)
        assert time.perf_counter() - began < 0.5
        assert isinstance(available, Availability)
        assert available.reason
        if machine == "this machine":
            assert available.usable, f"the subject's driver must be usable here: {available.reason}"

    def test_support_is_decided_from_metadata_alone(self, bench: Bench, any_model: Model) -> None:
        """The files need not even exist."""
        for model in (any_model, _elsewhere(any_model)):
            support = bench.driver.supports(model)
            assert isinstance(support, Support)
            assert support.supported, support.reason
        other = bench.driver.supports(msgspec.structs.replace(any_model, format="punched-cards"))
        assert not other.supported
        assert other.reason

    def test_planning_is_pure(self, bench: Bench, any_model: Model) -> None:
        """The same question has the same answer, no file is touched, and nothing is started."""
        before = bench.remains()
        first, second = bench.plan(any_model), bench.plan(any_model)
        assert first == second
        assert _layout(bench.plan(_elsewhere(any_model))) == _layout(first)
        assert bench.remains() == before

    def test_a_plan_explains_itself(self, bench: Bench, any_model: Model) -> None:
        """A reason for each choice, memory by device, and nothing that can't be written down."""
        plan = bench.plan(any_model)
        for step in (plan, *plan.fallbacks):
            _check_plan(step, bench, any_model)
            assert not step.fallbacks or step is plan, "fallbacks have none of their own"
        assert msgspec.json.encode(plan)

    def test_a_plan_does_what_was_asked(self, bench: Bench, chat_model: Model) -> None:
        """Context and slots that are asked for are planned, as far as the model goes."""
        plan = bench.plan(chat_model, LoadOptions(context_tokens=512, slots=1))
        if plan.device == "remote":
            pytest.skip("it is loaded elsewhere, as it is")
        assert (plan.context_tokens, plan.slots) == (512, 1)
        trained = chat_model.context_tokens
        if trained is not None:
            assert bench.plan(chat_model, LoadOptions(context_tokens=trained + 1)).context_tokens <= trained

    def test_where_there_is_no_plan_an_error_says_so(self, bench: Bench, any_model: Model) -> None:
        """One of the errors of the tree, and no other exception."""
        unsupported = msgspec.structs.replace(any_model, format="punched-cards")
        with pytest.raises(OprelError):
            bench.driver.plan(unsupported, LoadOptions(), bench.hardware)


def _check_plan(plan: Plan, bench: Bench, model: Model) -> None:
    assert plan.driver == bench.driver.name
    assert plan.model == model.name
    assert plan.model_digest == model.digest
    assert plan.slots >= 1
    assert plan.context_tokens >= 1
    assert plan.threads >= 0
    assert plan.embedding == model.is_embedding
    assert plan.device in ("cpu", "gpu", "gpu+cpu", "remote")
    assert all(device and size >= 0 for device, size in plan.bytes_by_device)
    assert plan.reasons
    assert all(subject and sentence for subject, sentence in plan.reasons)


def _layout(plan: Plan) -> tuple[object, ...]:
    return plan.gpu_layers, plan.bytes_by_device, plan.context_tokens, plan.slots, plan.threads, plan.device


def _elsewhere(model: Model) -> Model:
    """The same model, with files that don't exist."""
    files = tuple(msgspec.structs.replace(file, path=f"/nowhere/{file.digest}") for file in model.files)
    return msgspec.structs.replace(model, files=files)
