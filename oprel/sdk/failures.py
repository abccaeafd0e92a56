"""A server's refusal as the error that it is: one table, back from a status and a body to our tree."""

from __future__ import annotations

import json
from collections.abc import Callable

import httpx

from oprel.errors import (
    AuthenticationError,
    BackendError,
    BusyError,
    ConfigError,
    ContextLengthError,
    InsufficientMemoryError,
    InvalidRequestError,
    ModelNotFoundError,
    NoSpaceError,
    OprelError,
    PayloadTooLargeError,
    PermissionDeniedError,
    SourceError,
)

__all__ = ["as_ours", "no_answer", "raise_for", "stream_error"]


def raise_for(response: httpx.Response, *, model: str = "") -> None:
    """Raises what a refusal says; its body must have been read. `model` is the one that was asked for."""
    if response.is_success:
        return
    raise as_ours(
        response.status_code, _message(response), model=model, retry_after=response.headers.get("retry-after")
    )


def stream_error(text: str, *, path: str, model: str = "") -> OprelError:
    """What a stream's `{"error": …}` line says: its status was sent long before."""
    return as_ours(_LATE.get(path, 500), text, model=model)


# What most failures after the first line are.
_LATE = {"/api/pull": 502, "/api/push": 502, "/api/create": 400}


def no_answer(error: httpx.TransportError, base_url: str) -> OprelError:
    """The server isn't there, or went away."""
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        return BackendError(f"no server answers at {base_url}: start one with `oprel serve`")
    return BackendError(f"the server at {base_url} broke off: {error or type(error).__name__}")


def as_ours(status: int, message: str, *, model: str = "", retry_after: str | None = None) -> OprelError:
    made = _BY_STATUS.get(status)
    if made is not None:
        return made(message, model, retry_after)
    lowered = message.lower()
    if status == 500 and "memory" in lowered and ("requires more" in lowered or "needs" in lowered):
        return InsufficientMemoryError(message)
    if status >= 500:
        return BackendError(message)
    if "context" in lowered and any(word in lowered for word in ("exceed", "longer", "too long")):
        return ContextLengthError(message)
    return InvalidRequestError(message)


_Maker = Callable[[str, str, str | None], OprelError]
_BY_STATUS: dict[int, _Maker] = {
    401: lambda message, model, retry: AuthenticationError(message),
    403: lambda message, model, retry: PermissionDeniedError(message or "the server refuses to talk to this program"),
    404: lambda message, model, retry: _not_found(message, model),
    413: lambda message, model, retry: PayloadTooLargeError(message, limit_bytes=0),
    502: lambda message, model, retry: SourceError(message),
    503: lambda message, model, retry: BusyError(message, retry_after_s=_seconds(retry)),
    507: lambda message, model, retry: NoSpaceError(message),
}


def _not_found(message: str, model: str) -> OprelError:
    if message.startswith("404 page not found"):
        return ConfigError("the server does not offer this: it may be another one, or of another version")
    return ModelNotFoundError(message, model=model)


def _seconds(retry_after: str | None) -> float:
    try:
        return float(retry_after or 1.0)
    except ValueError:
        return 1.0


def _message(response: httpx.Response) -> str:
    text = response.text.strip()
    try:
        body = json.loads(text)
    except ValueError:
        return text or f"the server answered {response.status_code}"
    error = body.get("error") if isinstance(body, dict) else None
    if isinstance(error, dict):
        error = error.get("message")
    return str(error) if error else text
