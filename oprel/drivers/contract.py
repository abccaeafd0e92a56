"""The driver contract, version 1: what an engine's author implements, and all that Oprel asks of a driver.

A driver is a class behind an entry point in the group `oprel.drivers`. It imports only `oprel.drivers` and
`oprel.schema`. `oprel.testing` holds the tests that say whether it keeps this contract.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from msgspec import Struct

from oprel.schema import (
    Availability,
    Capabilities,
    ChatRequest,
    CompletionRequest,
    Embeddings,
    EmbedRequest,
    EngineProbe,
    Event,
    Hardware,
    LoadOptions,
    Model,
    Plan,
    Ranking,
    RerankRequest,
    Support,
    promised,
)

if TYPE_CHECKING:
    from oprel.config import Remote  # its pydantic is not for drivers

__all__ = ["CONTRACT_VERSION", "Driver", "DriverOptions", "Engine", "EventStream", "Health"]

CONTRACT_VERSION = 1

EventStream = AsyncGenerator[tuple[Event, ...], None]
"""Each item holds what arrived together, so that it can be written together; never empty. The last item ends with
the only Finish. Failure is raised as one of `oprel.errors`. Closing the generator stops the engine's work."""


class DriverOptions(Struct, frozen=True):
    """What a driver is told when it is made.

    `run_dir`: an existing private (0700) directory for sockets and pid files. `executables` maps an engine's name
    ("llama-server") to the path that the user configured; `tables` maps a driver's name to the table of the config
    file that bears it, unchecked but for its being TOML; `remotes` are the servers elsewhere that the user configured,
    without their keys. Times in seconds: `start_timeout_s` bounds `start` without
    progress, `stall_timeout_s` bounds the wait for the next token, `stop_grace_s` the time between TERM and KILL.
    """

    run_dir: str
    executables: tuple[tuple[str, str], ...] = ()
    remotes: tuple[Remote, ...] = ()
    tables: tuple[tuple[str, dict[str, Any]], ...] = ()
    start_timeout_s: float = 300.0
    stall_timeout_s: float = 60.0
    stop_grace_s: float = 2.0


class Health(Struct, frozen=True):
    """ "busy" is alive with all slots taken; "dead" will not answer again; `detail` is one sentence."""

    state: Literal["ready", "busy", "dead"]
    detail: str = ""


class Engine(ABC):
    """A running engine with one model. Owned by the scheduler, which never sends more than `plan.slots` requests."""

    plan: Plan
    """What was realized (read back from the engine): real context, slots, layers, device."""
    capabilities: Capabilities

    def chat(self, request: ChatRequest) -> EventStream:
        """One choice for a conversation. Refuses (UnsupportedError) what `capabilities` denies."""
        raise NotImplementedError(f"{type(self).__name__} declares no chat")

    def complete(self, request: CompletionRequest) -> EventStream:
        """One choice for a raw prompt."""
        raise NotImplementedError(f"{type(self).__name__} declares no completion")

    async def embed(self, request: EmbedRequest) -> Embeddings:
        raise NotImplementedError(f"{type(self).__name__} declares no embeddings")

    async def rerank(self, request: RerankRequest) -> Ranking:
        raise NotImplementedError(f"{type(self).__name__} declares no reranking")

    async def tokenize(self, text: str, *, add_special: bool = False) -> tuple[int, ...]:
        raise NotImplementedError(f"{type(self).__name__} declares no tokenizer")

    async def detokenize(self, tokens: tuple[int, ...]) -> str:
        raise NotImplementedError(f"{type(self).__name__} declares no tokenizer")

    async def render(self, request: ChatRequest) -> str:
        """The prompt that `chat` would send to the model: the template applied, nothing generated."""
        raise NotImplementedError(f"{type(self).__name__} declares no templates")

    @abstractmethod
    async def health(self) -> Health:
        """Answers within a second or so, whatever state the engine is in."""

    @abstractmethod
    async def wait_dead(self) -> str:
        """Returns when the engine has ended, however it did, with one sentence why. Cancelled freely."""

    @abstractmethod
    async def stop(self) -> None:
        """Ends the engine and frees all that it held, within the driver's deadline; safe to call twice."""

    def log_tail(self) -> tuple[str, ...]:
        """The engine's last lines, oldest first."""
        return ()

    def memory_bytes(self) -> int | None:
        """What the engine's processes hold in RAM now, where it can be measured."""
        return None


class Driver(ABC):
    """Makes plans and engines. One instance serves all models of its kind; making it does nothing."""

    contract: ClassVar[int] = CONTRACT_VERSION
    name: ClassVar[str]
    can: ClassVar[Capabilities | None] = None
    """The most that this driver's engines can do, whatever the model; None: not declared. `oprel drivers` shows it."""

    def __init__(self, options: DriverOptions) -> None:
        self.options = options

    def probe(self) -> tuple[EngineProbe, ...]:
        """Looks for engines on this machine. May block for seconds (called once, in a thread); never raises: a
        problem is a field. Its answer is in `Hardware.engines` from then on."""
        return ()

    @abstractmethod
    def availability(self, hardware: Hardware) -> Availability:
        """Fast, imports nothing heavy, never raises."""

    @abstractmethod
    def supports(self, model: Model) -> Support:
        """Decides from metadata alone."""

    def capabilities(self, model: Model, hardware: Hardware) -> Capabilities:
        """What an engine would do with `model`, told before anything is loaded, in listings; the engine's own
        `capabilities` are what counts. By default the model's own words, as far as `can` goes. Fast, never raises."""
        return promised(model, self.can)

    @abstractmethod
    def plan(self, model: Model, options: LoadOptions, hardware: Hardware) -> Plan:
        """Pure. Raises UnsupportedError or InsufficientMemoryError where there is no plan."""

    @abstractmethod
    async def start(self, plan: Plan) -> Engine:
        """Tries exactly this plan. Raises EngineStartError with the engine's own last lines. When it fails or is
        cancelled, no process, socket or file is left."""
