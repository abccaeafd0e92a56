"""The module-level functions: a default client for each thing asked, made when it is asked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from oprel.config import load_settings
from oprel.sdk.calls import MessageLike
from oprel.sdk.client import Client
from oprel.sdk.responses import (
    ChatResponse,
    EmbedResponse,
    GenerateResponse,
    ListResponse,
    ProcessResponse,
    ProgressResponse,
    ShowResponse,
    StatusResponse,
)

__all__ = [
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

# One for each address: settings may change between calls, connections are worth keeping.
_clients: dict[tuple[str, str | None], Client] = {}


def _client() -> Client:
    settings = load_settings()
    key = settings.api_keys[0] if settings.api_keys else None
    return _clients.setdefault((settings.base_url, key), Client(settings.base_url, api_key=key))


def chat(
    model: str, messages: Sequence[MessageLike] | None = None, stream: bool = False, **more: Any
) -> ChatResponse | Iterator[ChatResponse]:
    return _client().chat(model, messages, stream=stream, **more)  # type: ignore[call-overload, no-any-return]


def generate(
    model: str, prompt: str | None = None, stream: bool = False, **more: Any
) -> GenerateResponse | Iterator[GenerateResponse]:
    return _client().generate(model, prompt, stream=stream, **more)  # type: ignore[call-overload, no-any-return]


def embed(model: str, input: str | Sequence[str], **more: Any) -> EmbedResponse:
    return _client().embed(model, input, **more)


def list() -> ListResponse:
    return _client().list()


def ps() -> ProcessResponse:
    return _client().ps()


def show(model: str) -> ShowResponse:
    return _client().show(model)


def pull(model: str, stream: bool = False, **more: Any) -> Iterator[ProgressResponse] | None:
    return _client().pull(model, stream=stream, **more)  # type: ignore[call-overload, no-any-return]


def delete(model: str) -> StatusResponse:
    return _client().delete(model)


def download_model(
    model_id: str,
    quantization: str | None = None,
    *,
    allow_low_quality: bool = False,
    max_memory_mb: int | None = None,
) -> Path:
    """The model's weights on disk (the first part of a split file; the folder of a model that is one), fetched into the
    store unless they are there; no server is needed."""
    import asyncio

    from oprel.errors import ModelNotFoundError
    from oprel.server.compose import make_catalog, make_puller
    from oprel.sources import PullWish
    from oprel.store import with_quantization

    name = with_quantization(model_id, quantization)
    limit = None if max_memory_mb is None else max_memory_mb * 1024 * 1024
    wish = PullWish(allow_low_quality=allow_low_quality, max_memory_bytes=limit)
    settings = load_settings()
    catalog = make_catalog(settings)
    try:
        model = catalog.find(name)
    except ModelNotFoundError:

        async def fetch() -> None:
            async for _ in make_puller(settings).pull(name, wish=wish):
                pass

        asyncio.run(fetch())
        model = make_catalog(settings).find(name)
    path = Path(model.weights.path)
    return path if model.format == "gguf" else path.parent


def get_hardware_info() -> dict[str, Any]:
    """CPU, RAM and GPUs of this machine; sizes in bytes."""
    import msgspec

    from oprel.hardware import detect_hardware

    found: dict[str, Any] = msgspec.to_builtins(detect_hardware())
    del found["engines"]  # drivers tell of those
    return found
