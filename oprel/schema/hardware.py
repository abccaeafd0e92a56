"""What this machine has, as plain data. Sizes in bytes."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

__all__ = ["Device", "EngineProbe", "Gpu", "Hardware"]


class Gpu(Struct, frozen=True):
    """`index` is the vendor's own order; `found_by` says how it was seen ("nvml", "nvidia-smi", "sysfs", "metal")."""

    index: int
    name: str
    vendor: Literal["nvidia", "amd", "apple", "intel", "other"]
    total_bytes: int
    free_bytes: int
    found_by: str
    uuid: str | None = None


class Device(Struct, frozen=True):
    """A device as an engine lists it: `id` is the engine's name for it (`CUDA0`, `Vulkan0`, `Metal`)."""

    id: str
    name: str
    total_bytes: int
    free_bytes: int
    integrated: bool = False


class EngineProbe(Struct, frozen=True):
    """What was found out about one engine executable: planning reads it instead of asking the machine.

    `engine` is the kind ("llama-server", "xllamacpp"), `command` what starts it, `flags` the long options it lists,
    `problem` why it can't be used, in one sentence with what to do about it.
    """

    driver: str
    engine: str
    command: tuple[str, ...]
    version: str = ""
    flags: frozenset[str] = frozenset()
    devices: tuple[Device, ...] = ()
    problem: str | None = None


class Hardware(Struct, frozen=True):
    """`cores` are physical, `threads` logical, both as far as this process may use them."""

    system: str
    machine: str
    cores: int
    threads: int
    ram_total_bytes: int
    ram_available_bytes: int
    gpus: tuple[Gpu, ...] = ()
    engines: tuple[EngineProbe, ...] = ()
    notes: tuple[str, ...] = ()
