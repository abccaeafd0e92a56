"""What this machine has and what would be done with it: `info`, `drivers`, `plan`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from oprel.cli.common import settings_of
from oprel.cli.terminal import Terminal, size

if TYPE_CHECKING:
    from oprel.schema import Hardware, Plan

__all__ = ["add_commands"]

_PLAN_SETTINGS = (
    "driver", "context", "parallel", "gpu_layers", "models_dir", "llama_server", "vllm_python", "trees_dir",
)  # fmt: skip


def add_commands(commands: Any) -> None:
    info = commands.add_parser("info", help="this machine's hardware, and the drivers: usable or why not")
    info.add_argument("--json", action="store_true", help="as JSON")
    info.set_defaults(command=_info)

    drivers = commands.add_parser("drivers", help="installed drivers with their state")
    drivers.add_argument("--json", action="store_true", help="as JSON")
    drivers.set_defaults(command=_drivers)

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
    _tell_drivers(states, terminal)


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


def _drivers(arguments: argparse.Namespace, terminal: Terminal) -> None:
    import msgspec

    from oprel.server.compose import make_registry

    states = make_registry(settings_of(arguments)).states()
    if arguments.json:
        terminal.json(msgspec.to_builtins(states))
        return
    _tell_drivers(states, terminal)


def _tell_drivers(states: Any, terminal: Terminal) -> None:
    words = {True: "usable", False: "not usable", None: "not loaded"}
    terminal.table(("DRIVER", "STATE", "FROM", "WHY"), [(s.name, words[s.usable], s.origin, s.reason) for s in states])


def _plan(arguments: argparse.Namespace, terminal: Terminal) -> None:
    import msgspec

    from oprel.schema import LoadOptions
    from oprel.server.compose import make_catalog, make_registry

    settings = settings_of(arguments, *_PLAN_SETTINGS)
    model = make_catalog(settings).find(arguments.model)
    registry = make_registry(settings)
    hardware = registry.hardware()
    driver, reason = registry.choose(model, hardware, settings.driver)
    options = LoadOptions(
        context_tokens=settings.context,
        slots=settings.parallel,
        gpu_layers=settings.gpu_layers,
        threads=settings.threads,
        kv_cache_type=settings.kv_cache_type,
        chat_template=settings.chat_template,
    )
    plan = driver.plan(model, options, hardware)
    if arguments.json:
        terminal.json(msgspec.to_builtins(plan))
        return
    _tell_plan(plan, reason, terminal)


def _tell_plan(plan: Plan, reason: str, terminal: Terminal) -> None:
    layers = f"{plan.gpu_layers} of {plan.layers}" if plan.layers is not None else str(plan.gpu_layers)
    facts = [
        ("model", plan.model),
        ("driver", f"{plan.driver} ({reason})"),
        ("engine", plan.engine),
        *(("file", f"{file.path} ({file.role}, {size(file.size_bytes)})") for file in plan.files),
        ("device", plan.device),
        *((("layers", f"{layers} on the GPU"),) if plan.remote is None else ()),
        *(("memory", f"{device}: {size(count)}") for device, count in plan.bytes_by_device),
        ("context", f"{plan.context_tokens} tokens for each of {plan.slots} slots"),
        *((("threads", str(plan.threads)), ("command", " ".join(plan.argv))) if plan.argv else ()),
        *((f"why {subject}", sentence) for subject, sentence in plan.reasons),
    ]
    width = max(len(fact) for fact, _ in facts) + 2
    for fact, value in facts:
        terminal.answer(f"{fact:<{width}}{value}")
    for number, fallback in enumerate(plan.fallbacks, 1):
        terminal.answer(f"{f'else {number}':<{width}}{fallback.device}, {fallback.gpu_layers} layers on the GPU")
