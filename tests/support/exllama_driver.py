"""Models, machines and drivers for tests of ExLlama, on the stand-ins' environment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from oprel.drivers import DriverOptions
from oprel.drivers.exllama import ExllamaV2Driver, ExllamaV3Driver
from oprel.drivers.exllama.probe import HOST
from oprel.schema import EngineProbe, Gpu, Hardware, Model, ModelFile
from support.exllama_python import write_model

__all__ = ["GIB", "driver_for", "make_gpu", "make_hardware", "make_model", "make_probe", "model_in"]

GIB = 1024**3


def make_model(**fields: Any) -> Model:
    """An 8B model in EXL3 of 4.9 GiB, unless told otherwise."""
    size = fields.pop("weights_bytes", int(4.9 * GIB))
    path = fields.pop("path", "/models/llama/model.safetensors")
    chosen: dict[str, Any] = {
        "name": "llama:exl3",
        "digest": "cd" * 32,
        "format": "exl3",
        "files": (ModelFile("weights", path, "ab" * 32, size),),
        "size_bytes": size,
        "modified_at": 0.0,
        "architecture": "LlamaForCausalLM",
        "quantization": "EXL3",
        "context_tokens": 131_072,
        "embedding_length": 4096,
        "layers": 32,
        "kv_bytes_per_token": 128 * 1024,
        "chat_template": "{{ messages }}",
        "capabilities": frozenset({"completion"}),
    }
    return Model(**{**chosen, **fields})


def model_in(folder: Path, quantization: str = "exl3", **config: Any) -> Model:
    """A model whose folder is there, for the stand-ins to load."""
    weights = write_model(folder, quantization=quantization, **config)
    return make_model(
        name=f"small:{quantization}",
        path=str(weights),
        weights_bytes=weights.stat().st_size,
        format=quantization,
        quantization=quantization.upper(),
        context_tokens=4096,
        kv_bytes_per_token=1024,
        embedding_length=64,
    )


def make_gpu(index: int = 0, *, free_gib: float = 23, total_gib: float = 24, **fields: Any) -> Gpu:
    chosen: dict[str, Any] = {"name": "NVIDIA Imaginary 4090", "vendor": "nvidia", "found_by": "nvml", **fields}
    return Gpu(index=index, total_bytes=int(total_gib * GIB), free_bytes=int(free_gib * GIB), **chosen)


def make_probe(driver: str = "exllamav3", **fields: Any) -> EngineProbe:
    packages = ("torch==2.11.0", "python==3.12.4", "jinja2==3.1.6", "flash-attn==2.8.3", f"{driver}==9.9")
    chosen: dict[str, Any] = {
        "driver": driver,
        "engine": driver,
        "command": ("/opt/exl/bin/python", "-I", "-u", HOST),
        "version": "9.9",
        "flags": frozenset(packages),
    }
    return EngineProbe(**{**chosen, **fields})


def make_hardware(*probes: EngineProbe, gpus: tuple[Gpu, ...] | None = None, **fields: Any) -> Hardware:
    chosen: dict[str, Any] = {
        "system": "Linux",
        "machine": "x86_64",
        "cores": 8,
        "threads": 16,
        "ram_total_bytes": 64 * GIB,
        "ram_available_bytes": 60 * GIB,
        "gpus": (make_gpu(),) if gpus is None else gpus,
        "engines": probes,
    }
    return Hardware(**{**chosen, **fields})


def driver_for(run_dir: Path, python: Path | None, *, name: str = "exllamav3", **options: Any) -> Any:
    """A driver with `python` as its environment's interpreter; `table` is the one in the config file."""
    table = options.pop("table", {})
    chosen: dict[str, Any] = {"start_timeout_s": 30.0, "stall_timeout_s": 20.0, "stop_grace_s": 5.0, **options}
    made = {"exllamav2": ExllamaV2Driver, "exllamav3": ExllamaV3Driver}[name]
    return made(
        DriverOptions(
            run_dir=str(run_dir),
            executables=() if python is None else (("exllama", str(python)),),
            tables=(("exllama", {"build_dir": str(run_dir.parent / "build"), **table}),),
            **chosen,
        )
    )
