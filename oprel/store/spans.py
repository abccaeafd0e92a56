"""Which bytes of a file are there."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator

__all__ = ["Spans"]


class Spans:
    """Half-open ranges, sorted, none touching another."""

    def __init__(self) -> None:
        self._spans: list[tuple[int, int]] = []

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(tuple(self._spans))

    def add(self, first: int, end: int) -> None:
        if first >= end:
            return
        at = bisect_left(self._spans, (first, first))
        if at and self._spans[at - 1][1] >= first:
            at -= 1
        past = at
        while past < len(self._spans) and self._spans[past][0] <= end:
            first, end = min(first, self._spans[past][0]), max(end, self._spans[past][1])
            past += 1
        self._spans[at:past] = [(first, end)]

    @property
    def front(self) -> int:
        """All bytes before it are there."""
        return self._spans[0][1] if self._spans and self._spans[0][0] == 0 else 0

    @property
    def size_bytes(self) -> int:
        return sum(end - first for first, end in self._spans)

    def missing(self, total: int) -> Iterator[tuple[int, int]]:
        """What is missing below `total` now, in order."""
        at = 0
        for first, end in [*self._spans, (total, total)]:
            if at < min(first, total):
                yield at, min(first, total)
            at = max(at, end)
