"""What a server says when it opens: what it serves, where, and with which engines."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

from oprel.config import Settings
from oprel.dialects.services import Services
from oprel.drivers.registry import Registry
from oprel.errors import OprelError
from oprel.schema import EngineProbe, Hardware, Model

__all__ = ["engine_lines", "look_into_models", "opening_lines", "unused_gpus"]


def opening_lines(settings: Settings, version: str, models: Sequence[Model]) -> tuple[str, ...]:
    """What and where."""
    count = f"{len(models)} model{'' if len(models) == 1 else 's'}" if models else "no models yet (oprel pull MODEL)"
    stores = ", ".join(str(folder) for folder in (settings.models_dir, *settings.extra_models_dirs))
    url = settings.base_url
    keys = ", with a key" if settings.api_keys else ""
    return (
        f"Oprel {version} serves {count} from {stores}",
        f"at {url} (OpenAI: {url}/v1, Ollama: {url}/api{keys})",
    )


async def engine_lines(registry: Registry) -> tuple[str, ...]:
    """With which engines; looking for them takes a moment the first time."""
    hardware = await asyncio.to_thread(registry.hardware)
    usable = [probe for probe in hardware.engines if probe.problem is None]
    if usable:
        lines = ["with " + "; ".join(_engine(probe) for probe in usable)]
    else:
        problems = "; ".join(f"{probe.engine}: {probe.problem}" for probe in hardware.engines)
        lines = [f"with no engine: {problems or 'no driver found one'}"]
    return (*lines, *unused_gpus(hardware))


async def look_into_models(services: Services, models: Sequence[Model]) -> None:
    """What a listing tells of each model is read ahead, one by one, so that a stop needn't wait for the rest: headers
    of hundreds of files that were never seen take seconds, and whoever lists them first shouldn't wait for that."""
    for model in models:
        if model.remote is None and model.damage is None:
            with contextlib.suppress(OprelError):  # removed since
                await asyncio.to_thread(services.catalog.find, model.name)


def unused_gpus(hardware: Hardware) -> tuple[str, ...]:
    """A sentence for a machine that has a GPU and no engine that lists one."""
    if not hardware.gpus or any(probe.devices for probe in hardware.engines if probe.problem is None):
        return ()
    names = ", ".join(gpu.name for gpu in hardware.gpus)
    return (
        f"warning: {names} stays unused, because no engine here can use it: put a llama-server that can on PATH, or "
        "name it with --llama-server (`oprel plan MODEL` tells more)",
    )


def _engine(probe: EngineProbe) -> str:
    devices = ", ".join(dict.fromkeys(device.name for device in probe.devices)) or "CPU"
    return f"{probe.driver}: {probe.engine} {probe.version} ({devices})".replace("  ", " ")
