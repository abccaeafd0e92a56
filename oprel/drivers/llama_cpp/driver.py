"""The llama.cpp driver: what Oprel runs GGUF files on."""

from __future__ import annotations

from oprel.drivers.contract import Driver, Engine
from oprel.drivers.llama_cpp.plan import make_plan
from oprel.drivers.llama_cpp.probe import DRIVER, LLAMA_SERVER, probe_engines
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

__all__ = ["LlamaCppDriver"]


class LlamaCppDriver(Driver):
    """Runs the configured llama-server, else the one on PATH, else the one inside the xllamacpp wheel."""

    name = DRIVER
    can = Capabilities(
        chat=True,
        complete=True,
        embed=True,
        rerank=True,
        vision=True,
        audio=True,
        tools=True,
        thinking=True,
        json_schema=True,
        grammar=True,
        logprobs=True,
        infill=True,
        lora=True,
        tokenize=True,
        prefill=True,
        sampling=ALL_SAMPLING,
    )

    def probe(self) -> tuple[EngineProbe, ...]:
        return probe_engines(dict(self.options.executables).get(LLAMA_SERVER))

    def availability(self, hardware: Hardware) -> Availability:
        usable = _usable(hardware)
        if usable is not None:
            return Availability(usable=True, reason=f"{_named(usable)}{_passed_over(hardware)}")
        return Availability(usable=False, reason=_why_none(hardware))

    def supports(self, model: Model) -> Support:
        if model.damage is not None:
            return Support(supported=False, reason=f"the model is damaged: {model.damage}")
        if model.format != "gguf":
            return Support(supported=False, reason=f"it runs GGUF files, and this model's format is {model.format!r}")
        if not any(file.role == "weights" for file in model.files):
            return Support(supported=False, reason="the model has no weights")
        return Support(supported=True, reason="it runs GGUF files")

    def plan(self, model: Model, options: LoadOptions, hardware: Hardware) -> Plan:
        if model.damage is not None:
            raise ModelDamagedError(f"{model.name!r} can't be loaded: {model.damage}.", model=model.name)
        support = self.supports(model)
        if not support.supported:
            raise UnsupportedError(
                f"{model.name!r} can't run on llama.cpp: {support.reason}.",
                capability="format",
                model=model.name,
                driver=self.name,
            )
        usable = _usable(hardware)
        if usable is None:
            raise DriverUnavailableError(f"llama.cpp can't be used: {_why_none(hardware)}.", driver=self.name)
        return make_plan(model, options, hardware, usable)

    async def start(self, plan: Plan) -> Engine:
        # The HTTP client's imports are for those who start something.
        from oprel.drivers.llama_cpp.start import start_engine

        return await start_engine(plan, self.options)


def _probes(hardware: Hardware) -> tuple[EngineProbe, ...]:
    return tuple(probe for probe in hardware.engines if probe.driver == DRIVER)


def _usable(hardware: Hardware) -> EngineProbe | None:
    return next((probe for probe in _probes(hardware) if probe.problem is None), None)


def _named(probe: EngineProbe) -> str:
    where = probe.command[0] if probe.engine == LLAMA_SERVER else "bundled"
    devices = ", ".join(device.id for device in probe.devices) or "no GPU"
    return f"{probe.engine} {probe.version}".strip() + f" ({where}; {devices})"


def _passed_over(hardware: Hardware) -> str:
    problems = [probe.problem for probe in _probes(hardware) if probe.problem is not None]
    return f"; passed over: {'; '.join(problems)}" if problems else ""


def _why_none(hardware: Hardware) -> str:
    problems = [probe.problem for probe in _probes(hardware) if probe.problem is not None]
    return "; ".join(problems) or "its engines haven't been looked for on this machine"
