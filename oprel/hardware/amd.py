"""AMD GPUs, as the kernel's driver shows them."""

from __future__ import annotations

from pathlib import Path

from oprel.schema import Gpu

__all__ = ["amd_gpus"]


def amd_gpus(root: Path = Path("/")) -> tuple[Gpu, ...]:
    gpus: list[Gpu] = []
    for total_file in sorted((root / "sys/class/drm").glob("card*/device/mem_info_vram_total")):
        device = total_file.parent
        total = _read(total_file)
        if not total.isdigit():
            continue
        used = _read(device / "mem_info_vram_used")
        gpus.append(
            Gpu(
                index=len(gpus),
                name=_read(device / "product_name") or "AMD GPU",
                vendor="amd",
                total_bytes=int(total),
                free_bytes=max(0, int(total) - int(used)) if used.isdigit() else int(total),
                found_by="sysfs",
                uuid=_read(device / "unique_id") or None,
            )
        )
    return tuple(gpus)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
