"""Fetch one large file into the store: ranges side by side, resumed after any end of the process, hashed once.

    async with OutsideClient(...) as client:
        with await fetch_blob(client, url, store, digest=digest, size_bytes=size, max_bytes=size,
                              completed=tell) as blob:
            blob.publish()            # or store.install(blob, name, expected=digest)

What comes back is a `BlobWriter` that is finished: complete, durable, of the right digest and size, but not visible
yet; look into it by `blob.path`. Leaving the block without `publish` or `install` keeps the file, so that another try
costs one read; `blob.forget()` removes one that turned out to be of no use.

| what | how |
|---|---|
| `digest` | what the whole must hash to; None only where the source has none |
| `size_bytes` | the declared size: more or fewer bytes are refused; None where it isn't known |
| `max_bytes` | the most that is taken when `size_bytes` is None |
| `completed(done, total)` | called on the loop's thread, often (pace it yourself); starts with what was here already |
| `headers` | a login, say: sent to the URL's own origin and to none that it redirects to |
| `renew(headers)` | asked for other request headers once an answer is 401; it gets that answer's headers |
| `resume` | what names the file across processes: the digest unless given; with neither, no resume |

A file that is here already is the caller's to notice (`store.has_blob`). The connections ask for ranges of 4 MiB each,
so no more than 12 MiB are on the way and not noted at any time. A redirect is followed once; later ranges go straight
to where it led, until that refuses. The file's ETag makes ranges safe (`If-Range`): a changed file is begun again, and
so is one whose server can't give ranges, which then comes in one stream. Six tries without a byte of progress, with
Retry-After and back-off, end it. Raises SourceError, TransientSourceError, NoSpaceError, StoreError; the partial file
stays, except after a wrong digest, on a full disk, and where nothing came. What is declared must fit on the disk before
anything is asked for.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import TypeVar

from msgspec import Struct
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type

from oprel.errors import NoSpaceError, SourceError
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
from oprel.sources.progress import Completed
from oprel.sources.retries import ATTEMPTS, wait_before_retry
from oprel.sources.threads import StopFlag, in_thread
from oprel.store import Digest, ResumableBlob, Store

__all__ = ["CONNECTIONS", "RANGE_BYTES", "Renew", "fetch_blob"]

CONNECTIONS = 3
RANGE_BYTES = 4 << 20
BLOCK_BYTES = 512 << 10
SYNC_BYTES = 64 << 20
MAX_CHANGES = 3
_RANGE = re.compile(r"bytes (?P<first>\d{1,18})-(?P<last>\d{1,18})/(?P<total>\d{1,18})")
_MOVED_ON = frozenset({401, 403, 404, 410})

T = TypeVar("T")
Renew = Callable[[Mapping[str, str]], Awaitable[Mapping[str, str]]]


async def fetch_blob(
    client: OutsideClient,
    url: str,
    store: Store,
    *,
    digest: Digest | None,
    size_bytes: int | None,
    max_bytes: int,
    completed: Completed,
    headers: Mapping[str, str] | None = None,
    renew: Renew | None = None,
    resume: str | None = None,
    connections: int | None = None,
) -> ResumableBlob:
    """The module's docstring says how. Cancelling it leaves the partial file."""
    key = resume or (None if digest is None else str(digest))
    blob = await asyncio.to_thread(_open, store, key or f"once {secrets.token_hex(16)}")
    blob.is_lasting = key is not None
    try:
        if size_bytes is not None:
            await asyncio.to_thread(blob.require_space, size_bytes)
        source = _Source(client, url, headers=dict(headers or {}), renew=renew)
        limit = max_bytes if size_bytes is None else size_bytes
        async with _Transfer(source, blob, completed=completed, connections=connections or CONNECTIONS) as transfer:
            await transfer.run(size_bytes=size_bytes, max_bytes=limit, is_hash_known=digest is not None)
        await in_thread(lambda stop: blob.finish(digest))
    except BaseException as problem:
        if isinstance(problem, NoSpaceError) or not blob.done_bytes:
            blob.forget()
        blob.discard()
        raise
    return blob


def _open(store: Store, key: str) -> ResumableBlob:
    """Another process may be at the same file: then this one makes its own."""
    for each in (key, f"{key} again", f"{key} once more"):
        blob = store.resume_blob(each)
        if blob is not None:
            return blob
    raise SourceError("Other processes are fetching the same file; try again when they are done.")


class _Changed(Exception):
    """The file isn't the one of which parts are here."""


class _NoRanges(Exception):
    """Its server answers with all of it, whatever was asked for."""

    def __init__(self, answer: BulkAnswer, connection: BulkConnection) -> None:
        super().__init__()
        self.answer = answer
        self.connection = connection


class _Piece:
    """Bytes `at` to `end` are still to come; `fruitless` counts tries in a row that brought none."""

    def __init__(self, first: int, end: int) -> None:
        self.at = first
        self.end = end
        self.fruitless = 0

    def is_hopeless(self, state: RetryCallState) -> bool:
        return self.fruitless >= ATTEMPTS


class _Facts(Struct, frozen=True):
    total: int | None
    validator: str


class _Source:
    """Where the file is, as far as it is known: opens ranges of it."""

    def __init__(self, client: OutsideClient, url: str, *, headers: dict[str, str], renew: Renew | None) -> None:
        self.url = url
        self._client = client
        self._headers = headers
        self._renew = renew
        self._landed: tuple[str, dict[str, str]] | None = None

    async def connection(self) -> BulkConnection:
        return BulkConnection(await self._client.tls())

    async def open(self, connection: BulkConnection, asked: Mapping[str, str], run: _Pool) -> BulkAnswer:
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

    async def _follow(self, connection: BulkConnection, asked: Mapping[str, str], run: _Pool) -> BulkAnswer:
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

    async def _get(self, connection: BulkConnection, url: str, headers: Mapping[str, str], run: _Pool) -> BulkAnswer:
        if connection.is_open_to(url):
            hop = await self._client.checked(url, headers, is_connected=True)
            try:
                return await run(lambda stop: connection.get(hop), connection)
            except TransientSourceError:  # the server closed what was idle: nothing is lost yet
                connection.close()
        hop = await self._client.checked(url, headers)
        return await run(lambda stop: connection.get(hop), connection)


class _Pool:
    """Threads of one transfer, so that no other work waits for them."""

    def __init__(self, size: int) -> None:
        self._pool = ThreadPoolExecutor(size, thread_name_prefix="oprel-transfer")

    async def __call__(self, work: Callable[[StopFlag], T], connection: BulkConnection | None = None) -> T:
        return await in_thread(work, pool=self._pool, on_stop=None if connection is None else connection.abort)

    def close(self) -> None:
        self._pool.shutdown(wait=False)


class _Transfer:
    def __init__(self, source: _Source, blob: ResumableBlob, *, completed: Completed, connections: int) -> None:
        self._source = source
        self._blob = blob
        self._completed = completed
        self._connections = connections
        self._run = _Pool(connections + 2)  # one hashes, one makes durable
        self._loop = asyncio.get_running_loop()
        self._grown = asyncio.Event()
        self._is_told = True
        self._is_over = False
        self._done = 0

    async def __aenter__(self) -> _Transfer:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._run.close()

    async def run(self, *, size_bytes: int | None, max_bytes: int, is_hash_known: bool) -> None:
        """Until every byte is written and hashed."""
        if size_bytes == 0:
            await self._begin(_Facts(0, ""))
            return
        for _ in range(MAX_CHANGES):
            try:
                await self._whole(size_bytes, max_bytes, is_hash_known=is_hash_known)
            except _Changed:
                await self._run(lambda stop: self._blob.restart())
            except _NoRanges as found:
                await self._in_one(found, size_bytes, max_bytes)
                return
            else:
                return
        raise SourceError(f"{shown_url(self._source.url)} changes while it is fetched; try again later.")

    async def _whole(self, size_bytes: int | None, max_bytes: int, *, is_hash_known: bool) -> None:
        """Ask for the first range that is missing: its answer says what the file is."""
        blob = self._blob
        if blob.total is None or (blob.validator == "" and not is_hash_known):
            await self._run(lambda stop: blob.restart())
        gaps = blob.missing(piece_bytes=RANGE_BYTES) if blob.total is not None else [(0, RANGE_BYTES)]
        if not gaps:  # killed between the last byte and its name
            await self._side_by_side([])
            return
        piece = _Piece(*gaps[0])
        connection = await self._source.connection()
        try:
            async for attempt in _retrying(piece):
                with attempt:
                    await self._first(connection, piece, size_bytes, max_bytes, is_hash_known=is_hash_known)
        except _NoRanges:  # the connection goes with it
            raise
        except BaseException:
            connection.close()
            raise
        connection.close()
        await self._side_by_side(blob.missing(piece_bytes=RANGE_BYTES))

    async def _first(
        self,
        connection: BulkConnection,
        piece: _Piece,
        size_bytes: int | None,
        max_bytes: int,
        *,
        is_hash_known: bool,
    ) -> None:
        piece.fruitless += 1
        answer = await self._source.open(connection, self._range(piece), self._run)
        if answer.status == 416 and self._blob.total is not None:
            raise _Changed
        if answer.status == 200:
            raise _NoRanges(answer, connection)
        facts = None if answer.status == 416 else _facts(answer, piece)
        if facts is None or (facts.validator == "" and not is_hash_known):
            connection.close()
            raise _NoRanges(await self._source.open(connection, {}, self._run), connection)
        _check_size(facts.total, size_bytes, max_bytes, self._source.url)
        if self._blob.done_bytes and (facts.total, facts.validator) != (self._blob.total, self._blob.validator):
            raise _Changed
        await self._begin(facts)
        piece.end = min(piece.end, facts.total or 0)
        await self._run(lambda stop: self._receive(answer, piece, stop), connection)

    async def _begin(self, facts: _Facts) -> None:
        await self._run(lambda stop: self._blob.begin(total=facts.total, validator=facts.validator))
        self._done = self._blob.done_bytes
        self._completed(self._done, facts.total)

    async def _side_by_side(self, gaps: list[tuple[int, int]]) -> None:
        pieces = iter([_Piece(*gap) for gap in gaps])
        self._tell_done()  # of a blob that came whole, nobody has told yet
        count = min(self._connections, len(gaps))
        try:
            async with asyncio.TaskGroup() as group:
                hashing = group.create_task(self._follow())
                async with asyncio.TaskGroup() as workers:
                    for _ in range(count):
                        workers.create_task(self._work(pieces))
                self._end()
                await hashing
        except BaseExceptionGroup as group_of:
            raise _first_of(group_of) from None

    async def _work(self, pieces: Iterator[_Piece]) -> None:
        """One connection, one piece after the other."""
        connection = await self._source.connection()
        try:
            for piece in pieces:
                async for attempt in _retrying(piece):
                    with attempt:
                        await self._try(connection, piece)
        finally:
            connection.close()

    async def _try(self, connection: BulkConnection, piece: _Piece) -> None:
        piece.fruitless += 1
        try:
            answer = await self._source.open(connection, self._range(piece), self._run)
            if answer.status != 206 or _facts(answer, piece) != self._known:
                raise _Changed
            await self._run(lambda stop: self._receive(answer, piece, stop), connection)
        except BaseException:
            connection.close()
            raise

    @property
    def _known(self) -> _Facts:
        return _Facts(self._blob.total, self._blob.validator)

    def _range(self, piece: _Piece) -> dict[str, str]:
        asked = {"Range": f"bytes={piece.at}-{piece.end - 1}"}
        return {**asked, "If-Range": self._blob.validator} if self._blob.validator else asked

    def _receive(self, answer: BulkAnswer, piece: _Piece, stop: StopFlag) -> None:
        """In a thread."""
        block = memoryview(bytearray(min(BLOCK_BYTES, piece.end - piece.at)))
        while piece.at < piece.end:
            stop.check()
            count = answer.read_into(block[: piece.end - piece.at])
            if not count:
                raise TransientSourceError(f"{shown_url(answer.url)} ended before the range did.")
            self._blob.write_at(piece.at, block[:count])
            piece.at += count
            piece.fruitless = 0
            self._tell()

    async def _in_one(self, found: _NoRanges, size_bytes: int | None, max_bytes: int) -> None:
        """A server that can't give ranges: from the beginning, each time."""
        tries = _Piece(0, 0)
        connection = found.connection
        opened: BulkAnswer | None = found.answer
        try:
            async for attempt in _retrying(tries):
                with attempt:
                    tries.fruitless += 1
                    if opened is None:
                        connection.close()
                        opened = await self._source.open(connection, {}, self._run)
                    answer, opened = opened, None
                    await self._stream(connection, answer, size_bytes, max_bytes)
        finally:
            connection.close()

    async def _stream(
        self, connection: BulkConnection, answer: BulkAnswer, size_bytes: int | None, max_bytes: int
    ) -> None:
        if answer.status != 200:
            raise TransientSourceError(f"{shown_url(answer.url)} answers with a part that wasn't asked for.")
        stated = _length(answer)
        _check_size(stated, size_bytes, max_bytes, self._source.url)
        total = size_bytes if stated is None else stated
        await self._run(lambda stop: self._blob.restart())
        await self._begin(_Facts(total, ""))
        self._is_over = False
        try:
            async with asyncio.TaskGroup() as group:
                hashing = group.create_task(self._follow())
                await self._run(lambda stop: self._receive_all(answer, total, max_bytes, stop), connection)
                self._end()
                await hashing
        except BaseExceptionGroup as group_of:
            raise _first_of(group_of) from None

    def _receive_all(self, answer: BulkAnswer, total: int | None, max_bytes: int, stop: StopFlag) -> None:
        """In a thread."""
        block = memoryview(bytearray(BLOCK_BYTES))
        at, limit = 0, max_bytes if total is None else total
        while count := answer.read_into(block[: limit + 1 - at]):  # one more than it may be, to see that it ends
            stop.check()
            if at + count > limit:
                self._blob.is_lasting = False  # whatever came, it isn't the file
                raise SourceError(f"{shown_url(answer.url)} sends more than the {limit} bytes that it may.")
            self._blob.write_at(at, block[:count])
            at += count
            self._tell()
        if total is not None and at != total:
            raise TransientSourceError(f"{shown_url(answer.url)} ended after {at} of {total} bytes.")
        self._blob.total = at

    async def _follow(self) -> None:
        """Hash what is whole from the front, and make durable what is written, as they grow."""
        synced = self._blob.done_bytes
        async with asyncio.TaskGroup() as group:
            syncing: asyncio.Task[None] | None = None
            while True:
                is_over = self._is_over
                self._grown.clear()
                while not await self._run(lambda stop: self._blob.hash_front()):
                    self._tell_done()
                self._tell_done()
                if self._done - synced >= SYNC_BYTES and (syncing is None or syncing.done()):
                    synced = self._done
                    syncing = group.create_task(self._run(lambda stop: self._blob.checkpoint()))
                if is_over:
                    return
                await self._grown.wait()

    def _tell(self) -> None:
        """From a thread: the loop hears of it once, however often it is said meanwhile."""
        if self._is_told:
            self._is_told = False
            self._loop.call_soon_threadsafe(self._hear)

    def _hear(self) -> None:
        self._is_told = True
        self._grown.set()
        self._tell_done()

    def _tell_done(self) -> None:
        done = self._blob.done_bytes
        if done != self._done:
            self._done = done
            self._completed(done, self._blob.total)

    def _end(self) -> None:
        self._is_over = True
        self._grown.set()


def _retrying(piece: _Piece) -> AsyncRetrying:
    return AsyncRetrying(
        stop=piece.is_hopeless,
        wait=wait_before_retry,
        retry=retry_if_exception_type(TransientSourceError),
        sleep=asyncio.sleep,
        reraise=True,
    )


def _facts(answer: BulkAnswer, piece: _Piece) -> _Facts:
    """Raises SourceError for another range than was asked for; what was asked for may be longer than the file."""
    match = _RANGE.fullmatch(answer.headers.get("content-range", ""))
    total = 0 if match is None else int(match["total"])
    end = min(piece.end, total)
    if match is None or int(match["first"]) != piece.at or int(match["last"]) + 1 != end:
        raise SourceError(f"{shown_url(answer.url)} answers with another part of the file than was asked for.")
    if _length(answer) not in (None, end - piece.at):
        raise TransientSourceError(f"{shown_url(answer.url)} announces another length than its range has.")
    etag = answer.headers.get("etag", "")
    return _Facts(total, "" if etag.startswith("W/") else etag[:1000])


def _length(answer: BulkAnswer) -> int | None:
    text = answer.headers.get("content-length", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None


def _check_size(stated: int | None, declared: int | None, max_bytes: int, url: str) -> None:
    if stated is None:
        return
    if declared is not None and stated != declared:
        raise SourceError(f"{shown_url(url)} has {stated} bytes, where {declared} were declared.")
    if stated > max_bytes:
        raise SourceError(f"{shown_url(url)} is larger than the {max_bytes} bytes that it may be.")


def _first_of(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """What went wrong first, of all that went wrong."""
    problem: BaseException = group
    while isinstance(problem, BaseExceptionGroup):
        problem = problem.exceptions[0]
    return problem
