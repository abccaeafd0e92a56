"""What vLLM's log tells while a model is loaded: how much cache there is, and why it failed.

Every line has the process and often the level, time and place before it: `(EngineCore pid=7) ERROR 11-23 08:44:01
[core.py:100] ValueError: …`. Failures are tracebacks, printed by each process that they pass through: the line that
says what happened is one of their last lines, `…Error: …`, and the later ones only say that a process ended.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from oprel.drivers.local.words import Cause

__all__ = ["LoadReport", "classify"]


_PREFIX = re.compile(
    r"^(?:\(\w+(?: pid=\d+|_\w+)*\) )?(?:(?:INFO|WARNING|ERROR|CRITICAL|DEBUG) \d\d-\d\d \d\d:\d\d:\d\d "
    r"(?:\[[^\]]+\] ?)?)?"
)
_CACHE = re.compile(r"KV cache size: ([\d,]+) tokens")
_ERROR_LINE = re.compile(r"^\s*(?:[a-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Interrupt|Exit): \S")
# What only says that something was said before.
_SAYS_NOTHING = re.compile(
    r"See root cause above|Engine core initialization failed|EngineDeadError|WorkerProc initialization failed|"
    r"Engine process failed to start|cancelled"
)

# From the most telling to the least; each with what it means, told to the user before vLLM's own line.
_MEANINGS: tuple[tuple[Cause, str, str], ...] = (
    ("gpu", r"Free memory on device .* is less than desired", "the GPU has not enough free memory"),
    ("gpu", r"(CUDA|HIP) out of memory|OutOfMemoryError", "the GPU has not enough free memory"),
    ("gpu", r"No CUDA GPUs are available|CUDA driver version is insufficient|no kernel image is available|"
            r"CUDA error|NVMLError|Failed to infer device type", "the GPU can't be used"),
    ("memory", r"No available memory for the cache blocks", "there is no memory left for the cache"),
    ("memory", r"KV cache is needed, which is larger than the available KV cache memory",
     "the cache has no room for one whole context"),
    ("memory", r"DefaultCPUAllocator: can't allocate memory|Cannot allocate memory|MemoryError",
     "there is not enough memory"),
    ("model", r"User-specified max_model_len .* is greater", "the model has not that much context"),
    ("model", r"Model architectures? .*(not supported|failed to be inspected)|"
              r"has no vLLM implementation", "vLLM doesn't know the model's architecture"),
    ("model", r"SafetensorError|HeaderTooLarge|InvalidHeader|MetadataIncomplete|IncompleteMetadata",
     "its weights can't be read"),
    ("model", r"(Unknown|Unsupported|Invalid) quantization|quantization method .* (not supported|does not match)|"
              r"Cannot find the config file for", "its quantization can't be used"),
    ("model", r"Cannot find any model weights|Following weights were not initialized|"
              r"There is no module or parameter named|size mismatch|shape mismatch",
     "its weights don't suit its config"),
    ("model", r"[Tt]okenizer.*(can't|cannot|couldn't|does not|Unable)|(can't|cannot|couldn't) .*tokenizer",
     "its tokenizer can't be used"),
    ("model", r"Repo id must be in the form|LocalEntryNotFound|Invalid repository ID|not a valid JSON file|"
              r"Unrecognized model in|does not recognize this architecture",
     "its folder can't be read as a model"),
    ("model", r"LoRA rank \d+ is greater than|adapter_config|LoRAAdapterNotFound", "its adapter can't be used"),
    ("model", r"divisible by tensor parallel|Total number of attention heads",
     "it can't be divided into that many parts"),
    ("engine", r"World size .* larger than|number of required GPUs exceeds|placement group|ray\.exceptions|"
               r"Ray .*(not|could)|No module named 'ray'", "there are not enough GPUs, or Ray can't be used"),
    ("engine", r"unrecognized arguments|invalid choice|error: argument", "it doesn't understand its command line"),
    ("engine", r"ModuleNotFoundError|ImportError|undefined symbol|DistributionNotFound|PackageNotFoundError",
     "its environment isn't complete"),
    ("engine", r"Address already in use", "it can't listen on its socket"),
)  # fmt: skip
_FAILURES = tuple((cause, re.compile(pattern), meaning) for cause, pattern, meaning in _MEANINGS)


class LoadReport:
    """Reads every line of a start as it comes. `cache_tokens`: what the cache holds, of all requests together."""

    def __init__(self) -> None:
        self.cache_tokens: int | None = None

    def __repr__(self) -> str:
        return f"<LoadReport cache_tokens={self.cache_tokens}>"

    def read(self, line: str) -> None:
        if found := _CACHE.search(line):
            self.cache_tokens = int(found[1].replace(",", ""))


def classify(lines: Iterable[str], returncode: int | None = None) -> tuple[Cause, str]:
    """Why a start failed: the cause, and a clause that says it with vLLM's own words."""
    told = [_PREFIX.sub("", line) for line in lines]
    for cause, pattern, meaning in _FAILURES:
        for line in reversed(told):
            if pattern.search(line) and not _SAYS_NOTHING.search(line):
                return cause, f"{meaning} ({_shortened(line)})"
    if returncode == -9:
        return "memory", "it was killed, which the system does when memory runs out"
    errors = [line for line in told if _ERROR_LINE.match(line) and not _SAYS_NOTHING.search(line)]
    if errors:
        return "engine", f"it says: {_shortened(errors[-1])}"
    last = next((line for line in reversed(told) if line.strip()), None)
    return "engine", f"its last line was: {_shortened(last)}" if last else "it said nothing"


def _shortened(line: str) -> str:
    text = " ".join(line.split())
    return text if len(text) <= 300 else text[:300] + "…"
