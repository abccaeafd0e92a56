"""`oprel serve` and `oprel stop`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from oprel.cli.common import add_address, client_of, settings_of
from oprel.cli.terminal import Terminal
from oprel.errors import ConfigError

if TYPE_CHECKING:
    from litestar.types import ASGIApp

    from oprel.config import Settings

__all__ = ["add_commands"]

_SERVER_SETTINGS = (
    "driver", "models_dir", "model", "api_key", "api_key_file", "parallel", "context", "keep_alive", "max_loaded",
    "max_queue", "llama_server", "exllama_python", "vllm_python", "trees_dir", "origins", "allowed_hosts",
    "chat_template", "allow_unauthenticated", "gpu_layers", "threads", "kv_cache_type", "memory_limit", "drain_timeout",
    "strict", "log_file",
)  # fmt: skip


def add_commands(commands: Any) -> None:
    serve = commands.add_parser("serve", help="run the server, in the foreground")
    _add_serve_flags(serve)
    serve.set_defaults(command=_serve)

    stop = commands.add_parser("stop", help="unload one model; without a name, end the server")
    stop.add_argument("model", nargs="?", metavar="MODEL")
    add_address(stop)
    stop.set_defaults(command=_stop)


def _add_serve_flags(serve: argparse.ArgumentParser) -> None:
    add_address(serve)
    flag = serve.add_argument
    flag("--driver", metavar="NAME", help="the engine's driver (auto)")
    flag("--models-dir", metavar="DIR", help="the store (~/.oprel/models)")
    flag("--model", action="append", metavar="MODEL", help="load it at start (a file or folder too); may be repeated")
    flag("--api-key-file", metavar="FILE", help="keys that clients must have, one a line")
    flag("--api-key", metavar="KEY", help="the same, but seen by all users of this machine: prefer the file")
    flag("--allow-unauthenticated", action="store_true", default=None, help="serve other machines without a key")
    flag("--parallel", metavar="N", help="slots for each model (planned)")
    flag("--context", metavar="TOKENS", help="context for each request (planned)")
    flag("--keep-alive", metavar="TIME", help="how long an unused model stays loaded (5m)")
    flag("--max-loaded", metavar="N", help="models at once (by memory)")
    flag("--max-queue", metavar="N", help="requests that may wait (512)")
    flag("--llama-server", metavar="PATH", help="the llama-server program to use (found)")
    flag("--exllama-python", metavar="PATH", help="the Python of an ExLlama environment")
    flag("--vllm-python", metavar="PATH", help="a Python that has vLLM, or a vllm program (found)")
    flag("--trees-dir", metavar="DIR", help="where models that are folders are kept (~/.oprel/trees)")
    flag("--origins", metavar="LIST", help="origins of web pages that may use the server, separated by commas")
    flag("--allowed-hosts", metavar="LIST", help="further names that the server may be called by")
    flag("--chat-template", metavar="TEMPLATE", help="for models that have none")
    flag("--gpu-layers", metavar="N", help="layers on the GPU (planned)")
    flag("--threads", metavar="N", help="threads of each engine (planned)")
    flag("--kv-cache-type", metavar="TYPE", help="f16, q8_0 or q4_0 (f16)")
    flag("--memory-limit", metavar="SIZE", help="memory for all models together (planned)")
    flag("--strict", action="store_true", default=None, help="hold answers against the API documents, tell departures")
    flag("--log-file", metavar="FILE", help="where the log goes (stderr); the newest 20 MiB of it are kept")
    flag("--drain-timeout", metavar="TIME", help="how long running requests may take when the server ends (30s)")


def _serve(arguments: argparse.Namespace, terminal: Terminal) -> None:
    settings = _with_files(settings_of(arguments, *_SERVER_SETTINGS), terminal)
    if arguments.api_key is not None:
        terminal.remark(
            "oprel: --api-key can be read by every user of this machine: prefer --api-key-file or OPREL_API_KEY"
        )
    from oprel.server import serve

    say = terminal.answer if not terminal.quiet else lambda line: None
    observe = _strict() if settings.strict else None
    if observe is not None:
        say("strict: answers are held against the API documents, and the log tells what isn't as they say")
    serve(settings, say=say, observe=observe)


def _strict() -> Callable[[ASGIApp], ASGIApp]:
    try:
        from oprel.testing.strict import Strict
    except ImportError as missing:
        raise ConfigError(
            f"--strict needs the package {missing.name!r}: install Oprel with its extra [testing]"
        ) from missing
    return Strict


def _with_files(settings: Settings, terminal: Terminal) -> Settings:
    """Files and folders among the models to load become models first."""
    from oprel.cli.files import import_file, is_file_name

    if not any(is_file_name(model) for model in settings.preload):
        return settings
    names = tuple(
        import_file(model, settings, terminal) if is_file_name(model) else model for model in settings.preload
    )
    return settings.model_copy(update={"preload": names})


def _stop(arguments: argparse.Namespace, terminal: Terminal) -> int:
    settings = settings_of(arguments)
    with client_of(settings) as client:
        if arguments.model is not None:
            client.show(arguments.model)  # a name that isn't there is an error, not a model that isn't loaded
            client.generate(arguments.model, keep_alive=0)
            terminal.remark(f"{arguments.model} is unloaded")
            return 0
        if not client.is_there():
            terminal.remark(f"no Oprel server answers at {settings.base_url}: there is nothing to stop")
            return 0
        client.shutdown()
    return _wait_end(settings, terminal)


def _wait_end(settings: Any, terminal: Terminal) -> int:
    from oprel.sdk.background import wait_gone

    # Running requests may end first, and engines after them.
    if wait_gone(settings, limit_s=settings.drain_timeout + 15):
        terminal.remark(f"the server at {settings.base_url} is stopped")
        return 0
    terminal.remark(f"oprel: the server at {settings.base_url} was asked to stop, and is still there")
    return 1
