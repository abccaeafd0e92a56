"""Settings, read in one place: flags, then `OPREL_*`, then the `OLLAMA_*` that means the same, then a project's
`oprel.toml`, then the user's `config.toml`, then these defaults."""

from __future__ import annotations

import math
from pathlib import Path

from pydantic import BaseModel, ConfigDict

__all__ = ["Settings"]


class Settings(BaseModel):
    """All that can be set. None: planned, or found. Times in seconds (`math.inf`: for ever), sizes in bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = "127.0.0.1"
    port: int = 11434
    models_dir: Path = Path("~/.oprel/models")
    extra_models_dirs: tuple[Path, ...] = ()  # other Ollama stores on this machine: read, never written
    state_dir: Path = Path("~/.oprel/state")
    aliases_file: Path | None = None
    driver: str = "auto"
    drivers: tuple[str, ...] = ()  # third parties' drivers that `auto` may choose
    llama_server: Path | None = None
    preload: tuple[str, ...] = ()
    parallel: int | None = None
    context: int | None = None
    gpu_layers: int | None = None
    threads: int | None = None
    kv_cache_type: str | None = None
    chat_template: str | None = None  # for models that have none
    memory_limit_bytes: int | None = None
    keep_alive: float = 300.0
    max_loaded: int | None = None
    max_queue: int = 512
    load_timeout: float = 300.0
    stall_timeout: float = 60.0
    request_time_limit: float = 600.0  # wall clock of a generation without max_tokens
    drain_timeout: float = 30.0
    send_timeout: float = 60.0
    max_body_bytes: int = 32 * 1024 * 1024
    api_keys: tuple[str, ...] = ()
    allow_unauthenticated: bool = False
    origins: tuple[str, ...] = ()
    verbose: bool = False

    @property
    def keeps_for_ever(self) -> bool:
        return math.isinf(self.keep_alive)
