"""Every failure that Oprel reports, as one tree.

    OprelError
    ├── InvalidRequestError            what the client sent can't be done as asked
    │   ├── UnsupportedError           the model, driver or server can't honour one named thing
    │   ├── ContextLengthError         the prompt is longer than the context
    │   ├── InvalidNameError           a model name that doesn't parse
    │   ├── TemplateError              a Go template that doesn't parse, or can't be applied
    │   └── PayloadTooLargeError
    ├── AuthenticationError            no key, or a wrong one
    ├── PermissionDeniedError          host, origin or scope not allowed
    ├── ModelNotFoundError
    ├── BusyError                      the queue is full, or the server is stopping
    ├── ClientGoneError                nobody is left to answer
    ├── InsufficientMemoryError        the model can't fit, whatever is evicted
    ├── BackendError                   an engine or driver failed
    │   ├── DriverUnavailableError     no such driver, or it can't be used here
    │   ├── EngineStartError           the engine didn't become ready
    │   ├── EngineFailedError          the engine died, stalled or answered nonsense
    │   └── EngineTimeoutError
    ├── StoreError                     the store can't be read or written
    │   ├── ModelDamagedError          a file isn't what its digest says
    │   └── NoSpaceError
    ├── SourceError                    a model can't be fetched
    └── ConfigError                    a setting that can't be used

Each class knows its `kind` (what dialects look up in their tables) and a default HTTP `status`; each instance is
one sentence that says what happened and what to do, plus its facts as attributes. Messages never carry secrets.
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "AuthenticationError",
    "BackendError",
    "BusyError",
    "ClientGoneError",
    "ConfigError",
    "ContextLengthError",
    "DriverUnavailableError",
    "EngineFailedError",
    "EngineStartError",
    "EngineTimeoutError",
    "InsufficientMemoryError",
    "InvalidNameError",
    "InvalidRequestError",
    "ModelDamagedError",
    "ModelNotFoundError",
    "NoSpaceError",
    "OprelError",
    "PayloadTooLargeError",
    "PermissionDeniedError",
    "SourceError",
    "StoreError",
    "TemplateError",
    "UnsupportedError",
]


class OprelError(Exception):
    """Base of all; `str(error)` is the sentence for the user."""

    kind: ClassVar[str] = "internal"
    status: ClassVar[int] = 500

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class InvalidRequestError(OprelError):
    """`param` names the field at fault, in the wire form of the dialect it came in, when there is one."""

    kind = "invalid_request"
    status = 400

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class UnsupportedError(InvalidRequestError):
    """`capability` is the missing one (a field of `schema.Capabilities`, or a parameter's name)."""

    kind = "unsupported"

    def __init__(
        self,
        message: str,
        *,
        capability: str,
        model: str | None = None,
        driver: str | None = None,
        param: str | None = None,
    ) -> None:
        super().__init__(message, param=param)
        self.capability = capability
        self.model = model
        self.driver = driver


class ContextLengthError(InvalidRequestError):
    """Both numbers, where the engine told them."""

    kind = "context_length"

    def __init__(self, message: str, *, prompt_tokens: int | None = None, context_tokens: int | None = None) -> None:
        super().__init__(message, param="messages")
        self.prompt_tokens = prompt_tokens
        self.context_tokens = context_tokens


class InvalidNameError(InvalidRequestError):
    kind = "invalid_name"

    def __init__(self, message: str, *, name: str) -> None:
        super().__init__(message, param="model")
        self.name = name


class TemplateError(InvalidRequestError):
    """The message is worded as Go words it; `line` is where in the template, from 1; 0: not known."""

    kind = "template"

    def __init__(self, message: str, *, line: int = 0) -> None:
        super().__init__(message, param="template")
        self.line = line


class PayloadTooLargeError(InvalidRequestError):
    kind = "too_large"
    status = 413

    def __init__(self, message: str, *, limit_bytes: int) -> None:
        super().__init__(message)
        self.limit_bytes = limit_bytes


class AuthenticationError(OprelError):
    kind = "authentication"
    status = 401


class PermissionDeniedError(OprelError):
    kind = "permission"
    status = 403


class ModelNotFoundError(OprelError):
    """`model` as the client wrote it."""

    kind = "not_found"
    status = 404

    def __init__(self, message: str, *, model: str) -> None:
        super().__init__(message)
        self.model = model


class BusyError(OprelError):
    kind = "busy"
    status = 503

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class ClientGoneError(OprelError):
    kind = "client_gone"
    status = 499


class InsufficientMemoryError(OprelError):
    """Exported as `oprel.MemoryError`. Sizes in bytes."""

    kind = "memory"
    status = 500

    def __init__(self, message: str, *, needed_bytes: int | None = None, available_bytes: int | None = None) -> None:
        super().__init__(message)
        self.needed_bytes = needed_bytes
        self.available_bytes = available_bytes


class BackendError(OprelError):
    """`log_tail` holds the engine's own last lines, oldest first, for the user to read."""

    kind = "backend"
    status = 500

    def __init__(self, message: str, *, driver: str | None = None, log_tail: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.driver = driver
        self.log_tail = log_tail


class DriverUnavailableError(BackendError):
    kind = "driver_unavailable"
    status = 400


class EngineStartError(BackendError):
    """`cause` classifies the failure, so that the scheduler knows whether a fallback plan can help:
    "gpu" (device missing, busy, out of memory), "memory" (host), "model" (file rejected), "engine" (anything else)."""

    kind = "engine_start"

    def __init__(
        self,
        message: str,
        *,
        driver: str | None = None,
        log_tail: tuple[str, ...] = (),
        cause: str = "engine",
    ) -> None:
        super().__init__(message, driver=driver, log_tail=log_tail)
        self.cause = cause


class EngineFailedError(BackendError):
    kind = "engine_failed"


class EngineTimeoutError(BackendError):
    kind = "engine_timeout"
    status = 504


class StoreError(OprelError):
    kind = "store"
    status = 500


class ModelDamagedError(StoreError):
    kind = "damaged"

    def __init__(self, message: str, *, model: str, digest: str | None = None) -> None:
        super().__init__(message)
        self.model = model
        self.digest = digest


class NoSpaceError(StoreError):
    kind = "no_space"
    status = 507


class SourceError(OprelError):
    kind = "source"
    status = 502


class ConfigError(OprelError):
    kind = "config"
    status = 400
