"""Whether a loaded engine serves a request's load options, and whether a plan fits into memory."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from oprel.config import Settings
from oprel.scheduler.state import Limits, Resident
from oprel.schema import Hardware, LoadOptions, Model, Plan
from oprel.schema.sampling import load_from_model

__all__ = [
    "budget_of",
    "charge",
    "deficit",
    "free",
    "is_good_beside",
    "is_served",
    "limits_of",
    "merged",
    "seen_free",
    "threads_beside",
    "with_budget",
]

_GOOD_CONTEXT_TOKENS = 8192
_WHOLE_START = 10


def merged(wanted: LoadOptions, settings: Settings, model: Model) -> LoadOptions:
    """The request's own options; where it says nothing the model's own parameters; then the settings. The settings'
    template is only for models that have none."""
    template = settings.chat_template if model.chat_form is None else None
    defaults = {
        "context_tokens": settings.context,
        "slots": settings.parallel,
        "gpu_layers": settings.gpu_layers,
        "threads": settings.threads,
        "kv_cache_type": settings.kv_cache_type,
        "chat_template": template,
        **load_from_model(model),
    }
    gaps = {name: value for name, value in defaults.items() if value is not None and getattr(wanted, name) is None}
    return msgspec.structs.replace(wanted, **gaps) if gaps else wanted


def is_served(wanted: LoadOptions, *, asked: LoadOptions, plan: Plan) -> bool:
    """Whether an engine that was asked to load with `asked`, and came up as `plan`, does for `wanted`.

    What isn't said matches anything; sizes (context, slots, threads, batch) match when no more is wanted than is
    there; the rest must be equal. What it was loaded for always matches, so that a reload can't repeat itself. A
    remote is as it is: no option changes it.
    """
    return plan.remote is not None or (
        _is_within(wanted.context_tokens, plan.context_tokens, asked.context_tokens)
        and _is_within(wanted.slots, plan.slots, asked.slots)
        and _is_within(wanted.threads, plan.threads, asked.threads)
        and _is_within(wanted.batch_tokens, asked.batch_tokens)
        and _is_one_of(_clamped(wanted.gpu_layers, plan), plan.gpu_layers, _clamped(asked.gpu_layers, plan))
        and _is_one_of(wanted.main_gpu, asked.main_gpu)
        and _is_one_of(wanted.kv_cache_type, asked.kv_cache_type, plan.options.kv_cache_type)
        and _is_one_of(wanted.flash_attention, asked.flash_attention, plan.options.flash_attention)
        and _is_one_of(wanted.mmap, asked.mmap, plan.options.mmap)
        and _is_one_of(wanted.chat_template, asked.chat_template)
    )


def _is_within(wanted: int | None, *there: int | None) -> bool:
    return wanted is None or any(size is not None and wanted <= size for size in there)


def _is_one_of(wanted: object, *there: object) -> bool:
    return wanted is None or wanted in there


def _clamped(gpu_layers: int | None, plan: Plan) -> int | None:
    """More layers than the model has are all of them."""
    if gpu_layers is None or plan.layers is None:
        return gpu_layers
    return min(gpu_layers, plan.layers)


def budget_of(hardware: Hardware) -> tuple[tuple[str, int], ...]:
    """What engines may hold: what is free now. (A reserve for the rest of the machine is the plan's to leave: it knows
    its own errors.) GPUs count as their engine lists them; an integrated one is a part of RAM and has no budget."""
    budget = {"cpu": hardware.ram_available_bytes}
    for probe in hardware.engines:
        for device in probe.devices:
            if not device.integrated:
                budget[device.id] = max(device.free_bytes, budget.get(device.id, 0))
    return tuple(budget.items())


def limits_of(settings: Settings) -> Limits:
    """The budget is filled in when the first engine is planned. `memory_limit_bytes` bounds the sum over devices.

    `load_timeout` bounds a start without progress, which its driver sees; the whole start may take ten times that, so
    that a driver that doesn't look can't keep its waiters for ever."""
    return Limits(
        total_bytes=settings.memory_limit_bytes,
        max_loaded=settings.max_loaded,
        max_queue=settings.max_queue,
        keep_alive_s=settings.keep_alive,
        load_timeout_s=_WHOLE_START * settings.load_timeout,
    )


def with_budget(limits: Limits, budget: tuple[tuple[str, int], ...]) -> Limits:
    return msgspec.structs.replace(limits, budget=budget)


def charge(resident: Resident) -> dict[str, int]:
    """What an engine counts for on each device: its plan, and on the CPU what was measured where that is more (less
    is no gain: a cache that isn't filled yet isn't resident yet)."""
    if resident.plan is None or resident.phase in ("planning", "room"):
        return {}
    held = dict(resident.plan.bytes_by_device)
    if resident.measured_bytes is not None:
        held["cpu"] = max(held.get("cpu", 0), resident.measured_bytes)
    return held


def free(limits: Limits, others: Iterable[Resident]) -> dict[str, int]:
    """What the others leave on each device of the budget; `""` is the sum's bound, where there is one."""
    left = dict(limits.budget)
    total = limits.total_bytes
    for resident in others:
        for device, size in charge(resident).items():
            if device in left:
                left[device] -= size
            if total is not None:
                total -= size
    return left if total is None else {**left, "": total}


def deficit(plan: Plan, left: dict[str, int]) -> dict[str, int]:
    """How much is missing on each device for `plan`; empty: it fits."""
    needed = dict(plan.bytes_by_device)
    if "" in left:
        needed[""] = plan.bytes_total
    return {
        device: size - left[device]
        for device, size in needed.items()
        if size and device in left and size > left[device]
    }


def is_good_beside(beside: Plan, alone: Plan) -> bool:
    """Whether a plan for what memory is left is worth not evicting anybody: as much of it on the GPU, and no context
    cut below what is planned at the least."""
    enough = min(alone.context_tokens, _GOOD_CONTEXT_TOKENS)
    return beside.gpu_layers == alone.gpu_layers and beside.context_tokens >= enough


def threads_beside(options: LoadOptions, others: Iterable[Resident], hardware: Hardware) -> LoadOptions:
    """Beside other engines, one that is free to choose gets the cores that they leave, and at the least an equal
    share: an engine that runs already can't give any back."""
    taken = [other.plan.threads for other in others if other.plan is not None]
    if options.threads is not None or not taken:
        return options
    threads = max(1, hardware.cores - sum(taken), hardware.cores // (len(taken) + 1))
    return msgspec.structs.replace(options, threads=threads)


def seen_free(hardware: Hardware, left: dict[str, int]) -> Hardware:
    """`hardware` with `left` free, for planning: never more than the sum's bound (key `""`) on any device."""
    bound = left.get("")

    def size(device: str, now: int) -> int:
        value = left.get(device, now)
        return max(0, value if bound is None else min(value, bound))

    engines = tuple(
        msgspec.structs.replace(
            probe,
            devices=tuple(
                msgspec.structs.replace(device, free_bytes=size(device.id, device.free_bytes))
                for device in probe.devices
            ),
        )
        for probe in hardware.engines
    )
    gpus = tuple(
        msgspec.structs.replace(gpu, free_bytes=size(f"CUDA{gpu.index}", gpu.free_bytes))
        if gpu.vendor == "nvidia"
        else gpu
        for gpu in hardware.gpus
    )
    ram = size("cpu", hardware.ram_available_bytes)
    return msgspec.structs.replace(hardware, ram_available_bytes=ram, engines=engines, gpus=gpus)
