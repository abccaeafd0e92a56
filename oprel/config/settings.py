"""All that can be set, with its defaults."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from oprel.config.address import DEFAULT_PORT
from oprel.config.remotes import Remote

__all__ = ["Settings"]


class Settings(BaseModel):
    """All that can be set. None: planned, or found. Times in seconds (`math.inf`: for ever), sizes in bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    scheme: str = "http"  # for clients of a server behind TLS
    models_dir: Path = Path("~/.oprel/models")
    models: tuple[str, ...] = ()  # those that a project needs: what `oprel lock` locks
    extra_models_dirs: tuple[Path, ...] = ()  # other Ollama stores on this machine: read, never written
    state_dir: Path = Path("~/.oprel/state")
    aliases_file: Path | None = None
    keep_versions: int = 3  # of each model, beside the one that is used
    keep_versions_bytes: int = 20 * 1024**3  # of all models together, what is used not counted
    driver: str = "auto"
    drivers: tuple[str, ...] = ()  # third parties' drivers that `auto` may choose
    model_drivers: dict[str, str] = {}  # by a model's name: the driver that runs it
    llama_server: Path | None = None
    exllama_python: Path | None = None  # an interpreter that has exllamav2, exllamav3 or both
    exllama: dict[str, Any] = {}  # the table [exllama]: its drivers' options, checked by oprel.drivers.exllama
    trees_dir: Path = Path("~/.oprel/trees")  # models that are folders
    vllm_python: Path | None = None  # an interpreter that has vLLM, or the `vllm` program
    vllm: dict[str, Any] = {}  # the table [vllm]: its driver's own options, checked by oprel.drivers.vllm
    preload: tuple[str, ...] = ()
    parallel: int | None = None
    context: int | None = None
    gpu_layers: int | None = None
    threads: int | None = None
    kv_cache_type: str | None = None
    chat_template: str | None = None  # for models that have none
    memory_limit_bytes: int | None = None
    keep_alive: float = 300.0
    max_keep_alive: float = math.inf  # the most that a request may ask for
    max_loaded: int | None = None
    max_queue: int = 512
    load_timeout: float = 300.0
    stall_timeout: float = 60.0
    request_time_limit: float = 600.0  # wall clock of a generation without max_tokens
    drain_timeout: float = 30.0
    send_timeout: float = 60.0
    ping_interval: float = 10.0  # of silence before a stream's first token, after which a comment is sent, and again
    header_timeout: float = 10.0  # from a request's first byte to the end of its headers
    body_timeout: float = 30.0  # for a body to arrive, and one second more for each 16 KiB of it
    max_body_bytes: int = 32 * 1024 * 1024
    api_keys: tuple[str, ...] = ()
    allow_unauthenticated: bool = False
    origins: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()  # names that this server may be called by, beyond its own
    trusted_registries: tuple[str, ...] = ()  # hosts of registries that may be inside this network
    remotes: tuple[Remote, ...] = ()  # other servers, whose models have local names
    strict: bool = False  # answers are held against the API documents, and departures told in the log
    verbose: bool = False
    log_file: Path | None = None  # where the log goes instead of stderr

    @property
    def keeps_for_ever(self) -> bool:
        return math.isinf(self.keep_alive)

    @property
    def base_url(self) -> str:
        """Where a client on this machine finds the server: an unspecified address becomes the loopback one."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(self.host, self.host)  # noqa: S104
        return f"{self.scheme}://{f'[{host}]' if ':' in host else host}:{self.port}"
