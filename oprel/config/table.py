"""The one table of settings: by what names each is given, and how it is read."""

from __future__ import annotations

from dataclasses import dataclass

from oprel.config.readers import (
    Reader,
    as_key,
    as_key_file,
    as_one_of,
    as_path,
    as_paths,
    as_seconds,
    as_size,
    as_table,
    as_text,
    as_texts,
    as_whole,
    as_words,
    as_yes_or_no,
)

__all__ = ["SETTINGS", "Setting"]


@dataclass(frozen=True, slots=True)
class Setting:
    """`names`: suffixes after `OPREL_`, the first found wins; `ollama`: the variable that means the same. `field` is
    where it ends up in Settings. `project`: whether a project's oprel.toml may set it: what runs programs or opens the
    server to others may not come from a folder that somebody else wrote. `in_files_only`: no variable sets it."""

    field: str
    read: Reader
    wants: str
    names: tuple[str, ...] = ()
    ollama: str | None = None
    project: bool = True
    in_files_only: bool = False

    def variables(self, key: str) -> tuple[str, ...]:
        if self.in_files_only:
            return ()
        return (*(f"OPREL_{name}" for name in self.names), f"OPREL_{key.upper()}")


_COUNT = "a whole number, 1 or more"
_TIME = "a duration such as 30s, 5m or 1h30m, or a number of seconds; negative: for ever"
_PATH = "a path"

SETTINGS: dict[str, Setting] = {
    "models_dir": Setting("models_dir", as_path, _PATH, ("MODELS",), "OLLAMA_MODELS"),
    "models": Setting("models", as_words, "a list of models' names", in_files_only=True),
    "extra_models_dirs": Setting("extra_models_dirs", as_paths, "a list of paths"),
    "state_dir": Setting("state_dir", as_path, _PATH, project=False),
    "aliases_file": Setting("aliases_file", as_path, _PATH),
    "keep_versions": Setting("keep_versions", as_whole(0), "a whole number; 0: no old versions are kept"),
    "keep_versions_size": Setting("keep_versions_bytes", as_size, "a size such as 20GiB", ("KEEP_VERSIONS_BYTES",)),
    "driver": Setting("driver", as_text, "auto, or a driver's name (see `oprel drivers`)"),
    "drivers": Setting("drivers", as_words, "a list of drivers' names", project=False),
    "model_drivers": Setting(
        "model_drivers", as_texts, 'a table [model_drivers] in the config file, with lines such as "NAME" = "vllm"'
    ),
    "llama_server": Setting("llama_server", as_path, "the path of a llama-server program", project=False),
    "exllama_python": Setting(
        "exllama_python", as_path, "the path of a Python that has exllamav2 or exllamav3", project=False
    ),
    "exllama": Setting("exllama", as_table, "a table [exllama] in the config file", project=False),
    "trees_dir": Setting("trees_dir", as_path, _PATH),
    "vllm_python": Setting("vllm_python", as_path, "the path of a Python with vLLM", project=False),
    "vllm": Setting("vllm", as_table, "a table [vllm] in the config file", project=False),
    "preload": Setting("preload", as_words, "a list of models' names", ("MODEL",)),
    "parallel": Setting(
        "parallel", as_whole(1, zero_means_planned=True), _COUNT, ("NUM_PARALLEL",), "OLLAMA_NUM_PARALLEL"
    ),
    "context": Setting(
        "context",
        as_whole(4, zero_means_planned=True),
        "a number of tokens, 4 or more",
        ("CONTEXT_LENGTH",),
        "OLLAMA_CONTEXT_LENGTH",
    ),
    "gpu_layers": Setting("gpu_layers", as_whole(0), "a whole number; 0: none on the GPU"),
    "threads": Setting("threads", as_whole(1, zero_means_planned=True), _COUNT),
    "kv_cache_type": Setting(
        "kv_cache_type", as_one_of("f16", "q8_0", "q4_0"), "f16, q8_0 or q4_0", ollama="OLLAMA_KV_CACHE_TYPE"
    ),
    "chat_template": Setting("chat_template", as_text, "a template's name, or its text"),
    "memory_limit": Setting("memory_limit_bytes", as_size, "a size such as 6GiB", ("MEMORY_LIMIT_BYTES",)),
    "keep_alive": Setting("keep_alive", as_seconds, _TIME, ollama="OLLAMA_KEEP_ALIVE"),
    "max_keep_alive": Setting("max_keep_alive", as_seconds, _TIME),
    "max_loaded": Setting(
        "max_loaded",
        as_whole(1, zero_means_planned=True),
        _COUNT,
        ("MAX_LOADED_MODELS",),
        "OLLAMA_MAX_LOADED_MODELS",
    ),
    "max_queue": Setting("max_queue", as_whole(1), _COUNT, ollama="OLLAMA_MAX_QUEUE"),
    "load_timeout": Setting("load_timeout", as_seconds, _TIME, ollama="OLLAMA_LOAD_TIMEOUT"),
    "stall_timeout": Setting("stall_timeout", as_seconds, _TIME),
    "request_time_limit": Setting("request_time_limit", as_seconds, _TIME),
    "drain_timeout": Setting("drain_timeout", as_seconds, _TIME),
    "send_timeout": Setting("send_timeout", as_seconds, _TIME),
    "ping_interval": Setting("ping_interval", as_seconds, _TIME),
    "header_timeout": Setting("header_timeout", as_seconds, _TIME),
    "body_timeout": Setting("body_timeout", as_seconds, _TIME),
    "max_body": Setting("max_body_bytes", as_size, "a size such as 32MiB", ("MAX_BODY_BYTES",)),
    "api_key": Setting("api_keys", as_key, "a key of visible ASCII characters", project=False),
    "api_key_file": Setting("api_keys", as_key_file, "a file with one key a line", project=False),
    "allow_unauthenticated": Setting("allow_unauthenticated", as_yes_or_no, "true or false", project=False),
    "origins": Setting(
        "origins", as_words, "a list of origins such as https://app.example", (), "OLLAMA_ORIGINS", project=False
    ),
    "allowed_hosts": Setting("allowed_hosts", as_words, "a list of host names", project=False),
    "trusted_registries": Setting(
        "trusted_registries", as_words, "a list of registries' hosts, each with its port if it has one", project=False
    ),
    "remote": Setting("remotes", as_table, "tables [remote.NAME]"),
    "strict": Setting("strict", as_yes_or_no, "true or false"),
    "verbose": Setting("verbose", as_yes_or_no, "true or false"),
    "log_file": Setting("log_file", as_path, _PATH, project=False),
}
