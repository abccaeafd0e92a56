"""A file on a server, asked for in ranges: where it is after redirects, what it says it is, and each answer checked."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from msgspec import Struct

from oprel.errors import SourceError
from oprel.net.bulk import BulkAnswer, BulkConnection
from oprel.net.outside import (
    MAX_REDIRECTS,
    OutsideClient,
    TransientSourceError,
    is_redirect,
    next_url,
    portable,
    require_ok,
    shown_url,
)
from oprel.sources.threads import StopFlag, in_thread

__all__ = ["Facts", "Gaps", "Piece", "Pool", "RangeSource", "Renew", "check_size", "facts_of", "length_of"]

_RANGE = re.compile(r"bytes (?P<first>\d{1,18})-(?P<last>\d{1,18})/(?P<total>\d{1,18})")
_MOVED_ON = frozenset({401, 403, 404, 410})

T = TypeVar("T")
Renew = Callable[[Mapping[str, str]], Awaitable[Mapping[str, str]]]
"""New request headers, after an answer of 401 with these headers."""


class Piece:
    """Bytes `at` to `end` are still to come; `fruitless` counts tries in a row that brought none."""

    def __init__(self, first: int, end: int) -> None:
        self.at = first
        self.end = end
        self.fruitless = 0


class Gaps:
    """What is still to come, given out in order."""

    def __init__(self, gaps: list[tuple[int, int]]) -> None:
        self._gaps = gaps[::-1]

    def take(self, length: int) -> Piece | None:
        """So much, or less; None when all is given out."""
        if not self._gaps:
            return None
        first, end = self._gaps.pop()
        if end - first > length:
            self._gaps.append((first + length, end))
            end = first + length
        return Piece(first, end)


class Facts(Struct, frozen=True):
    total: int | None
    validator: str


class RangeSource:
    """Where the file is, as far as it is known: opens ranges of it."""

    def __init__(self, client: OutsideClient, url: str, *, headers: dict[str, str], renew: Renew | None) -> None:
        self.url = url
        self._client = client
        self._headers = headers
        self._renew = renew
        self._landed: tuple[str, dict[str, str]] | None = None

    async def open(self, connection: BulkConnection, asked: Mapping[str, str], run: Pool) -> BulkAnswer:
        """The answer where the redirects end; its status is success."""
        landed = self._landed
        answer = await self._follow(connection, asked, run)
        if landed is not None and answer.status in _MOVED_ON:  # a signed address holds for a while only
            self._landed = None
            answer = await self._follow(connection, asked, run)
        if answer.status == 401 and self._renew is not None:
            self._headers = dict(await self._renew(answer.headers))
            answer = await self._follow(connection, asked, run)
        if answer.status != 416:
            require_ok(answer, accept=frozenset({200, 206}))
        return answer

    async def _follow(self, connection: BulkConnection, asked: Mapping[str, str], run: Pool) -> BulkAnswer:
        url, headers = self._landed or (self.url, self._headers)
        for _ in range(MAX_REDIRECTS + 1):
            answer = await self._get(connection, url, {**headers, **asked}, run)
            if not is_redirect(answer.status, answer.headers):
                if answer.status in (200, 206) and url != self.url:
                    self._landed = url, headers
                return answer
            after = next_url(url, answer.headers["location"])
            headers, url = portable(headers, url, after), after
        raise SourceError(f"{shown_url(self.url)} redirects more than {MAX_REDIRECTS} times.")

    async def _get(self, connection: BulkConnection, url: str, headers: Mapping[str, str], run: Pool) -> BulkAnswer:
        if connection.is_open_to(url):
            hop = await self._client.checked(url, headers, is_connected=True)
            try:
                return await run(lambda stop: connection.get(hop), connection)
            except TransientSourceError:  # the server closed what was idle: nothing is lost yet
                connection.close()
        hop = await self._client.checked(url, headers)
        return await run(lambda stop: connection.get(hop), connection)


class Pool:
    """Threads of one transfer, so that no other work waits for them."""

    def __init__(self, size: int) -> None:
        self._pool = ThreadPoolExecutor(size, thread_name_prefix="oprel-transfer")

    async def __call__(self, work: Callable[[StopFlag], T], connection: BulkConnection | None = None) -> T:
        return await in_thread(work, pool=self._pool, on_stop=None if connection is None else connection.abort)

    def close(self) -> None:
        self._pool.shutdown(wait=False)


def facts_of(answer: BulkAnswer, piece: Piece) -> Facts:
    """Raises SourceError for another range than was asked for; what was asked for may be longer than the file."""
    match = _RANGE.fullmatch(answer.headers.get("content-range", ""))
    total = 0 if match is None else int(match["total"])
    end = min(piece.end, total)
    if match is None or int(match["first"]) != piece.at or int(match["last"]) + 1 != end:
        raise SourceError(f"{shown_url(answer.url)} answers with another part of the file than was asked for.")
    if length_of(answer) not in (None, end - piece.at):
        raise TransientSourceError(f"{shown_url(answer.url)} announces another length than its range has.")
    etag = answer.headers.get("etag", "")
    return Facts(total, "" if etag.startswith("W/") else etag[:1000])


def length_of(answer: BulkAnswer) -> int | None:
    text = answer.headers.get("content-length", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None


def check_size(stated: int | None, declared: int | None, max_bytes: int, url: str) -> None:
    if stated is None:
        return
    if declared is not None and stated != declared:
        raise SourceError(f"{shown_url(url)} has {stated} bytes, where {declared} were declared.")
    if stated > max_bytes:
        raise SourceError(f"{shown_url(url)} is larger than the {max_bytes} bytes that it may be.")
