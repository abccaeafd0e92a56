"""What became of a plan: read back from the host, never assumed."""

from __future__ import annotations

import msgspec

from oprel.schema import Capabilities, Plan

__all__ = ["Props", "capabilities_of", "realized_plan"]


class _Able(msgspec.Struct):
    chat: bool = False
    complete: bool = False
    json_schema: bool = False
    grammar: bool = False
    logprobs: bool = False
    tokenize: bool = False
    sampling: frozenset[str] = frozenset()


class Props(msgspec.Struct):
    """The host's /props. `memory` is what torch holds on each GPU, numbered as the host sees them."""

    total_slots: int
    context_tokens: int
    memory: dict[str, int] = msgspec.field(default_factory=dict)
    warnings: tuple[tuple[str, str], ...] = ()
    capabilities: _Able = msgspec.field(default_factory=_Able)


def realized_plan(plan: Plan, props: Props) -> Plan:
    """`plan` with the context, slots and bytes that the host tells, and its warnings among the reasons."""
    return msgspec.structs.replace(
        plan,
        context_tokens=props.context_tokens,
        slots=props.total_slots,
        bytes_by_device=_measured(plan, props),
        reasons=(*plan.reasons, *props.warnings),
        fallbacks=(),
    )


def capabilities_of(plan: Plan, props: Props) -> Capabilities:
    able = props.capabilities
    return Capabilities(
        chat=able.chat,
        complete=able.complete,
        json_schema=able.json_schema,
        grammar=able.grammar,
        logprobs=able.logprobs,
        tokenize=able.tokenize,
        sampling=able.sampling,
        context_tokens=props.context_tokens,
    )


def _measured(plan: Plan, props: Props) -> tuple[tuple[str, int], ...]:
    if not props.memory:
        return plan.bytes_by_device
    on_cpu = tuple(part for part in plan.bytes_by_device if part[0] == "cpu")
    # With one GPU made visible, the host's first is the planned one.
    names = [name for name, _ in plan.bytes_by_device if name != "cpu"]
    told = sorted(props.memory.items())
    if len(names) == len(told) == 1:
        return (*on_cpu, (names[0], told[0][1]))
    return (*on_cpu, *told)
