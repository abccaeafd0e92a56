"""The bundled engine as a program: xllamacpp's server behind a part of llama-server's own command line.

Run by path, as `python -I -S host.py --import-path DIR …`, so that nothing else is imported than xllamacpp out of
DIR. The key comes by `LLAMA_API_KEY`. `--probe` prints what this build has as one line of JSON, and ends.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__: list[str] = []

Setter = Callable[[Any, Any, str], None]

_SWITCH = {"on": True, "off": False, "1": True, "0": False}


class _UsageError(Exception):
    pass


def _attribute(path: str, convert: Callable[[str], Any]) -> tuple[str, Setter]:
    """Sets `path` (dots go down), converted."""

    def set_it(_x: Any, params: Any, value: str) -> None:
        *parents, last = path.split(".")
        for parent in parents:
            params = getattr(params, parent)
        setattr(params, last, convert(value))

    return path, set_it


def _enum(path: str, enum: str, names: dict[str, str]) -> tuple[str, Setter]:
    """Sets `path` to a member of one of xllamacpp's enums."""

    def set_it(x: Any, params: Any, value: str) -> None:
        if value not in names:
            raise _UsageError(f"{value!r} is none of {', '.join(names)}")
        setattr(params, path, getattr(getattr(x, enum), names[value]))

    return path, set_it


def _flag(path: str, value: bool) -> tuple[str, Setter]:
    return path, lambda _x, params, _value: setattr(params, path, value)


def _layers(value: str) -> int:
    return {"auto": -1, "all": -2}[value] if value in ("auto", "all") else int(value)


def _text_of(path: str) -> str:
    return Path(path).read_text(encoding="utf-8")


def _set_adapters(x: Any, params: Any, value: str) -> None:
    adapters = []
    for path in value.split(","):
        adapter = x.CommonAdapterLoraInfo()
        adapter.path, adapter.scale = path, 1.0
        adapters.append(adapter)
    params.lora_adapters = adapters


_CACHE_TYPES = {name: f"GGML_TYPE_{name.upper()}" for name in ("f32", "f16", "bf16", "q8_0", "q5_0", "q4_0", "q4_1")}
_FLASH = {f"{word}": f"LLAMA_FLASH_ATTN_TYPE_{name}" for word, name in (
    ("auto", "AUTO"), ("on", "ENABLED"), ("off", "DISABLED"),
)}  # fmt: skip
_LOAD = {word: f"LLAMA_LOAD_MODE_{name}" for word, name in (
    ("auto", "AUTO"), ("none", "NONE"), ("mmap", "MMAP"), ("mlock", "MLOCK"),
)}  # fmt: skip
_POOLING = {name: f"LLAMA_POOLING_TYPE_{name.upper()}" for name in ("none", "mean", "cls", "last", "rank")}
_SPLIT = {name: f"LLAMA_SPLIT_MODE_{name.upper()}" for name in ("none", "layer", "row")}

# Options with a value, then those without: (attribute that must be there, setter).
_VALUES: dict[str, tuple[str, Setter]] = {
    "--model": _attribute("model.path", str),
    "--alias": _attribute("model_alias", lambda value: [value]),
    "--host": _attribute("hostnames", lambda value: [value]),
    "--port": _attribute("port", int),
    "--parallel": _attribute("n_parallel", int),
    "--ctx-size": _attribute("n_ctx", int),
    "--threads": _attribute("cpuparams.n_threads", int),
    "--threads-batch": _attribute("cpuparams_batch.n_threads", int),
    "--batch-size": _attribute("n_batch", int),
    "--ubatch-size": _attribute("n_ubatch", int),
    "--gpu-layers": _attribute("n_gpu_layers", _layers),
    "--fit": _attribute("fit_params", _SWITCH.__getitem__),
    "--main-gpu": _attribute("main_gpu", int),
    "--split-mode": _enum("split_mode", "llama_split_mode", _SPLIT),
    "--flash-attn": _enum("flash_attn_type", "llama_flash_attn_type", _FLASH),
    "--cache-type-k": _enum("cache_type_k", "ggml_type", _CACHE_TYPES),
    "--cache-type-v": _enum("cache_type_v", "ggml_type", _CACHE_TYPES),
    "--cache-ram": _attribute("cache_ram_mib", int),
    "--load-mode": _enum("load_mode", "llama_load_mode", _LOAD),
    "--pooling": _enum("pooling_type", "llama_pooling_type", _POOLING),
    "--chat-template": _attribute("chat_template", str),
    "--chat-template-file": _attribute("chat_template", _text_of),
    "--mmproj": _attribute("mmproj.path", str),
    "--lora": ("lora_adapters", _set_adapters),
    "--log-verbosity": _attribute("verbosity", int),
}
_FLAGS: dict[str, tuple[str, Setter]] = {
    "--embeddings": _flag("embedding", True),
    "--jinja": _flag("use_jinja", True),
    "--no-kv-unified": _flag("kv_unified", False),
    "--no-ui": _flag("ui", False),
    "--no-warmup": _flag("warmup", False),
    "--offline": _flag("offline", True),
}


def main() -> None:
    arguments = sys.argv[1:]
    if arguments[:1] == ["--import-path"]:
        sys.path.insert(0, arguments[1])
        arguments = arguments[2:]
    import xllamacpp  # type: ignore[import-untyped, unused-ignore]

    if arguments == ["--probe"]:
        _print_probe(xllamacpp)
        return
    try:
        params = _params(xllamacpp, arguments)
    except (_UsageError, ValueError, KeyError, OSError, TypeError) as error:
        sys.exit(f"error: invalid argument: {error}")
    key = os.environ.pop("LLAMA_API_KEY", "")
    params.api_keys = [key] if key else []
    try:
        server = xllamacpp.Server(params)
    except RuntimeError as error:
        # The reason is in the log above, which C++ wrote.
        sys.stdout.flush()
        sys.stderr.write(f"error: {error}\n")
        sys.stderr.flush()
        os._exit(1)
    while server:
        signal.pause()


def _params(x: Any, arguments: list[str]) -> Any:
    params = x.CommonParams()
    rest = iter(arguments)
    for option in rest:
        if option in _VALUES:
            needs, setter = _VALUES[option]
            value = next(rest, None)
            if value is None:
                raise _UsageError(f"{option} wants a value")
        elif option in _FLAGS:
            (needs, setter), value = _FLAGS[option], ""
        else:
            raise _UsageError(option)
        if not _has(params, needs):
            raise _UsageError(f"{option}: this xllamacpp has no {needs!r}")
        setter(x, params, value)
    return params


def _has(params: Any, path: str) -> bool:
    """xllamacpp follows llama.cpp week by week: an attribute may come and go."""
    for name in path.split("."):
        if not hasattr(params, name):
            return False
        params = getattr(params, name)
    return True


def _print_probe(x: Any) -> None:
    import json

    params = x.CommonParams()
    listed = [option for option, (needs, _) in {**_VALUES, **_FLAGS}.items() if _has(params, needs)]
    devices = [_device(entry) for entry in x.get_device_info() if entry["type"].name.endswith("GPU")]
    print(json.dumps({"version": x.__version__, "flags": listed, "devices": devices}))


def _device(entry: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": entry["name"],
        "name": entry["description"],
        "total_bytes": entry["memory_total"],
        "free_bytes": entry["memory_free"],
        "integrated": entry["type"].name.endswith("_IGPU"),
    }


if __name__ == "__main__":
    main()
