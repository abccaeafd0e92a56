"""Plans on vLLM: memory, context, slots, and the command line to the word."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from oprel.drivers import DriverOptions
from oprel.drivers.vllm import VllmDriver
from oprel.drivers.vllm.probe import CPU_BUILD, GPU_BUILD
from oprel.errors import DriverUnavailableError, InsufficientMemoryError, ModelDamagedError, UnsupportedError
from oprel.schema import Device, EngineProbe, Hardware, LoadOptions, Model, ModelFile, Plan

GIB = 1024**3
COMMAND = ("/opt/vllm/bin/python", "-m", "vllm.entrypoints.openai.api_server")
TOOLS = "{% for tool in tools %}{{ tool }}{% endfor %}<tool_call>"

CHAT = Model(
    name="chat:latest",
    digest="ab" * 32,
    format="safetensors",
    files=(
        ModelFile("weights", "/trees/ab/model.safetensors", "01" * 32, 2 * GIB),
        ModelFile("companion", "/trees/ab/config.json", "02" * 32, 1000),
    ),
    size_bytes=2 * GIB + 1000,
    modified_at=0.0,
    architecture="LlamaForCausalLM",
    quantization="BF16",
    context_tokens=8192,
    embedding_length=2048,
    layers=16,
    kv_bytes_per_token=64 * 1024,
    chat_template=TOOLS,
    capabilities=frozenset({"completion", "tools"}),
)
EMBED = msgspec.structs.replace(
    CHAT,
    name="embed:latest",
    architecture="BertModel",
    quantization="F32",
    context_tokens=512,
    pooling="mean",
    chat_template=None,
    capabilities=frozenset({"embedding"}),
)


def machine(*gpus: Device, ram: int = 24 * GIB) -> Hardware:
    flags = frozenset({GPU_BUILD if gpus else CPU_BUILD})
    probe = EngineProbe(driver="vllm", engine="vllm", command=COMMAND, version="0.32.0", flags=flags, devices=gpus)
    return Hardware("Linux", "x86_64", 8, 16, ram, ram, engines=(probe,))


def gpu(number: int = 0, *, total: int = 80 * GIB, free: int | None = None) -> Device:
    return Device(f"CUDA{number}", "NVIDIA Imaginary", total, total if free is None else free)


def plan(
    model: Model = CHAT, hardware: Hardware | None = None, table: dict[str, Any] | None = None, **load: Any
) -> Plan:
    driver = VllmDriver(DriverOptions(run_dir="/nowhere", tables=(("vllm", table or {}),)))
    return driver.plan(model, LoadOptions(**load), hardware or machine())


def option(made: Plan, name: str) -> str | None:
    return made.argv[made.argv.index(name) + 1] if name in made.argv else None


def why(made: Plan, subject: str) -> str:
    return " / ".join(text for told, text in made.reasons if told == subject)


def test_on_the_cpu_to_the_word() -> None:
    made = plan()
    assert made.argv == (
        *COMMAND,
        "--model", "/trees/ab", "--served-model-name", "model", "--uds", "{socket}",
        "--max-model-len", "8192", "--max-num-seqs", "16", "--runner", "generate", "--dtype", "auto",
        "--enforce-eager",
        "--enable-auto-tool-choice", "--tool-call-parser", "hermes", "--tool-strict-level", "parameter",
        "--enable-prompt-tokens-details", "--max-logprobs", "21", "--disable-uvicorn-access-log",
    )  # fmt: skip
    assert dict(made.environment) == {
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_CPU_KVCACHE_SPACE": "2",
    }
    assert (made.device, made.gpu_layers, made.context_tokens, made.slots, made.chat) == ("cpu", 0, 8192, 16, True)
    assert made.bytes_by_device == (("cpu", 2 * GIB + 2 * GIB + 2 * GIB),)


def test_embeddings_are_pooled_in_the_precision_of_the_file() -> None:
    made = plan(EMBED)
    assert (option(made, "--runner"), option(made, "--dtype"), made.embedding) == ("pooling", "float32", True)
    assert "--tool-call-parser" not in made.argv
    assert made.bytes_by_device == (("cpu", 4 * GIB),), "an encoder keeps no cache"
    assert option(plan(EMBED, machine(gpu())), "--dtype") == "auto"


def test_on_a_gpu_to_the_word() -> None:
    made = plan(hardware=machine(gpu()))
    words = made.argv[made.argv.index("--max-model-len") :]
    assert words[:10] == (
        "--max-model-len", "8192", "--max-num-seqs", "128", "--runner", "generate", "--dtype", "auto",
        "--gpu-memory-utilization", "0.9",
    )  # fmt: skip
    assert "--enforce-eager" not in made.argv
    assert "VLLM_CPU_KVCACHE_SPACE" not in dict(made.environment)
    assert (made.device, made.gpu_layers, made.layers) == ("gpu", 16, 16)
    assert dict(made.bytes_by_device)["CUDA0"] == int(0.9 * 80 * GIB)


def test_a_gpu_that_others_use_gives_what_is_free() -> None:
    made = plan(hardware=machine(gpu(free=41 * GIB)))
    assert option(made, "--gpu-memory-utilization") == "0.5"
    assert "what is free" in why(made, "memory")


def test_the_roomiest_gpu_is_taken_alone() -> None:
    made = plan(hardware=machine(gpu(0, free=8 * GIB), gpu(1)))
    assert dict(made.environment)["CUDA_VISIBLE_DEVICES"] == "1"
    assert [device for device, _ in made.bytes_by_device] == ["cpu", "CUDA1"]
    assert dict(plan(hardware=machine(gpu(0), gpu(1)), main_gpu=1).environment)["CUDA_VISIBLE_DEVICES"] == "1"


OPTIONS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "share": ({"gpu_memory_share": 0.5}, ("--gpu-memory-utilization", "0.5")),
    "cache": ({"kv_cache_gib": 4}, ("--kv-cache-memory-bytes", str(4 * GIB))),
    "cache type": ({"kv_cache_dtype": "fp8"}, ("--kv-cache-dtype", "fp8")),
    "offload": ({"cpu_offload_gib": 2.5}, ("--cpu-offload-gb", "2.5")),
    "dtype": ({"dtype": "bfloat16"}, ("--dtype", "bfloat16")),
    "quantization": ({"quantization": "fp8"}, ("--quantization", "fp8")),
    "load format": ({"load_format": "safetensors"}, ("--load-format", "safetensors")),
    "length": ({"max_length": 1000}, ("--max-model-len", "1000")),
    "requests": ({"max_requests": 7}, ("--max-num-seqs", "7")),
    "eager": ({"enforce_eager": True}, ("--enforce-eager",)),
    "caching": ({"prefix_caching": False}, ("--no-enable-prefix-caching",)),
    "tools": ({"tool_parser": "llama3_json"}, ("--tool-call-parser", "llama3_json")),
    "thinking": ({"reasoning_parser": "qwen3"}, ("--reasoning-parser", "qwen3")),
    "adapter": (
        {"lora": "/adapters/one", "max_lora_rank": 32},
        ("--enable-lora", "--lora-modules", "adapter=/adapters/one", "--max-lora-rank", "32"),
    ),
    "tensor parallel": ({"tensor_parallel": 2}, ("--tensor-parallel-size", "2")),
    "pipeline parallel": ({"pipeline_parallel": 4}, ("--pipeline-parallel-size", "4")),
    "data parallel": ({"data_parallel": 4}, ("--data-parallel-size", "4")),
    "experts": ({"expert_parallel": True, "tensor_parallel": 2}, ("--enable-expert-parallel",)),
    "executor": ({"executor": "mp", "tensor_parallel": 2}, ("--distributed-executor-backend", "mp")),
    "Ray": (
        {"executor": "ray", "tensor_parallel": 8, "pipeline_parallel": 2, "ray_address": "10.0.0.1:6379"},
        ("--tensor-parallel-size", "8", "--pipeline-parallel-size", "2", "--distributed-executor-backend", "ray"),
    ),
    "nodes": (
        {"nodes": 2, "tensor_parallel": 8, "master_address": "10.0.0.1", "master_port": 29501},
        ("--tensor-parallel-size", "8", "--nnodes", "2", "--node-rank", "0", "--master-addr", "10.0.0.1",
         "--master-port", "29501"),
    ),
    "replicas elsewhere": (
        {"data_parallel": 4, "data_parallel_local": 2, "data_parallel_address": "10.0.0.1",
         "data_parallel_port": 13345},
        ("--data-parallel-size", "4", "--data-parallel-size-local", "2", "--data-parallel-address", "10.0.0.1",
         "--data-parallel-rpc-port", "13345"),
    ),
    "replicas by Ray": (
        {"data_parallel": 8, "data_parallel_backend": "ray", "data_parallel_local": 8},
        ("--data-parallel-size", "8", "--data-parallel-size-local", "8", "--data-parallel-backend", "ray"),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("table", "words"), OPTIONS.values(), ids=OPTIONS.keys())
def test_options_become_words(table: dict[str, Any], words: tuple[str, ...]) -> None:
    made = plan(hardware=machine(*(gpu(number) for number in range(4))), table=table)
    at = made.argv.index(words[0])
    assert made.argv[at : at + len(words)] == words


ENVIRONMENT: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "Ray's address": ({"executor": "ray", "ray_address": "10.0.0.1:6379"}, {"RAY_ADDRESS": "10.0.0.1:6379"}),
    "this machine's address": ({"host_ip": "10.0.0.1"}, {"VLLM_HOST_IP": "10.0.0.1"}),
    "the network between them": (
        {"network_interface": "eth0"},
        {"NCCL_SOCKET_IFNAME": "eth0", "GLOO_SOCKET_IFNAME": "eth0"},
    ),
}


@pytest.mark.parametrize(("table", "variables"), ENVIRONMENT.values(), ids=ENVIRONMENT.keys())
def test_options_become_variables(table: dict[str, Any], variables: dict[str, str]) -> None:
    made = dict(plan(hardware=machine(gpu()), table=table).environment)
    assert {name: made[name] for name in variables} == variables


def test_several_machines_are_told_of() -> None:
    over = plan(hardware=machine(gpu()), table={"executor": "ray", "tensor_parallel": 8})
    assert "Ray cluster" in why(over, "machines")
    assert "on other machines" in why(over, "device")
    assert why(plan(), "machines") == ""


def test_more_gpus_than_there_are() -> None:
    with pytest.raises(UnsupportedError, match="4 GPUs, and this machine has 2") as caught:
        plan(hardware=machine(gpu(0), gpu(1)), table={"tensor_parallel": 4})
    assert caught.value.capability == "tensor_parallel"


def test_a_models_own_options_come_first() -> None:
    table = {"tensor_parallel": 2, "models": {"chat": {"tensor_parallel": 1, "quantization": "awq"}}}
    made = plan(hardware=machine(gpu(0), gpu(1)), table=table)
    assert "--tensor-parallel-size" not in made.argv
    assert option(made, "--quantization") == "awq"


# -- memory


@pytest.mark.parametrize(
    ("ram_gib", "context", "cache_gib"),
    [(24, 8192, 2), (8, 8192, 1), (5.6, 8192, 1)],
)
def test_cache_in_ram(ram_gib: float, context: int, cache_gib: int) -> None:
    made = plan(hardware=machine(ram=int(ram_gib * GIB)))
    assert made.context_tokens == context
    assert dict(made.environment)["VLLM_CPU_KVCACHE_SPACE"] == str(cache_gib)
    assert made.bytes_total <= ram_gib * GIB


def test_context_gives_way_to_memory() -> None:
    greedy = msgspec.structs.replace(CHAT, context_tokens=131_072, kv_bytes_per_token=512 * 1024)
    made = plan(greedy, machine(ram=12 * GIB))
    assert made.context_tokens == 7 * GIB // (512 * 1024) // 256 * 256
    assert "memory has no room for 32768" in why(made, "context")
    on_gpu = plan(greedy, machine(gpu(total=16 * GIB)))
    assert 512 <= on_gpu.context_tokens < 32_768
    assert on_gpu.context_tokens % 256 == 0


def test_long_contexts_are_for_those_who_ask() -> None:
    long = msgspec.structs.replace(CHAT, context_tokens=131_072)
    assert plan(long).context_tokens == 32_768
    assert plan(long, context_tokens=65_536).context_tokens == 65_536
    assert plan(long, table={"max_length": 40_000}).context_tokens == 40_000
    reduced = plan(context_tokens=100_000)
    assert reduced.context_tokens == 8192
    assert "not the 100000 asked for" in why(reduced, "context_reduced")


@pytest.mark.parametrize("hardware", [machine(ram=4 * GIB), machine(gpu(total=3 * GIB))], ids=["RAM", "GPU"])
def test_what_does_not_fit_is_refused_with_both_figures(hardware: Hardware) -> None:
    with pytest.raises(InsufficientMemoryError, match="GiB") as caught:
        plan(hardware=hardware)
    assert caught.value.needed_bytes and caught.value.available_bytes is not None
    assert caught.value.needed_bytes > caught.value.available_bytes


def test_what_was_asked_for_is_not_given_up() -> None:
    with pytest.raises(InsufficientMemoryError):
        plan(hardware=machine(ram=5 * GIB), context_tokens=8192)
    assert plan(context_tokens=4096).fallbacks == ()


def test_half_of_the_context_is_the_way_down() -> None:
    (rung,) = plan().fallbacks
    assert (rung.context_tokens, rung.fallbacks) == (4096, ())
    (rung,) = plan(hardware=machine(gpu())).fallbacks
    assert rung.context_tokens == 4096
    assert "--enforce-eager" in rung.argv, "CUDA graphs take memory too"


def test_a_smaller_cache_holds_more() -> None:
    tight = machine(gpu(total=5 * GIB))
    whole = plan(msgspec.structs.replace(CHAT, context_tokens=32_768), tight)
    small = plan(msgspec.structs.replace(CHAT, context_tokens=32_768), tight, {"kv_cache_dtype": "fp8"})
    assert small.context_tokens > 1.5 * whole.context_tokens


# -- load options


def test_threads_that_are_asked_for_are_not_bound() -> None:
    made = plan(threads=3)
    assert made.threads == 3
    assert dict(made.environment)["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"
    assert dict(made.environment)["OMP_NUM_THREADS"] == "3"
    assert plan().threads == 7, "vLLM keeps a core for its server"


def test_batches_and_templates() -> None:
    made = plan(batch_tokens=512, chat_template="{{ messages }}", slots=3)
    assert option(made, "--max-num-batched-tokens") == "512"
    assert option(made, "--chat-template") == "{template}"
    assert option(made, "--max-num-seqs") == "3"


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a cache type of llama.cpp's": ({"kv_cache_type": "q8_0"}, "kv_cache_dtype"),
    "a template by name": ({"chat_template": "chatml"}, "Jinja"),
    "some of the layers": ({"gpu_layers": 3}, "cpu_offload_gib"),
    "no layers at all": ({"gpu_layers": 0}, "all of them"),
    "a GPU that isn't there": ({"main_gpu": 4}, "main_gpu"),
    "no slots": ({"slots": 0}, "slots"),
    "no context": ({"context_tokens": 0}, "context_tokens"),
}


@pytest.mark.parametrize(("load", "said"), REFUSED.values(), ids=REFUSED.keys())
def test_load_options_that_can_not_be_honoured(load: dict[str, Any], said: str) -> None:
    with pytest.raises(UnsupportedError, match=said) as caught:
        plan(hardware=machine(gpu()), **load)
    assert caught.value.driver == "vllm"


def test_more_layers_than_there_are_is_all_of_them() -> None:
    assert plan(hardware=machine(gpu()), gpu_layers=99).gpu_layers == 16
    assert plan(gpu_layers=99).device == "cpu"


# -- models


NOT_OURS: dict[str, tuple[dict[str, Any], str]] = {
    "GGUF": ({"format": "gguf"}, "llama_cpp"),
    "EXL2": ({"format": "exl2"}, "'exl2'"),
    "no weights": ({"files": ()}, "no weights"),
    "code of its own": ({"own_code": True}, "auto_map"),
    "no architecture": ({"architecture": ""}, "no architecture"),
    "a reranker": ({"pooling": "rank"}, "classifies or ranks"),
}


@pytest.mark.parametrize(("changes", "said"), NOT_OURS.values(), ids=NOT_OURS.keys())
def test_models_that_it_does_not_run(changes: dict[str, Any], said: str) -> None:
    model = msgspec.structs.replace(CHAT, **changes)
    support = VllmDriver(DriverOptions(run_dir="/nowhere")).supports(model)
    assert not support.supported and said in support.reason
    with pytest.raises(UnsupportedError, match="can't run on vLLM"):
        plan(model)


def test_a_damaged_model_is_not_planned() -> None:
    with pytest.raises(ModelDamagedError):
        plan(msgspec.structs.replace(CHAT, damage="a file is missing"))


def test_without_vllm_the_reason_is_the_error() -> None:
    probe = EngineProbe(driver="vllm", engine="vllm", command=(), problem="no vLLM was found: install it")
    with pytest.raises(DriverUnavailableError, match="no vLLM was found"):
        plan(hardware=msgspec.structs.replace(machine(), engines=(probe,)))


def test_every_choice_has_its_reason() -> None:
    for made in (plan(), plan(hardware=machine(gpu())), plan(EMBED)):
        assert {"engine", "device", "context", "slots"} <= {subject for subject, _ in made.reasons}
    assert "hermes" in why(plan(), "tools")
    assert "no chat template" in why(plan(msgspec.structs.replace(CHAT, chat_template=None)), "template")
    unknown = msgspec.structs.replace(CHAT, chat_template="{{ tools }} in a way of its own")
    assert "tool_parser" in why(plan(unknown), "tools")
