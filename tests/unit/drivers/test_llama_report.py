"""Log lines as llama.cpp prints them."""

from __future__ import annotations

import pytest

from oprel.drivers.llama_cpp.report import LoadReport, classify

MIB = 1024 * 1024


def read(*lines: str) -> LoadReport:
    report = LoadReport()
    for line in lines:
        report.read(line)
    return report


def test_a_load_on_the_cpu() -> None:
    report = read(
        "0.00.282.161 I load_tensors: loading model tensors, this can take a while... (load_mode = mmap)",
        "0.00.288.500 I load_tensors:   CPU_Mapped model buffer size =    92.10 MiB",
        "0.00.291.712 I llama_context:        CPU  output buffer size =     0.75 MiB",
        "0.00.291.884 I llama_kv_cache:        CPU KV buffer size =   720.00 MiB",
        "0.02.424.323 I sched_reserve:        CPU compute buffer size =    22.64 MiB",
        "0.03.174.192 I srv          init: init: chat template, thinking = 0",
    )
    assert report.offloaded is None
    assert report.bytes_by_device() == {"cpu": pytest.approx(835.49 * MIB, abs=4)}
    assert not report.has_thinking


def test_a_load_on_two_gpus() -> None:
    report = read(
        "load_tensors: offloading 32 repeating layers to GPU",
        "load_tensors: offloaded 33/33 layers to GPU",
        "load_tensors:        CUDA0 model buffer size =  2000.00 MiB",
        "load_tensors:        CUDA1 model buffer size =  2100.00 MiB",
        "load_tensors:   CPU_Mapped model buffer size =   300.00 MiB",
        "llama_kv_cache:      CUDA0 KV buffer size =   512.00 MiB",
        "sched_reserve:      CUDA0 compute buffer size =   100.00 MiB",
        "sched_reserve:  CUDA_Host compute buffer size =    20.00 MiB",
        "srv          init: init: chat template, thinking = 1",
        "print_info: FIM PRE token         = 151659 '<|fim_prefix|>'",
    )
    assert report.offloaded == (33, 33)
    assert report.bytes_by_device() == {"CUDA0": 2612 * MIB, "CUDA1": 2100 * MIB, "cpu": 320 * MIB}
    assert report.has_thinking
    assert report.has_infill


def test_figures_are_of_the_last_load() -> None:
    load = (
        "load_tensors: loading model tensors",
        "load_tensors: CPU_Mapped model buffer size = 10.00 MiB",
        "sched_reserve: reserving ...",
        "sched_reserve: CPU compute buffer size = 5.00 MiB",
        "sched_reserve: reserving ...",
        "sched_reserve: CPU compute buffer size = 6.00 MiB",
    )
    assert read(*load, *load).bytes_by_device() == {"cpu": 16 * MIB}


@pytest.mark.parametrize(
    "line",
    [
        "ggml_cuda_init: failed to initialize CUDA: CUDA driver version is insufficient for CUDA runtime version",
        "warning: no usable GPU found, --gpu-layers option will be ignored",
    ],
)
def test_a_gpu_that_is_lost_is_noticed(line: str) -> None:
    assert read(line).gpu_lost is not None


END = (
    "0.00.368.265 I srv    operator(): cleaning up before exit...",
    "0.00.4 E srv  init: exiting due to model loading error",
)


@pytest.mark.parametrize(
    ("cause", "lines", "said"),
    [
        ("gpu", ("allocating 512.00 MiB on device 0: cudaMalloc failed: out of memory",
                 "failed to allocate buffer for kv cache"), "not enough free memory"),
        ("gpu", ("CUDA error: out of memory", "  current device: 0, in function alloc"), "free memory"),
        ("gpu", ("alloc_tensor_range: failed to allocate Vulkan0 buffer of size 100",), "free memory"),
        ("gpu", ("CUDA error: all CUDA-capable devices are busy or unavailable",), "busy"),
        ("gpu", ("CUDA error: no kernel image is available for execution on the device",), "doesn't suit"),
        ("gpu", ("the provided PTX was compiled with an unsupported toolchain.",), "doesn't suit"),
        ("gpu", ("ROCm error: unspecified launch failure",), "the GPU failed"),
        ("gpu", ("error while handling argument \"-dev\": invalid device: CUDA7",), "the GPU failed"),
        ("memory", ("ggml_backend_cpu_buffer_type_alloc_buffer: failed to allocate buffer of size 9224847360",
                    "failed to allocate CPU buffer of size 9224847360",
                    "E llama_init_from_model: failed to initialize the context: failed to allocate buffer for kv cache",
                    "srv load_model: failed to create_context with model 'x'"), "not enough memory"),
        ("model", ("llama_model_load: error loading model: tensor 'a' data is not within the file bounds, "
                   "model is corrupted or incomplete",), "damaged"),
        ("model", ("gguf_init: invalid magic characters: 'junk', expected 'GGUF'",), "isn't GGUF"),
        ("model", ("error loading model architecture: unknown model architecture: 'qwen9'",), "architecture"),
        ("model", ("0.02.488.715 E srv          init: init: chat template parsing error: std::exception",), "template"),
        ("engine", ("error: invalid argument: --no-mmap",), "--no-mmap"),
        ("engine", ("couldn't bind HTTP server socket, hostname: /x.sock, port: 0",), "socket"),
        ("engine", ("something nobody has seen before",), "something nobody has seen before"),
        ("engine", (), "it said nothing"),
    ],
)  # fmt: skip
def test_failures_are_classified(cause: str, lines: tuple[str, ...], said: str) -> None:
    found, clause = classify((*lines, *END), 1)
    assert found == cause
    assert said in clause
    assert "exiting due to" not in clause


def test_the_systems_kill_is_a_lack_of_memory() -> None:
    assert classify(("0.00.1 I srv load_model: loading model",), -9)[0] == "memory"
