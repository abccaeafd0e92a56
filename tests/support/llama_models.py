"""Models, machines and probes for tests of the llama_cpp driver."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from oprel.drivers import DriverOptions
from oprel.drivers.llama_cpp import LlamaCppDriver
from oprel.drivers.llama_cpp.probe import DRIVER, LLAMA_SERVER, REQUIRED_FLAGS
from oprel.schema import Device, EngineProbe, Hardware, Model, ModelFile

__all__ = ["GIB", "MIB", "driver_for", "make_hardware", "make_model", "make_probe", "real_chat_model"]

MIB = 1024 * 1024
GIB = 1024 * MIB

ALL_FLAGS = REQUIRED_FLAGS | {
    "--cache-ram", "--cache-type-k", "--cache-type-v", "--chat-template", "--chat-template-file", "--device", "--fit",
    "--flash-attn", "--gpu-layers", "--list-devices", "--load-mode", "--log-verbosity", "--lora", "--main-gpu",
    "--mmproj", "--no-kv-unified", "--no-ui", "--no-warmup", "--offline", "--split-mode",
}  # fmt: skip


def make_model(**fields: Any) -> Model:
    """An 8B chat model of 4.9 GB, unless told otherwise; `weights_bytes` sets the size of its one file."""
    size = fields.pop("weights_bytes", 4900 * MIB)
    path = fields.pop("path", "/models/blobs/sha256-" + "ab" * 32)
    chosen: dict[str, Any] = {
        "name": "llama:8b",
        "digest": "cd" * 32,
        "format": "gguf",
        "files": (ModelFile("weights", path, "ab" * 32, size),),
        "size_bytes": size,
        "modified_at": 0.0,
        "architecture": "llama",
        "context_tokens": 131_072,
        "embedding_length": 4096,
        "layers": 32,
        "kv_bytes_per_token": 128 * 1024,
        "chat_template": "{{ messages }}",
        "capabilities": frozenset({"completion"}),
    }
    return Model(**{**chosen, **fields})


def real_chat_model(path: Path) -> Model:
    """SmolLM2-135M-Instruct, as its metadata describes it."""
    return make_model(
        name="smollm2:135m",
        path=str(path),
        weights_bytes=path.stat().st_size,
        context_tokens=8192,
        embedding_length=576,
        layers=30,
        kv_bytes_per_token=23_040,
    )


def make_probe(*devices: Device, **fields: Any) -> EngineProbe:
    chosen: dict[str, Any] = {
        "driver": DRIVER,
        "engine": LLAMA_SERVER,
        "command": ("/opt/llama-server",),
        "version": "11434",
        "flags": frozenset(ALL_FLAGS),
        "devices": devices,
    }
    return EngineProbe(**{**chosen, **fields})


def make_hardware(*probes: EngineProbe, ram_gib: float = 32, **fields: Any) -> Hardware:
    chosen: dict[str, Any] = {
        "system": "Linux",
        "machine": "x86_64",
        "cores": 8,
        "threads": 16,
        "ram_total_bytes": int(ram_gib * GIB),
        "ram_available_bytes": int(ram_gib * GIB),
        "engines": probes,
    }
    return Hardware(**{**chosen, **fields})


def driver_for(run_dir: Path, *, executable: Path | None = None, **options: Any) -> LlamaCppDriver:
    """A driver whose engine is `executable` (the bundled one where it is None)."""
    executables = () if executable is None else ((LLAMA_SERVER, str(executable)),)
    chosen: dict[str, Any] = {"start_timeout_s": 60.0, "stall_timeout_s": 30.0, "stop_grace_s": 0.5}
    return LlamaCppDriver(DriverOptions(run_dir=str(run_dir), executables=executables, **{**chosen, **options}))
