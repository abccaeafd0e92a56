"""What a client's methods send: the Ollama dialect's requests, made once for the sync and the async client."""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import BaseModel

from oprel.config import DEFAULT_PORT, parse_address
from oprel.errors import ConfigError
from oprel.sdk.options import Config
from oprel.sdk.responses import (
    ChatResponse,
    EmbedResponse,
    GenerateResponse,
    ListResponse,
    Message,
    ProcessResponse,
    ProgressResponse,
    ShowResponse,
    StatusResponse,
)
from oprel.version import __version__

__all__ = ["Call", "MessageLike", "base_url", "request_headers"]

R = TypeVar("R", bound=BaseModel)
MessageLike = Mapping[str, Any] | Message


@dataclass(frozen=True, slots=True)
class Call(Generic[R]):
    """One request, and what its answer is read as."""

    method: str
    path: str
    answer: type[R]
    body: dict[str, Any] = field(default_factory=dict)
    model: str = ""


def base_url(host: str | None) -> str:
    """From a host, host:port or URL; None: what OPREL_HOST, OLLAMA_HOST and the config files say."""
    if host is None:
        from oprel.config import load_settings

        return load_settings().base_url
    try:
        address = parse_address(host)
    except ValueError as error:
        raise ConfigError(f"{host!r} is no address ({error}): give a host, host:port or URL") from error
    name = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(address.host, address.host)  # noqa: S104
    port = DEFAULT_PORT if address.port is None else address.port
    return f"{address.scheme}://{f'[{name}]' if ':' in name else name}:{port}{address.path}"


def request_headers(api_key: str | None, headers: Mapping[str, str] | None) -> dict[str, str]:
    """`api_key` None: OPREL_API_KEY, where it is set."""
    key = api_key or os.environ.get("OPREL_API_KEY")
    known = {"accept": "application/json", "user-agent": f"oprel/{__version__}"}
    return {**known, **({"authorization": f"Bearer {key}"} if key else {}), **(headers or {})}


def chat(model: str, messages: Sequence[MessageLike] | None, *, stream: bool, **more: Any) -> Call[ChatResponse]:
    body = _body(model, stream, more)
    body["messages"] = [_message(message) for message in messages or ()]
    return Call("POST", "/api/chat", ChatResponse, body, model)


def generate(model: str, prompt: str | None, *, stream: bool, **more: Any) -> Call[GenerateResponse]:
    body = _body(model, stream, more)
    if prompt is not None:
        body["prompt"] = prompt
    if images := more.get("images"):
        body["images"] = [_image(image) for image in images]
    return Call("POST", "/api/generate", GenerateResponse, body, model)


def embed(model: str, texts: str | Sequence[str], **more: Any) -> Call[EmbedResponse]:
    body = _body(model, False, more) | {"input": texts if isinstance(texts, str) else list(texts)}
    del body["stream"]
    return Call("POST", "/api/embed", EmbedResponse, body, model)


def tags() -> Call[ListResponse]:
    return Call("GET", "/api/tags", ListResponse)


def processes() -> Call[ProcessResponse]:
    return Call("GET", "/api/ps", ProcessResponse)


def show(model: str, *, verbose: bool = False) -> Call[ShowResponse]:
    return Call("POST", "/api/show", ShowResponse, {"model": model, **({"verbose": True} if verbose else {})}, model)


def pull(
    model: str, *, insecure: bool, stream: bool, allow_low_quality: bool = False, max_memory_mb: int | None = None
) -> Call[ProgressResponse]:
    body: dict[str, Any] = {"model": model, "stream": stream, **({"insecure": True} if insecure else {})}
    own = {"allow_low_quality": allow_low_quality or None, "max_memory_mb": max_memory_mb}
    if asked := {name: value for name, value in own.items() if value is not None}:
        body["oprel"] = asked
    return Call("POST", "/api/pull", ProgressResponse, body, model)


def push(model: str, *, insecure: bool, stream: bool) -> Call[ProgressResponse]:
    body = {"model": model, "stream": stream, **({"insecure": True} if insecure else {})}
    return Call("POST", "/api/push", ProgressResponse, body, model)


def create(model: str, *, stream: bool, **more: Any) -> Call[ProgressResponse]:
    given = {name.rstrip("_"): value for name, value in more.items() if value is not None}
    return Call("POST", "/api/create", ProgressResponse, {"model": model, "stream": stream, **given}, model)


def copy(source: str, destination: str) -> Call[StatusResponse]:
    return Call("POST", "/api/copy", StatusResponse, {"source": source, "destination": destination}, source)


def delete(model: str) -> Call[StatusResponse]:
    return Call("DELETE", "/api/delete", StatusResponse, {"model": model}, model)


def _body(model: str, stream: bool, more: Mapping[str, Any]) -> dict[str, Any]:
    body: dict[str, Any] = {"model": model, "stream": stream}
    for name, value in more.items():
        if value is not None:
            body[name] = value.as_options() if isinstance(value, Config) else _plain(value)
    return body


def _message(message: MessageLike) -> dict[str, Any]:
    fields = message.model_dump(exclude_none=True) if isinstance(message, BaseModel) else dict(message)
    if images := fields.get("images"):
        fields["images"] = [_image(image) for image in images]
    return {name: _plain(value) for name, value in fields.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(exclude_none=True)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _image(image: object) -> str:
    """Base64 text as it is; bytes, and the file at a Path, encoded."""
    if isinstance(image, Path):
        image = image.read_bytes()
    return base64.b64encode(image).decode() if isinstance(image, bytes) else str(image)
