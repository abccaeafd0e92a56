"""Everything that a driver's author needs: the contract, the errors, and (in `oprel.schema`) the types."""

from oprel.drivers.contract import (
    CONTRACT_VERSION,
    Driver,
    DriverOptions,
    Engine,
    EventStream,
    Health,
)
from oprel.errors import (
    BackendError,
    ContextLengthError,
    EngineFailedError,
    EngineStartError,
    EngineTimeoutError,
    InsufficientMemoryError,
    InvalidRequestError,
    OprelError,
    UnsupportedError,
)

__all__ = [
    "CONTRACT_VERSION",
    "BackendError",
    "ContextLengthError",
    "Driver",
    "DriverOptions",
    "Engine",
    "EngineFailedError",
    "EngineStartError",
    "EngineTimeoutError",
    "EventStream",
    "Health",
    "InsufficientMemoryError",
    "InvalidRequestError",
    "OprelError",
    "UnsupportedError",
]
