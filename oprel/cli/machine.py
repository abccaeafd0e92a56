"""What this machine has and what would be done with it: `info`, `plan`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from oprel.cli.common import settings_of
from oprel.cli.drivers import tell_drivers
from oprel.cli.terminal import Terminal, size

if TYPE_CHECKING:
    from oprel.drivers.prospects import Prospect
    from oprel.schema import Hardware, Plan

__all__ = ["add_commands"]

_PLAN_SETTINGS = (
    "driver", "context", "parallel", "gpu_layers", "models_dir", "llama_server", "vllm_python", "trees_dir",
)  # fmt: skip


def add_commands(commands: Any) -> None:
    info = commands.add_parser("info", help="this machine's hardware, and the drivers: usable or why not")
    info.add_argument("--json", action="store_true", help="as JSON")
    info.set_defaults(command=_info)

    plan = commands.add_parser("plan", help="what loading a model would do, and why, without doing it")
    plan.add_argument("model", metavar="MODEL")
    plan.add_argument("--driver", metavar="NAME")
    plan.add_argument("--context", metavar="TOKENS")
    plan.add_argument("--parallel", metavar="N")
    plan.add_argument("--gpu-layers", metavar="N")
    plan.add_argument("--models-dir", metavar="DIR")
    plan.add_argument("--llama-server", metavar="PATH")
    plan.add_argument("--vllm-python", metavar="PATH")
    plan.add_argument("--trees-dir", metavar="DIR")
    plan.add_argument("--json", action="store_true", help="as JSON")
    plan.set_defaults(command=_plan)


def _info(arguments: argparse.Namespace, terminal: Terminal) -> None:
    import msgspec

    from oprel.server.compose import make_registry
    from oprel.server.opening import unused_gpus

    settings = settings_of(arguments)
    registry = make_registry(settings)
    hardware, states = registry.hardware(), registry.states()
    if arguments.json:
        terminal.json({"hardware": msgspec.to_builtins(hardware), "drivers": msgspec.to_builtins(states)})
        return
    for fact, value in _facts(hardware, settings):
        terminal.answer(f"{fact:<10}{value}")
    for warning in unused_gpus(hardware):
        terminal.answer(warning)
    tell_drivers(states, terminal)


def _facts(hardware: Hardware, settings: Any) -> list[tuple[str, str]]:
    ram = f"{size(hardware.ram_available_bytes)} free of {size(hardware.ram_total_bytes)}"
    facts = [
        ("system", f"{hardware.system} {hardware.machine}"),
        ("CPU", f"{hardware.cores} cores, {hardware.threads} threads"),
        ("RAM", ram),
    ]
    for gpu in hardware.gpus:
        free = f"{size(gpu.free_bytes)} free of {size(gpu.total_bytes)}"
        facts.append((f"GPU {gpu.index}", f"{gpu.name} ({gpu.vendor}), {free}"))
    if not hardware.gpus:
        facts.append(("GPU", "none was found"))
    for probe in hardware.engines:
        state = probe.problem or f"{probe.version}, {', '.join(device.name for device in probe.devices) or 'CPU'}"
        facts.append(("engine", f"{probe.driver}: {probe.engine} {state}"))
    facts += [("note", note) for note in hardware.notes]
    facts.append(("store", str(settings.models_dir)))
    facts += [("store", f"{folder} (read only)") for folder in settings.extra_models_dirs]
    return facts


def _plan(arguments: argparse.Namespace, terminal: Terminal) -> None:
    import msgspec

    from oprel.drivers.prospects import look_ahead
    from oprel.errors import OprelError
    from oprel.scheduler.fit import merged
    from oprel.schema import LoadOptions
    from oprel.server.compose import make_catalog, make_registry

    settings = settings_of(arguments, *_PLAN_SETTINGS)
    model = make_catalog(settings).find(arguments.model)
    registry = make_registry(settings)
    options = merged(LoadOptions(), settings, model)
    prospect = look_ahead(registry, model, registry.hardware(), options=options, wanted=settings.driver)
    if arguments.json:
        told = {} if prospect.plan is None else msgspec.to_builtins(prospect.plan)
        told |= {
            "driver": prospect.driver,
            "driver_reason": prospect.reason,
            "other_drivers": dict(prospect.others),
            "capabilities": prospect.capabilities.names,
            "sampling": sorted(prospect.capabilities.sampling),
            "problem": prospect.problem,
        }
        terminal.json(told)
    else:
        _tell_prospect(prospect, model.name, terminal)
    if prospect.problem is not None:
        raise OprelError(prospect.problem)


def _tell_prospect(prospect: Prospect, model: str, terminal: Terminal) -> None:
    facts = [
        ("model", model),
        ("driver", f"{prospect.driver} ({prospect.reason})" if prospect.driver else f"none: {prospect.reason}"),
        *((f"not {name}", reason) for name, reason in prospect.others),
        ("can", ", ".join(prospect.capabilities.names) or "nothing that is known"),
    ]
    if prospect.plan is not None:
        facts += _plan_facts(prospect.plan)
    elif prospect.driver is not None:
        facts.append(("no plan", prospect.problem or ""))
    width = max(len(fact) for fact, _ in facts) + 2
    for fact, value in facts:
        terminal.answer(f"{fact:<{width}}{value}")


def _plan_facts(plan: Plan) -> list[tuple[str, str]]:
    layers = f"{plan.gpu_layers} of {plan.layers}" if plan.layers is not None else str(plan.gpu_layers)
    fallbacks = enumerate(plan.fallbacks, 1)
    return [
        ("engine", plan.engine),
        *(("file", f"{file.path} ({file.role}, {size(file.size_bytes)})") for file in plan.files),
        ("device", plan.device),
        *((("layers", f"{layers} on the GPU"),) if plan.remote is None else ()),
        *(("memory", f"{device}: {size(count)}") for device, count in plan.bytes_by_device),
        ("context", f"{plan.context_tokens} tokens for each of {plan.slots} slots"),
        *((("threads", str(plan.threads)),) if plan.remote is None else ()),
        *((("command", " ".join(plan.argv)),) if plan.argv else ()),
        *((f"why {subject}", sentence) for subject, sentence in plan.reasons),
        *(
            (f"else {number}", f"{step.device}, {step.gpu_layers} layers on the GPU, {step.context_tokens} tokens")
            for number, step in fallbacks
        ),
    ]
