"""The drivers `exllamav2` and `exllamav3`: one implementation, two flavours."""

from __future__ import annotations

from typing import ClassVar

from oprel.drivers.contract import Driver, Engine
from oprel.drivers.exllama.flavour import EXLLAMA, EXLLAMAV2, EXLLAMAV3, Flavour, quantization_of
from oprel.drivers.exllama.options import ExllamaOptions
from oprel.drivers.exllama.plan import gpus_of, make_plan
from oprel.drivers.exllama.probe import probe_environment
from oprel.errors import DriverUnavailableError, ModelDamagedError, UnsupportedError
from oprel.schema import (
    ALL_SAMPLING,
    Availability,
    Capabilities,
    EngineProbe,
    Hardware,
    LoadOptions,
    Model,
    Plan,
    Support,
)

__all__ = ["ExllamaV2Driver", "ExllamaV3Driver"]


class _ExllamaDriver(Driver):
    flavour: ClassVar[Flavour]
    # JSON and grammars need a library beside the engine, which only the engine can tell.
    can = Capabilities(chat=True, complete=True, logprobs=True, tokenize=True, sampling=ALL_SAMPLING)

    def probe(self) -> tuple[EngineProbe, ...]:
        return (probe_environment(self.flavour, dict(self.options.executables).get(EXLLAMA)),)

    def availability(self, hardware: Hardware) -> Availability:
        problem = self._problem(hardware)
        if problem is not None:
            return Availability(usable=False, reason=problem)
        probe = self._probe_of(hardware)
        assert probe is not None  # noqa: S101 - a missing one is a problem
        names = ", ".join(gpu.name for gpu in gpus_of(hardware))
        return Availability(usable=True, reason=f"{self.name} {probe.version} ({probe.command[0]}; {names})")

    def supports(self, model: Model) -> Support:
        refusal = self._refusal(model)
        if refusal is not None:
            return Support(supported=False, reason=refusal)
        return Support(supported=True, reason=f"it runs {quantization_of(model)} weights")

    def plan(self, model: Model, options: LoadOptions, hardware: Hardware) -> Plan:
        if model.damage is not None:
            raise ModelDamagedError(f"{model.name!r} can't be loaded: {model.damage}.", model=model.name)
        if (refusal := self._refusal(model)) is not None:
            raise UnsupportedError(
                f"{model.name!r} can't run on {self.name}: {refusal}.",
                capability="format",
                model=model.name,
                driver=self.name,
            )
        probe = self._probe_of(hardware)
        if probe is None or (problem := self._problem(hardware)) is not None:
            why = problem if probe is not None else self._problem(hardware)
            raise DriverUnavailableError(f"{self.name} can't be used: {why}.", driver=self.name)
        return make_plan(model, options, hardware, probe, flavour=self.flavour, own=self._own_options())

    async def start(self, plan: Plan) -> Engine:
        # The HTTP client's imports are for those who start something.
        from oprel.drivers.exllama.start import start_engine

        return await start_engine(plan, self.options, self._own_options())

    def _own_options(self) -> ExllamaOptions:
        return ExllamaOptions.parse(dict(self.options.tables).get(EXLLAMA, {}))

    def _probe_of(self, hardware: Hardware) -> EngineProbe | None:
        return next((probe for probe in hardware.engines if probe.driver == self.name), None)

    def _problem(self, hardware: Hardware) -> str | None:
        """Why it can't be used on this machine; None: it can."""
        probe = self._probe_of(hardware)
        if probe is None:
            return "its environment hasn't been looked for on this machine"
        if probe.problem is not None:
            return probe.problem
        if not gpus_of(hardware):
            return f"{self.name} runs on CUDA only, and no NVIDIA GPU was found on this machine"
        return None

    def _refusal(self, model: Model) -> str | None:
        if model.damage is not None:
            return f"the model is damaged: {model.damage}"
        found = quantization_of(model)
        takes = ", ".join(self.flavour.takes)
        if found is None:
            return f"it runs folders of {takes} weights, and this model's format is {model.format!r}"
        if found not in self.flavour.takes:
            return f"it runs {takes} weights, and this model's are {found}"
        if getattr(model, "own_code", False):
            return "the model wants Python code of its own, which is never run"
        if model.is_embedding:
            return "it makes no embeddings"
        if not any(file.role == "weights" for file in model.files):
            return "the model has no weights"
        return None


class ExllamaV2Driver(_ExllamaDriver):
    """EXL2, GPTQ and FP16, on exllamav2."""

    name = EXLLAMAV2.name
    flavour = EXLLAMAV2


class ExllamaV3Driver(_ExllamaDriver):
    """EXL3 and FP16, on exllamav3."""

    name = EXLLAMAV3.name
    flavour = EXLLAMAV3
