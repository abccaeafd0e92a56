"""vLLM's command line and environment: from what was decided, to words."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from oprel.drivers.local.words import SOCKET, TEMPLATE
from oprel.drivers.vllm.options import VllmOptions
from oprel.schema import EngineProbe, LoadOptions, Model

__all__ = ["ADAPTER", "SERVED_NAME", "Launch", "build_argv", "build_environment"]

SERVED_NAME = "model"
ADAPTER = "adapter"
MAX_LOGPROBS = 20


@dataclass(frozen=True, slots=True)
class Launch:
    """What was decided. `gpu_share` and `gpus` are for builds for GPUs, `cpu_cache_gib` and `threads` for those for
    CPUs; `threads` None leaves them to vLLM, which binds them to cores."""

    context_tokens: int
    slots: int
    dtype: str
    is_eager: bool
    tool_parser: str | None
    reasoning_parser: str | None
    gpu_share: float | None
    gpus: tuple[int, ...] | None
    cpu_cache_gib: int | None
    threads: int | None


def build_argv(
    probe: EngineProbe, model: Model, load: LoadOptions, options: VllmOptions, launch: Launch
) -> tuple[str, ...]:
    """The whole command, with the placeholders `{socket}` and `{template}` as arguments of their own."""
    words = [*probe.command, "--model", str(Path(model.weights.path).parent), "--served-model-name", SERVED_NAME]
    words += ["--uds", SOCKET]

    def add(name: str, value: object) -> None:
        if value is not None:
            words.extend((name, f"{value:g}" if isinstance(value, float) else str(value)))

    def switch(name: str, value: bool | None) -> None:
        if value is not None:
            words.append(f"--{name}" if value else f"--no-{name}")

    add("--max-model-len", launch.context_tokens)
    add("--max-num-seqs", launch.slots)
    add("--max-num-batched-tokens", load.batch_tokens)
    add("--runner", "pooling" if model.is_embedding else "generate")
    add("--dtype", launch.dtype)
    switch("enforce-eager", True if launch.is_eager else None)
    add("--gpu-memory-utilization", launch.gpu_share)
    add("--kv-cache-dtype", options.kv_cache_dtype)
    add("--cpu-offload-gb", options.cpu_offload_gib)
    add("--quantization", options.quantization)
    add("--load-format", options.load_format)
    switch("enable-prefix-caching", options.prefix_caching)
    if launch.gpu_share is not None and options.kv_cache_gib is not None:
        add("--kv-cache-memory-bytes", options.kv_cache_gib * 1024**3)
    if load.chat_template is not None:
        add("--chat-template", TEMPLATE)
    if launch.tool_parser is not None:
        words += ["--enable-auto-tool-choice", "--tool-call-parser", launch.tool_parser]
        # Without it only a call's envelope is held to a grammar, and arguments may be anything.
        words += ["--tool-strict-level", "parameter"]
    add("--reasoning-parser", launch.reasoning_parser)
    if options.lora is not None:
        words += ["--enable-lora", "--lora-modules", f"{ADAPTER}={options.lora}"]
        add("--max-lora-rank", options.max_lora_rank)
    words += _parallel(options)
    if not model.is_embedding:
        # One more than OpenAI allows: see `more_top_logprobs`.
        words += ["--enable-prompt-tokens-details", "--max-logprobs", str(MAX_LOGPROBS + 1)]
    words.append("--disable-uvicorn-access-log")
    return tuple(words)


def _parallel(options: VllmOptions) -> list[str]:
    words: list[str] = []

    def add(name: str, value: object, default: object = None) -> None:
        if value is not None and value != default:
            words.extend((name, str(value)))

    add("--tensor-parallel-size", options.tensor_parallel, 1)
    add("--pipeline-parallel-size", options.pipeline_parallel, 1)
    add("--data-parallel-size", options.data_parallel, 1)
    add("--data-parallel-size-local", options.data_parallel_local)
    add("--data-parallel-address", options.data_parallel_address)
    add("--data-parallel-rpc-port", options.data_parallel_port)
    add("--data-parallel-backend", options.data_parallel_backend)
    if options.expert_parallel:
        words.append("--enable-expert-parallel")
    add("--distributed-executor-backend", options.executor)
    if options.nodes > 1:
        words += ["--nnodes", str(options.nodes), "--node-rank", "0"]
        add("--master-addr", options.master_address)
        add("--master-port", options.master_port)
    return words


def build_environment(options: VllmOptions, launch: Launch) -> tuple[tuple[str, str], ...]:
    """Nothing is fetched, nothing is told to anybody."""
    variables = [
        ("HF_HUB_OFFLINE", "1"),
        ("TRANSFORMERS_OFFLINE", "1"),
        ("VLLM_NO_USAGE_STATS", "1"),
        ("DO_NOT_TRACK", "1"),
    ]
    if launch.cpu_cache_gib is not None:
        variables.append(("VLLM_CPU_KVCACHE_SPACE", str(launch.cpu_cache_gib)))
    if launch.threads is not None:
        variables += [("VLLM_CPU_OMP_THREADS_BIND", "nobind"), ("OMP_NUM_THREADS", str(launch.threads))]
    if launch.gpus is not None:
        variables.append(("CUDA_VISIBLE_DEVICES", ",".join(map(str, launch.gpus))))
    if options.ray_address is not None:
        variables.append(("RAY_ADDRESS", options.ray_address))
    if options.host_ip is not None:
        variables.append(("VLLM_HOST_IP", options.host_ip))
    if options.network_interface is not None:
        variables += [("NCCL_SOCKET_IFNAME", options.network_interface)]
        variables += [("GLOO_SOCKET_IFNAME", options.network_interface)]
    return tuple(variables)
