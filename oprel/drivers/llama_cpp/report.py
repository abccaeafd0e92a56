"""What llama.cpp's log tells while a model is loaded: where its layers went, what its buffers take, why it failed."""

from __future__ import annotations

import re
from collections.abc import Iterable

from oprel.drivers.local.words import Cause

__all__ = ["LoadReport", "classify"]


_MIB = 1024 * 1024

_OFFLOADED = re.compile(r"offloaded (\d+)/(\d+) layers to GPU")
_BUFFER = re.compile(r"(\S+)\s+(model|KV|RS|output|compute) buffer size\s*=\s*([\d.]+) MiB")
_GPU_LOST = re.compile(r"failed to initialize (CUDA|ROCm|HIP|Vulkan|SYCL|MUSA): (.*)|no usable GPU found")
_THINKING = re.compile(r"chat template, thinking = (\d)")

# From the most telling to the least; each with what it means, told to the user before the engine's own line.
_FAILURES: tuple[tuple[Cause, re.Pattern[str], str], ...] = (
    ("gpu", re.compile(r"(cuda|hip|vk|sycl)\w*Malloc\w* failed: out of memory|ErrorOutOfDeviceMemory|"
                       r"(CUDA|ROCm|HIP) error: out of memory|"
                       r"failed to allocate (?!CPU)\w+ buffer|unable to allocate (?!CPU)\w+ buffer", re.I),
     "the GPU has not enough free memory"),
    ("gpu", re.compile(r"busy or unavailable", re.I), "the GPU is busy or unavailable"),
    ("gpu", re.compile(r"no kernel image is available|unsupported toolchain", re.I),
     "this build of the engine doesn't suit the GPU or its driver"),
    ("gpu", re.compile(r"(CUDA|ROCm|HIP|SYCL) error|ggml_cuda\w*: error|vk::\w+Error|ErrorDeviceLost|"
                       r"ggml_metal\w*: error|invalid device: ", re.I), "the GPU failed"),
    ("model", re.compile(r"invalid magic characters"), "the file isn't GGUF"),
    ("model", re.compile(r"corrupted or incomplete|not within the file bounds|failed to read tensor"),
     "the file is damaged or incomplete"),
    ("model", re.compile(r"failed to open GGUF"), "the file can't be opened"),
    ("model", re.compile(r"unknown model architecture"), "this engine doesn't know the model's architecture"),
    ("model", re.compile(r"chat template parsing error|failed to (initialize|parse) chat template"),
     "the chat template can't be used"),
    ("memory", re.compile(r"failed to allocate buffer for kv cache|failed to allocate CPU|unable to allocate CPU|"
                          r"cannot allocate memory|std::bad_alloc", re.I), "there is not enough memory"),
    ("engine", re.compile(r"invalid argument: |error while handling argument|argument has been removed"),
     "it doesn't understand its command line"),
    ("engine", re.compile(r"couldn't bind"), "it can't listen on its socket"),
    ("model", re.compile(r"error loading model|failed to load model"), "the model can't be loaded"),
)  # fmt: skip
_SAYS_NOTHING = re.compile(r"exiting due to|^Traceback|cleaning up before exit|please check the input params")
# "0.00.359.106 E srv  load_model: …": time, level, part of the program.
_LOG_PREFIX = re.compile(r"^[\d.]+ [A-Z] (?:(?:srv|cmn|slot|spec)\s+)?")


class LoadReport:
    """Reads every line of a start as it comes; the figures are of the last load in the log."""

    def __init__(self) -> None:
        self.offloaded: tuple[int, int] | None = None
        self.gpu_lost: str | None = None
        self.has_thinking = False
        self.has_infill = False
        self._buffers: dict[tuple[str, str], float] = {}

    def __repr__(self) -> str:
        return f"<LoadReport offloaded={self.offloaded} bytes={self.bytes_by_device()} gpu_lost={self.gpu_lost!r}>"

    def read(self, line: str) -> None:
        if found := _BUFFER.search(line):
            key = (_device(found[1]), found[2])
            self._buffers[key] = self._buffers.get(key, 0.0) + float(found[3])
        elif found := _OFFLOADED.search(line):
            self.offloaded = (int(found[1]), int(found[2]))
        elif found := _GPU_LOST.search(line):
            self.gpu_lost = found.group(0)
        elif found := _THINKING.search(line):
            self.has_thinking = found[1] != "0"
        elif "print_info: FIM PRE token" in line:
            self.has_infill = True
        elif "load_tensors: loading model tensors" in line:
            self._buffers.clear()
        elif "sched_reserve: reserving" in line:
            self._forget("compute")

    def bytes_by_device(self) -> dict[str, int]:
        """All buffers, by device; "cpu" is the machine's memory. Empty: the engine told nothing."""
        sums: dict[str, int] = {}
        for (device, _), mib in self._buffers.items():
            sums[device] = sums.get(device, 0) + int(mib * _MIB)
        return sums

    def _forget(self, kind: str) -> None:
        for key in [key for key in self._buffers if key[1] == kind]:
            del self._buffers[key]


def classify(lines: Iterable[str], returncode: int | None = None) -> tuple[Cause, str]:
    """Why a start failed: the cause, and a clause that says it with the engine's own words."""
    lines = tuple(lines)
    for cause, pattern, meaning in _FAILURES:
        for line in lines:
            if pattern.search(line):
                return cause, f"{meaning} ({_LOG_PREFIX.sub('', line).strip()})"
    if returncode == -9:
        return "memory", "it was killed, which the system does when memory runs out"
    telling = [line for line in lines if not _SAYS_NOTHING.search(line)]
    return "engine", f"its last line was: {_LOG_PREFIX.sub('', telling[-1]).strip()}" if telling else "it said nothing"


def _device(buffer: str) -> str:
    """`CUDA0`, `Metal`, … as they are; buffers of the machine's memory that a GPU's driver pinned are the CPU's."""
    if buffer.startswith("CPU") or buffer.endswith("_Host"):
        return "cpu"
    for suffix in ("_Mapped", "_Private", "_Split"):
        buffer = buffer.removesuffix(suffix)
    return buffer
