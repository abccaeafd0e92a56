"""Responses that are kept on this machine, so that a later request can go on from them.

One file each in `responses/` of the state folder, readable by its owner only, there whole or not at all. What is over a
bound leaves, the longest unused first: a conversation that goes on keeps all of its responses.
"""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from oprel.errors import InvalidRequestError, StoreError
from oprel.store.disk import Disk, translated

__all__ = ["Ids", "Kept", "ResponseStore", "UnknownResponseError"]

MAX_COUNT = 1000
MAX_BYTES = 256 * 1024 * 1024
MAX_AGE_S = 30 * 86_400.0

_ID = re.compile(r"resp_([0-9a-f]{48})", re.ASCII)
_ITEM = re.compile(r"[a-z]+_([0-9a-f]{48})[0-9a-f]{4}", re.ASCII)
_LONGEST_CHAIN = MAX_COUNT

RawItem = dict[str, Any]


class UnknownResponseError(InvalidRequestError):
    """Nothing is kept under that id, or not any more."""

    kind = "unknown_response"
    status = 404


class Ids:
    """The ids of one response and its items: nobody can guess them, and an item's says whose it is."""

    def __init__(self) -> None:
        self._token = secrets.token_hex(24)
        self._items = 0

    @property
    def response(self) -> str:
        return f"resp_{self._token}"

    def item(self, prefix: str) -> str:
        self._items += 1
        return f"{prefix}_{self._token}{self._items:04x}"


class Kept(Struct, frozen=True):
    """`response` as it was answered, `input` the items that it answered, each with an id."""

    response: msgspec.Raw
    input: list[RawItem]
    previous: str | None = None

    @property
    def items(self) -> list[RawItem]:
        """What was said: the input, and then the response's output."""
        return [*self.input, *msgspec.json.decode(self.response, type=_Answered).output]


class _Answered(Struct):
    output: list[RawItem]


class ResponseStore:
    """All methods may wait for the disk, in a thread. `now`: Unix time."""

    def __init__(
        self,
        folder: Path,
        *,
        max_count: int = MAX_COUNT,
        max_bytes: int = MAX_BYTES,
        max_age_s: float = MAX_AGE_S,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._folder = folder.expanduser()
        self._max_count = max_count
        self._max_bytes = max_bytes
        self._max_age_s = max_age_s
        self._now = now
        self._disk = Disk()
        self._lock = threading.Lock()
        self._index: dict[str, _Entry] | None = None

    async def put(self, response_id: str, kept: Kept) -> None:
        await asyncio.to_thread(self._put, response_id, msgspec.json.encode(kept))

    async def get(self, response_id: str, *, param: str | None = None) -> Kept:
        """Raises UnknownResponseError; `param` is the field that named it."""
        return await asyncio.to_thread(self._get, response_id, param)

    async def delete(self, response_id: str) -> None:
        """Raises UnknownResponseError."""
        await asyncio.to_thread(self._delete, response_id)

    async def history(self, response_id: str, *, param: str) -> list[RawItem]:
        """The items of the whole conversation up to and with that response, oldest first."""
        return await asyncio.to_thread(self._history, response_id, param)

    async def item(self, item_id: str, *, param: str) -> RawItem:
        """One item of a kept response, by its own id."""
        found = _ITEM.fullmatch(item_id)
        if found is not None:
            kept = await self.get(f"resp_{found[1]}", param=param)
            for item in kept.items:
                if item.get("id") == item_id:
                    return item
        raise UnknownResponseError(f"no item with the id {item_id[:80]!r} is kept here", param=param)

    # In a thread

    def _put(self, response_id: str, content: bytes) -> None:
        with self._lock, translated("keep a response"):
            index = self._opened()
            self._write(response_id, content)
            index.pop(response_id, None)
            index[response_id] = _Entry(len(content), self._now())
            self._tidy(index)

    def _write(self, response_id: str, content: bytes) -> None:
        partial = self._folder / f"{response_id}.partial"
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            try:
                self._disk.write(descriptor, content)
                self._disk.sync(descriptor)
            finally:
                os.close(descriptor)
            partial.replace(self._path(response_id))
        except BaseException:
            partial.unlink(missing_ok=True)
            raise

    def _get(self, response_id: str, param: str | None) -> Kept:
        with self._lock, translated("read a response"):
            index = self._opened()
            self._tidy(index)
            if response_id not in index:
                raise UnknownResponseError(_unknown(response_id), param=param)
            entry = index.pop(response_id)
            index[response_id] = _Entry(entry.size_bytes, self._now())
            path = self._path(response_id)
            os.utime(path, (self._now(), self._now()))
            return _decoded(path.read_bytes(), response_id)

    def _delete(self, response_id: str) -> None:
        with self._lock, translated("delete a response"):
            index = self._opened()
            if index.pop(response_id, None) is None:
                raise UnknownResponseError(_unknown(response_id))
            self._path(response_id).unlink(missing_ok=True)

    def _history(self, response_id: str, param: str) -> list[RawItem]:
        chain: list[Kept] = []
        current: str | None = response_id
        while current is not None and len(chain) < _LONGEST_CHAIN:
            kept = self._get(current, param)
            chain.append(kept)
            current = kept.previous
        return [item for kept in reversed(chain) for item in kept.items]

    def _opened(self) -> dict[str, _Entry]:
        """What is there, the longest unused first."""
        if self._index is None:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            found: list[tuple[float, str, int]] = []
            for entry in os.scandir(self._folder):
                name = entry.name.removesuffix(".json")
                if _ID.fullmatch(name) and entry.is_file(follow_symlinks=False):
                    stat = entry.stat(follow_symlinks=False)
                    found.append((stat.st_mtime, name, stat.st_size))
                elif entry.name.endswith(".partial"):
                    Path(entry.path).unlink()
            self._index = {name: _Entry(size, used_at) for used_at, name, size in sorted(found)}
        return self._index

    def _tidy(self, index: dict[str, _Entry]) -> None:
        total = sum(entry.size_bytes for entry in index.values())
        oldest = self._now() - self._max_age_s
        for name, entry in list(index.items()):
            if len(index) <= self._max_count and total <= self._max_bytes and entry.used_at >= oldest:
                return
            self._path(name).unlink(missing_ok=True)
            del index[name]
            total -= entry.size_bytes

    def _path(self, response_id: str) -> Path:
        """Only of ids that are in the index, or our own."""
        return self._folder / f"{response_id}.json"


class _Entry(Struct, frozen=True, gc=False):
    size_bytes: int
    used_at: float


def _decoded(content: bytes, response_id: str) -> Kept:
    try:
        return msgspec.json.decode(content, type=Kept)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise StoreError(f"The file of the response {response_id!r} can't be read: {error}.") from error


def _unknown(response_id: str) -> str:
    return (
        f"no response with the id {response_id[:80]!r} is kept here: it was never stored, was deleted, or left because "
        "of its age or to make room"
    )
