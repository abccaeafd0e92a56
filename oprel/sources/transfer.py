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

A file that is here already is the caller's to notice (`store.has_blob`). Three connections ask for ranges of 4 MiB
each; where one alone is quick, as from a server in the house, the others end and it asks for as much as all of them,
which costs less. So no more than 12 MiB are on the way and not noted at any time. A redirect is followed once; later
ranges go straight to where it led, until that refuses. The file's ETag makes ranges safe (`If-Range`): a changed file
is begun again, and so is one whose server can't give ranges, which then comes in one stream. Six tries without a byte
of progress, with Retry-After and back-off, end it. Raises SourceError, TransientSourceError, NoSpaceError, StoreError;
the partial file stays, except after a wrong digest, on a full disk, and where nothing came. What is declared must fit
on the disk before anything is asked for.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping
from types import TracebackType

from oprel.errors import NoSpaceError, SourceError
from oprel.net.bulk import BulkAnswer, BulkConnection
from oprel.net.outside import OutsideClient, TransientSourceError, shown_url
from oprel.sources.progress import Completed
from oprel.sources.ranged import Facts, Gaps, Piece, Pool, RangeSource, Renew, check_size, facts_of, length_of
from oprel.sources.retries import attempts
from oprel.sources.threads import StopFlag, in_thread
from oprel.store import Digest, ResumableBlob, Store

__all__ = ["CONNECTIONS", "RANGE_BYTES", "Renew", "fetch_blob"]

CONNECTIONS = 3
RANGE_BYTES = 4 << 20
BLOCK_BYTES = 512 << 10
QUICK_BYTES_PER_S = 100e6
SYNC_BYTES = 64 << 20
MAX_CHANGES = 3


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
        source = RangeSource(client, url, headers=dict(headers or {}), renew=renew)
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


class _Transfer:
    def __init__(self, source: RangeSource, blob: ResumableBlob, *, completed: Completed, connections: int) -> None:
        self._source = source
        self._blob = blob
        self._completed = completed
        self._connections = connections
        self._run = Pool(connections + 2)  # one hashes, one makes durable
        self._loop = asyncio.get_running_loop()
        self._grown = asyncio.Event()
        self._is_told = True
        self._is_over = False
        self._done = 0
        self._lead: BulkConnection | None = None  # so quick that it needs no other
        self._at_work = 0

    async def __aenter__(self) -> _Transfer:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._run.close()

    async def run(self, *, size_bytes: int | None, max_bytes: int, is_hash_known: bool) -> None:
        """Until every byte is written and hashed."""
        if size_bytes == 0:
            await self._begin(Facts(0, ""))
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
        gaps = Gaps(blob.missing() if blob.total is not None else [(0, RANGE_BYTES)])
        piece = gaps.take(RANGE_BYTES)
        if piece is None:  # killed between the last byte and its name
            await self._side_by_side()
            return
        connection = BulkConnection()
        try:
            async for attempt in attempts(piece):
                with attempt:
                    await self._first(connection, piece, size_bytes, max_bytes, is_hash_known=is_hash_known)
        except _NoRanges:  # the connection goes with it
            raise
        except BaseException:
            connection.close()
            raise
        connection.close()
        await self._side_by_side()

    async def _first(
        self,
        connection: BulkConnection,
        piece: Piece,
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
        facts = None if answer.status == 416 else facts_of(answer, piece)
        if facts is None or (facts.validator == "" and not is_hash_known):
            connection.close()
            raise _NoRanges(await self._source.open(connection, {}, self._run), connection)
        check_size(facts.total, size_bytes, max_bytes, self._source.url)
        if self._blob.done_bytes and (facts.total, facts.validator) != (self._blob.total, self._blob.validator):
            raise _Changed
        await self._begin(facts)
        piece.end = min(piece.end, facts.total or 0)
        await self._run(lambda stop: self._receive(answer, piece, stop), connection)

    async def _begin(self, facts: Facts) -> None:
        await self._run(lambda stop: self._blob.begin(total=facts.total, validator=facts.validator))
        self._done = self._blob.done_bytes
        self._completed(self._done, facts.total)

    async def _side_by_side(self) -> None:
        gaps = Gaps(self._blob.missing())
        self._tell_done()  # of a blob that came whole, nobody has told yet
        self._lead = None
        try:
            async with asyncio.TaskGroup() as group:
                hashing = group.create_task(self._follow())
                async with asyncio.TaskGroup() as workers:
                    self._spread(gaps, workers, self._connections)
                self._end()
                await hashing
        except BaseExceptionGroup as group_of:
            raise _first_of(group_of) from None

    def _spread(self, gaps: Gaps, workers: asyncio.TaskGroup, count: int) -> None:
        for _ in range(count):
            workers.create_task(self._work(gaps, workers))

    async def _work(self, gaps: Gaps, workers: asyncio.TaskGroup) -> None:
        """One connection, one piece after the other, while it is needed."""
        connection = BulkConnection()
        self._at_work += 1
        try:
            while self._lead in (None, connection) and (piece := gaps.take(self._length())) is not None:
                size_bytes, began = piece.end - piece.at, self._loop.time()
                async for attempt in attempts(piece):
                    with attempt:
                        await self._try(connection, piece)
                is_quick = size_bytes >= QUICK_BYTES_PER_S * (self._loop.time() - began)
                if is_quick and self._lead is None:
                    self._lead = connection
                elif not is_quick and self._lead is connection:
                    self._lead = None
                    self._spread(gaps, workers, self._connections - 1)
        finally:
            self._at_work -= 1
            connection.close()

    def _length(self) -> int:
        """Of the next range: with those of the other connections it comes to the same."""
        is_alone = self._lead is not None and self._at_work == 1
        return self._connections * RANGE_BYTES if is_alone else RANGE_BYTES

    async def _try(self, connection: BulkConnection, piece: Piece) -> None:
        piece.fruitless += 1
        try:
            answer = await self._source.open(connection, self._range(piece), self._run)
            if answer.status != 206 or facts_of(answer, piece) != self._known:
                raise _Changed
            await self._run(lambda stop: self._receive(answer, piece, stop), connection)
        except BaseException:
            connection.close()
            raise

    @property
    def _known(self) -> Facts:
        return Facts(self._blob.total, self._blob.validator)

    def _range(self, piece: Piece) -> dict[str, str]:
        asked = {"Range": f"bytes={piece.at}-{piece.end - 1}"}
        return {**asked, "If-Range": self._blob.validator} if self._blob.validator else asked

    def _receive(self, answer: BulkAnswer, piece: Piece, stop: StopFlag) -> None:
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
        tries = Piece(0, 0)
        connection = found.connection
        opened: BulkAnswer | None = found.answer
        try:
            async for attempt in attempts(tries):
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
        stated = length_of(answer)
        check_size(stated, size_bytes, max_bytes, self._source.url)
        total = size_bytes if stated is None else stated
        await self._run(lambda stop: self._blob.restart())
        await self._begin(Facts(total, ""))
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


def _first_of(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """What went wrong first, of all that went wrong."""
    problem: BaseException = group
    while isinstance(problem, BaseExceptionGroup):
        problem = problem.exceptions[0]
    return problem
