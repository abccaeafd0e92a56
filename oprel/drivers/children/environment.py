"""The environment of a child engine: built from what it may know, never inherited."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

__all__ = ["built_environment"]

_NAMES = frozenset(
    {
        "HOME", "LANG", "LANGUAGE", "LOGNAME", "PATH", "TMPDIR", "TZ", "USER", "XDG_CACHE_HOME",
        # Where libraries and GPU drivers are found.
        "DYLD_FALLBACK_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "LD_LIBRARY_PATH", "OCL_ICD_VENDORS",
        "ONEAPI_DEVICE_SELECTOR",
    }
)  # fmt: skip
_PREFIXES = (
    "LC_",
    "CUDA_", "NVIDIA_", "HIP_", "ROCR_", "ROCM_", "HSA_", "GGML_", "VK_", "ZE_", "SYCL_",
    "OMP_", "GOMP_", "KMP_",
)  # fmt: skip

# Without it a crashing engine may fork a debugger and hang on it.
_ALWAYS = {"GGML_NO_BACKTRACE": "1"}


def built_environment(
    extra: Iterable[tuple[str, str]] = (), *, base: Mapping[str, str] | None = None
) -> dict[str, str]:
    """What finds programs, libraries and GPUs out of `base` (this process's own by default), then `extra`.

    Tokens, cloud keys, proxies, `PYTHON*` and the engines' own `LLAMA_ARG_*` are never among it.
    """
    base = os.environ if base is None else base
    kept = {name: value for name, value in base.items() if name in _NAMES or name.startswith(_PREFIXES)}
    return {**kept, **_ALWAYS, **dict(extra)}
