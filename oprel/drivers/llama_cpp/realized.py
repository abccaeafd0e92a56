"""What became of a plan: read back from the engine, never assumed."""

from __future__ import annotations

import msgspec

from oprel.drivers.llama_cpp.estimate import PROCESS_BYTES
from oprel.drivers.llama_cpp.report import LoadReport
from oprel.schema import ALL_SAMPLING, Capabilities, Plan

__all__ = ["Props", "capabilities_of", "realized_plan"]


class _GenerationSettings(msgspec.Struct):
    n_ctx: int = 0


class _Modalities(msgspec.Struct):
    vision: bool = False
    audio: bool = False


class _TemplateCaps(msgspec.Struct):
    supports_tools: bool = False
    supports_tool_calls: bool = False


class Props(msgspec.Struct):
    """The part of llama-server's /props that is read."""

    total_slots: int = 0
    default_generation_settings: _GenerationSettings = msgspec.field(default_factory=_GenerationSettings)
    modalities: _Modalities = msgspec.field(default_factory=_Modalities)
    chat_template_caps: _TemplateCaps = msgspec.field(default_factory=_TemplateCaps)


def realized_plan(plan: Plan, props: Props, report: LoadReport) -> Plan:
    """`plan` with the context, slots, layers, devices and bytes that the engine tells."""
    context = props.default_generation_settings.n_ctx or plan.context_tokens
    reasons = list(plan.reasons)
    if context < plan.context_tokens:
        text = f"the engine gives each slot {context} tokens of context, not the {plan.context_tokens} planned"
        reasons.append(("context_reduced", text))
    gpu_layers, device = _placement(plan, report)
    if device == "cpu" and plan.device != "cpu":
        reasons.append(("gpu_fallback", _why_on_cpu(report)))
    return msgspec.structs.replace(
        plan,
        context_tokens=context,
        slots=props.total_slots or plan.slots,
        gpu_layers=gpu_layers,
        device=device,
        bytes_by_device=_measured(plan, report, device),
        reasons=tuple(reasons),
        fallbacks=(),
    )


def capabilities_of(plan: Plan, props: Props, report: LoadReport) -> Capabilities:
    """What this model can do on this engine: an embedding engine generates nothing, and the reverse."""
    context = props.default_generation_settings.n_ctx or plan.context_tokens
    if plan.embedding and "rank" in plan.argv[plan.argv.index("--pooling") :][:2]:
        return Capabilities(rerank=True, tokenize=True, context_tokens=context)
    if plan.embedding:
        return Capabilities(embed=True, tokenize=True, context_tokens=context)
    caps = props.chat_template_caps
    return Capabilities(
        chat=plan.chat,
        complete=True,
        vision=props.modalities.vision,
        audio=props.modalities.audio,
        tools=plan.chat and caps.supports_tools and caps.supports_tool_calls,
        thinking=plan.chat and report.has_thinking,
        json_schema=True,
        grammar=True,
        logprobs=True,
        infill=report.has_infill,
        lora=any(file.role == "adapter" for file in plan.files),
        tokenize=True,
        prefill=plan.chat,
        sampling=ALL_SAMPLING,
        context_tokens=context,
    )


def _placement(plan: Plan, report: LoadReport) -> tuple[int | str, str]:
    """(layers on the GPU, what a user is told of the device)."""
    if report.offloaded is None:
        # Builds without GPU support, and loads without a GPU, don't print the line.
        return (0, "cpu") if plan.device == "cpu" or report.gpu_lost else (plan.gpu_layers, plan.device)
    layers, total = report.offloaded
    if layers == 0:
        return 0, "cpu"
    return layers, "gpu" if layers >= total else "gpu+cpu"


def _why_on_cpu(report: LoadReport) -> str:
    told = report.gpu_lost or "its log says that no layer is on the GPU"
    return f"the engine could not use the GPU and runs the model on the CPU: {told}"


def _measured(plan: Plan, report: LoadReport, device: str) -> tuple[tuple[str, int], ...]:
    """The buffers that the log told, and the program itself, which it doesn't count."""
    told = report.bytes_by_device()
    if not told:
        return plan.bytes_by_device if device == plan.device else (("cpu", plan.bytes_total),)
    told["cpu"] = told.get("cpu", 0) + PROCESS_BYTES
    return tuple(sorted(told.items(), key=lambda entry: entry[0] != "cpu"))
