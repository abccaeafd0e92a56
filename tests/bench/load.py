"""A closed-loop load generator over raw sockets: cheap enough that what is measured is the server.

It reads HTTP responses to POST requests (chunked, or with a length), counts streamed events by their frame ends, and
notes when the first event with text arrived.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from dataclasses import dataclass, field

__all__ = ["Address", "Answer", "Load", "run_load"]


@dataclass(frozen=True)
class Address:
    """Where to ask: a TCP port on loopback or a unix socket; `key` is sent as a bearer token."""

    port: int | None = None
    socket: str | None = None
    key: str | None = None

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self.socket is not None:
            return await asyncio.open_unix_connection(self.socket, limit=1 << 22)
        return await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 22)


@dataclass(frozen=True)
class Answer:
    """One streamed answer; times in seconds."""

    events: int
    first_event_s: float
    total_s: float


@dataclass
class Load:
    """What one run saw."""

    answers: list[Answer] = field(default_factory=list)
    elapsed_s: float = 0.0

    @property
    def events_per_s(self) -> float:
        return sum(a.events for a in self.answers) / self.elapsed_s

    def first_event_ms(self, quantile: float) -> float:
        times = sorted(a.first_event_s for a in self.answers)
        return 1000 * times[min(len(times) - 1, int(quantile * len(times)))]

    @property
    def median_first_event_ms(self) -> float:
        return 1000 * statistics.median(a.first_event_s for a in self.answers)


async def run_load(
    address: Address, path: str, body: dict[str, object], *, clients: int, answers: int, timeout_s: float = 120.0
) -> Load:
    """`clients` connections ask in a closed loop until `answers` answers are in all."""
    left = iter(range(answers))
    load = Load()
    began = time.perf_counter()
    async with asyncio.timeout(timeout_s), asyncio.TaskGroup() as tasks:
        for _ in range(clients):
            tasks.create_task(_client(address, _request(address, path, body), left, load))
    load.elapsed_s = time.perf_counter() - began
    return load


def _request(address: Address, path: str, body: dict[str, object]) -> bytes:
    payload = json.dumps(body).encode()
    key = f"Authorization: Bearer {address.key}\r\n" if address.key else ""
    kind = "Content-Type: application/json\r\n"
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\n{key}{kind}Content-Length: {len(payload)}\r\n\r\n"
    return head.encode() + payload


async def _client(address: Address, request: bytes, left: object, load: Load) -> None:
    for _ in left:  # type: ignore[attr-defined]
        reader, writer = await address.connect()
        try:
            load.answers.append(await _ask(reader, writer, request))
        finally:
            writer.close()


async def _ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> Answer:
    began = time.perf_counter()
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    if b" 200 " not in head.split(b"\r\n", 1)[0]:
        raise RuntimeError(f"not 200: {head!r} {await reader.read(2000)!r}")
    frame_end = b"\n\n" if b"event-stream" in head else b"}\n"
    events, first, tail = 0, 0.0, b""
    while not tail.endswith(b"0\r\n\r\n"):
        piece = await reader.read(1 << 18)
        if not piece:
            raise RuntimeError("the answer was cut")
        if not first and _has_text(piece):
            first = time.perf_counter() - began
        events += (tail + piece).count(frame_end) - tail.count(frame_end)
        tail = (tail + piece)[-8:]
    return Answer(events, first or time.perf_counter() - began, time.perf_counter() - began)


def _has_text(piece: bytes) -> bool:
    """Whether it holds a delta with text, in any dialect; the role-only first delta has none."""
    for mark in (b'"content":"', b'"response":"', b'"delta":"', b'"text":"', b'"arguments":"', b'"partial_json":"'):
        at = piece.find(mark)
        while at >= 0:
            if piece[at + len(mark) : at + len(mark) + 1] != b'"':
                return True
            at = piece.find(mark, at + 1)
    return False
