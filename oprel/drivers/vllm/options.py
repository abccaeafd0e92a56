"""The table `[vllm]` of the config file: what vLLM can be told beyond what all engines can. Known keys only.

    [vllm]
    gpu_memory_share = 0.8
    tensor_parallel = 2

    [vllm.models."llama3:70b"]      # for one model, before the table's own
    executor = "ray"
    tensor_parallel = 8

Every value has a type and bounds, so that nothing in it can become another option of the command line.
"""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from oprel.errors import ConfigError, InvalidNameError
from oprel.store import ModelName

__all__ = ["VllmOptions"]

_MODELS = "models"

Share = Annotated[float, Meta(gt=0, le=1)]
Count = Annotated[int, Meta(ge=1, le=4096)]
Port = Annotated[int, Meta(ge=1, le=65535)]
Word = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9][A-Za-z0-9_.]{0,63}\Z")]
Address = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9\[][A-Za-z0-9.:\[\]-]{0,253}\Z")]
Interface = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9][A-Za-z0-9_.:-]{0,30}\Z")]


class VllmOptions(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """None: vLLM's own way, or planned. `docs/architecture/vllm.md` has the table of them all.

    Sizes are GiB. `lora` is a folder with an adapter; requests for the model go through it. `nodes` above 1 makes
    this machine the first of several that run the same command with their own rank; `data_parallel_local` says how
    many of `data_parallel` replicas run here.
    """

    # Memory
    gpu_memory_share: Share | None = None
    kv_cache_gib: Annotated[int, Meta(ge=1, le=65536)] | None = None
    kv_cache_dtype: Word | None = None
    cpu_offload_gib: Annotated[float, Meta(ge=0, le=65536)] | None = None
    # The model
    dtype: Literal["auto", "bfloat16", "float16", "float32"] | None = None
    quantization: Word | None = None
    load_format: Literal["auto", "safetensors", "fastsafetensors", "runai_streamer", "bitsandbytes"] | None = None
    max_length: Annotated[int, Meta(ge=16, le=1 << 30)] | None = None
    max_requests: Count | None = None
    lora: Annotated[str, Meta(min_length=1, max_length=4096)] | None = None
    max_lora_rank: Literal[1, 8, 16, 32, 64, 128, 256, 320, 512] | None = None
    # How it runs
    enforce_eager: bool | None = None
    prefix_caching: bool | None = None
    tool_parser: Word | None = None
    reasoning_parser: Word | None = None
    # Several GPUs, several machines
    tensor_parallel: Count = 1
    pipeline_parallel: Count = 1
    data_parallel: Count = 1
    data_parallel_local: Count | None = None
    data_parallel_address: Address | None = None
    data_parallel_port: Port | None = None
    data_parallel_backend: Literal["mp", "ray"] | None = None
    expert_parallel: bool | None = None
    executor: Literal["mp", "ray", "uni"] | None = None
    ray_address: Address | None = None
    nodes: Count = 1
    master_address: Address | None = None
    master_port: Port | None = None
    host_ip: Address | None = None
    network_interface: Interface | None = None

    @classmethod
    def parse(cls, table: dict[str, Any], model: str | None = None) -> VllmOptions:
        """The options for `model` (a display name), or the table's own. Raises ConfigError for anything in the whole
        table that can't be used, other models' entries included."""
        table = dict(table)
        models = table.pop(_MODELS, {})
        if not isinstance(models, dict) or not all(isinstance(own, dict) for own in models.values()):
            raise ConfigError(f'[vllm] {_MODELS} must hold tables: [vllm.{_MODELS}."NAME"]')
        options = _convert(table, "[vllm]")
        for name, own in models.items():
            key = _key(name)
            merged = _convert({**table, **own}, f'[vllm.{_MODELS}."{name}"]')
            if model is not None and key == _key(model):
                options = merged
        return options

    @property
    def is_over_machines(self) -> bool:
        """Whether other machines take part, so that this one's GPUs don't bound what is asked for."""
        if self.executor == "ray" or self.data_parallel_backend == "ray" or self.nodes > 1:
            return True
        return self.data_parallel_local is not None and self.data_parallel_local < self.data_parallel

    @property
    def ranks(self) -> int:
        """GPUs for one replica."""
        return self.tensor_parallel * self.pipeline_parallel

    @property
    def local_gpus(self) -> int:
        """GPUs that are needed on this machine, where all are on it."""
        return self.ranks * (self.data_parallel_local or self.data_parallel)


def _convert(table: dict[str, Any], where: str) -> VllmOptions:
    known = VllmOptions.__struct_fields__
    for key in table:
        if key not in known:
            near = get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(sorted(known))}"
            raise ConfigError(f"{where} {key!r} is no option of vLLM's that can be set: {hint}")
    try:
        options = msgspec.convert(table, VllmOptions)
    except msgspec.ValidationError as problem:
        raise ConfigError(f"{where}: {problem}") from None
    _check(options, where)
    return options if options.lora is None else msgspec.structs.replace(options, lora=_folder(options.lora, where))


def _check(options: VllmOptions, where: str) -> None:
    if options.nodes > 1 and options.executor == "ray":
        raise ConfigError(f"{where}: nodes is for the executor mp; Ray finds its machines itself")
    if options.nodes > 1 and options.master_address is None:
        raise ConfigError(f"{where}: nodes needs master_address, where the other machines find this one")
    local = options.data_parallel_local
    if local is not None and local > options.data_parallel:
        raise ConfigError(f"{where}: data_parallel_local is {local}, more than data_parallel ({options.data_parallel})")
    if local is not None and local < options.data_parallel and options.data_parallel_address is None:
        raise ConfigError(f"{where}: replicas on other machines need data_parallel_address, this machine's address")
    if options.ray_address is not None and "ray" not in (options.executor, options.data_parallel_backend):
        raise ConfigError(f'{where}: ray_address is for executor = "ray" or data_parallel_backend = "ray"')
    if options.max_lora_rank is not None and options.lora is None:
        raise ConfigError(f"{where}: max_lora_rank is for a model with lora")


def _folder(text: str, where: str) -> str:
    path = Path(text).expanduser()
    if not path.is_absolute() or not text.isprintable():
        raise ConfigError(f"{where}: lora must be an absolute path, not {text!r}")
    return str(path)


def _key(name: str) -> tuple[str, str, str, str]:
    try:
        return ModelName.parse(name).key
    except InvalidNameError as problem:
        raise ConfigError(f"[vllm.{_MODELS}]: {problem.message}") from None
