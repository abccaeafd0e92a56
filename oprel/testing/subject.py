"""What the contract tests are run on, and the loop that they share."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import tempfile
from collections.abc import Callable, Collection, Coroutine, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import msgspec

from oprel.drivers import Driver, DriverOptions, Engine, EventStream
from oprel.schema import (
    ChatRequest,
    CompletionRequest,
    EngineProbe,
    Event,
    Finish,
    Hardware,
    LoadOptions,
    Message,
    Model,
    Plan,
    Sampling,
    Text,
    TextPart,
    events,
)

__all__ = ["Answer", "Bench", "Subject", "ask", "child_processes", "chat_request", "completion_request"]

_T = TypeVar("_T")
_SMALL = LoadOptions(context_tokens=1024, slots=2)


def child_processes() -> frozenset[str]:
    """The processes below this one, dead ones that nobody has waited for included."""
    found = dict(_linux_processes() if Path("/proc/self/stat").exists() else _listed_processes())
    below = {os.getpid()}
    while more := {pid for pid, (parent, _) in found.items() if parent in below} - below:
        below |= more
    return frozenset(f"{found[pid][1]} ({pid})" for pid in below - {os.getpid()})


def _linux_processes() -> Iterator[tuple[int, tuple[int, str]]]:
    """(pid, (parent, name)); the name stands in brackets and may hold anything, brackets included."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            before, _, after = path.read_text(errors="replace").rpartition(")")
            pid, _, name = before.partition(" (")
            yield int(pid), (int(after.split()[1]), name)


def _listed_processes() -> Iterator[tuple[int, tuple[int, str]]]:
    command = ["ps", "-A", "-o", "pid=,ppid=,comm="]
    for line in subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines():
        pid, parent, name = line.split(None, 2)
        if not name.endswith("ps"):
            yield int(pid), (int(parent), name)


@dataclass(frozen=True)
class Subject:
    """A driver under test, with what it needs.

    `make` makes the driver. `chat` is a model that chats and completes, with a chat template and at least 512 tokens of
    context; `embed` an embedding model; `damaged` one whose files `start` must find unusable; None skips what needs
    it. `chat_options` should make it small: two slots are enough. `kill` ends an engine from outside, as a crash
    would; None skips what needs it. `leftovers` lists what may not remain after an engine has ended (without the run
    directory, which is always looked at). `hardware` None: this machine's, with what the driver's `probe` finds.
    `start_limit_s` bounds each start, `stop_limit_s` each stop, `answer_limit_s` all else.
    """

    make: Callable[[DriverOptions], Driver]
    chat: Model | None = None
    embed: Model | None = None
    damaged: Model | None = None
    chat_options: LoadOptions = _SMALL
    kill: Callable[[Engine], None] | None = None
    leftovers: Callable[[], Collection[str]] = child_processes
    hardware: Hardware | None = None
    start_limit_s: float = 120.0
    stop_limit_s: float = 15.0
    answer_limit_s: float = 60.0


class Bench:
    """One event loop, one run directory and one driver, for the tests of a class.

    Engines of `engine` are shared and are stopped with the bench; those of `start` are the test's own to stop.
    """

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self._runner = asyncio.Runner()
        self._folder = tempfile.TemporaryDirectory(prefix="oprel-contract-")
        self._engines: dict[str, Engine] = {}
        run_dir = Path(self._folder.name) / "run"
        run_dir.mkdir(mode=0o700)
        self.run_dir = run_dir
        self.options = DriverOptions(run_dir=str(run_dir), start_timeout_s=60.0, stall_timeout_s=30.0)
        self.driver = subject.make(self.options)
        self.hardware = subject.hardware or self._looked_at()

    def __enter__(self) -> Bench:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            for engine in self._engines.values():
                self.run(engine.stop(), limit_s=self.subject.stop_limit_s)
        finally:
            self._runner.close()
            self._folder.cleanup()

    def _looked_at(self) -> Hardware:
        from oprel.hardware import detect_hardware

        probes: tuple[EngineProbe, ...] = self.driver.probe()
        return msgspec.structs.replace(detect_hardware(), engines=probes)

    def run(self, work: Coroutine[Any, Any, _T], *, limit_s: float | None = None) -> _T:
        async def limited() -> _T:
            async with asyncio.timeout(self.subject.answer_limit_s if limit_s is None else limit_s):
                return await work

        return self._runner.run(limited())

    def plan(self, model: Model, options: LoadOptions | None = None) -> Plan:
        return self.driver.plan(model, options or LoadOptions(), self.hardware)

    def start(self, model: Model, options: LoadOptions | None = None) -> Engine:
        return self.run(self.driver.start(self.plan(model, options)), limit_s=self.subject.start_limit_s)

    def engine(self, model: Model, options: LoadOptions | None = None) -> Engine:
        """The shared one for this model; it is started when it is asked for first."""
        engine = self._engines.get(model.name)
        if engine is None:
            engine = self._engines[model.name] = self.start(model, options)
        return engine

    def remains(self) -> frozenset[str]:
        """What is there now that an engine may hold: processes, sockets, files."""
        files = (str(path.relative_to(self.run_dir)) for path in self.run_dir.rglob("*") if not path.is_dir())
        return frozenset(self.subject.leftovers()) | frozenset(files)


@dataclass
class Answer:
    """A whole stream, as it came."""

    batches: list[tuple[Event, ...]] = field(default_factory=list)

    @property
    def events(self) -> list[Event]:
        return [event for batch in self.batches for event in batch]

    @property
    def text(self) -> str:
        return "".join(event.text for event in self.events if isinstance(event, Text))

    @property
    def written(self) -> str:
        """The text and the thinking."""
        return "".join(event.text for event in self.events if isinstance(event, Text | events.Thinking))

    @property
    def finish(self) -> Finish:
        last = self.events[-1]
        if not isinstance(last, Finish):
            raise TypeError(f"the stream ended with {last!r} and not with Finish")
        return last


async def ask(stream: EventStream, *, into: Answer | None = None) -> Answer:
    """Reads a stream to its end, or as far as it gets `into` an answer of the caller's."""
    answer = into or Answer()
    async with aclosing(stream):
        async for batch in stream:
            answer.batches.append(batch)
    return answer


def chat_request(text: str = "Say hello.", *, max_tokens: int = 12, **changes: Any) -> ChatRequest:
    """Greedy unless `sampling` fields say otherwise; other changes are fields of the request."""
    return ChatRequest((Message("user", (TextPart(text),)),), **_sampled(max_tokens, changes))


def completion_request(text: str = "Once upon a time", *, max_tokens: int = 12, **changes: Any) -> CompletionRequest:
    return CompletionRequest(text, **_sampled(max_tokens, changes))


def _sampled(max_tokens: int, changes: dict[str, Any]) -> dict[str, Any]:
    sampling: dict[str, Any] = {"temperature": 0.0, "time_limit_s": 60.0, "max_tokens": max_tokens}
    known = Sampling.__struct_fields__
    sampling |= {name: changes.pop(name) for name in tuple(changes) if name in known}
    return {"sampling": Sampling(**sampling), **changes}
