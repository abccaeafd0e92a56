"""Apple's GPU, which shares the machine's memory."""

from __future__ import annotations

from oprel.hardware.tools import sysctl
from oprel.schema import Gpu

__all__ = ["apple_gpus"]

# Metal's recommended working set is about three quarters of the memory, unless the user raised it.
_SHARE = 0.75
_MIB = 1024 * 1024


def apple_gpus(machine: str, total_bytes: int, available_bytes: int) -> tuple[Gpu, ...]:
    if machine != "arm64":
        return ()
    raised = sysctl("iogpu.wired_limit_mb")
    limit = int(raised) * _MIB if raised and raised.isdigit() and int(raised) else int(total_bytes * _SHARE)
    return (
        Gpu(
            index=0,
            name=sysctl("machdep.cpu.brand_string") or "Apple GPU",
            vendor="apple",
            total_bytes=limit,
            free_bytes=min(limit, available_bytes),
            found_by="metal",
        ),
    )
