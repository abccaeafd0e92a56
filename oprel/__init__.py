"""Oprel: a local model server for every OpenAI, Anthropic and Ollama client, on any engine.

The rooms, top to bottom; each imports only what stands below it (checked by import-linter):

    testing, cli    the contract as a pytest plugin; what a person types
    sdk             what a program imports
    server          the Litestar app: wiring, keys, origins, limits, health
    dialects        openai/ anthropic/ ollama/: wire forms to and from schema/
    scheduler       leases, queue, residency, memory budget, keep-alive
    drivers         the contract, the registry, child processes, and the engines that ship
    sources         where models come from
    templates       Go's text templates, and how Ollama puts a conversation into one
    store           models on disk, in Ollama's layout
    hardware, net   what this machine has; HTTP clients
    schema          requests, events, capabilities, plans: plain immutable data
    config, errors  settings; one tree of errors
"""

from __future__ import annotations

from oprel.version import __version__

TYPE_CHECKING = False  # without importing typing: `oprel --version` has a few milliseconds
if TYPE_CHECKING:
    from typing import Any

    from oprel.errors import BackendError, ModelNotFoundError, OprelError
    from oprel.errors import InsufficientMemoryError as MemoryError
    from oprel.sdk import AsyncClient, Client, Config, Model
    from oprel.sdk.defaults import (
        chat,
        delete,
        download_model,
        embed,
        generate,
        get_hardware_info,
        list,
        ps,
        pull,
        show,
    )
    from oprel.sdk.responses import (
        ChatResponse,
        EmbedResponse,
        GenerateResponse,
        ListResponse,
        Message,
        ModelInfo,
        ProcessResponse,
        ProgressResponse,
        ShowResponse,
    )

# Where each public name lives: it is imported when it is first used, so that `import oprel` costs nothing.
_HOMES = {
    "oprel.errors": ("BackendError", "ModelNotFoundError", "OprelError"),
    "oprel.sdk": ("AsyncClient", "Client", "Config", "Model"),
    "oprel.sdk.defaults": (
        "chat",
        "delete",
        "download_model",
        "embed",
        "generate",
        "get_hardware_info",
        "list",
        "ps",
        "pull",
        "show",
    ),
    "oprel.sdk.responses": (
        "ChatResponse",
        "EmbedResponse",
        "GenerateResponse",
        "ListResponse",
        "Message",
        "ModelInfo",
        "ProcessResponse",
        "ProgressResponse",
        "ShowResponse",
    ),
}
_LAZY = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "AsyncClient",
    "BackendError",
    "ChatResponse",
    "Client",
    "Config",
    "EmbedResponse",
    "GenerateResponse",
    "ListResponse",
    "MemoryError",
    "Message",
    "Model",
    "ModelInfo",
    "ModelNotFoundError",
    "OprelError",
    "ProcessResponse",
    "ProgressResponse",
    "ShowResponse",
    "__version__",
    "chat",
    "delete",
    "download_model",
    "embed",
    "generate",
    "get_hardware_info",
    "list",
    "ps",
    "pull",
    "show",
]


def __getattr__(name: str) -> Any:
    if name == "MemoryError":
        from oprel.errors import InsufficientMemoryError

        return InsufficientMemoryError
    home = _LAZY.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(home), name)
