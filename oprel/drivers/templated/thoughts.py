"""An answer's text told apart as it arrives: what was thought, and what is said."""

from __future__ import annotations

from typing import Literal

__all__ = ["ThoughtSplitter", "held_back"]

Piece = tuple[bool, str]
"""Whether it is a thought, and the text."""


def held_back(text: str, mark: str) -> int:
    """How much of the end of `text` may be the beginning of `mark`."""
    for size in range(min(len(text), len(mark) - 1), 0, -1):
        if text.endswith(mark[:size]):
            return size
    return 0


class ThoughtSplitter:
    """`marks` stand around a thought, which an answer may begin with; white space around it belongs to neither.
    `is_inside`: the prompt ended with the first mark. The same pieces come out, however the text was cut."""

    def __init__(self, marks: tuple[str, str], *, is_inside: bool = False) -> None:
        self._open, self._close = marks
        self._state: Literal["before", "skipping", "inside", "after", "answer"] = "skipping" if is_inside else "before"
        self._left = ""
        self._read = 0

    @property
    def has_answer(self) -> bool:
        """Whether something is being said."""
        return self._state == "answer"

    @property
    def consumed(self) -> int:
        """How many characters stand before what is said, or before what isn't decided yet."""
        return self._read

    def feed(self, text: str) -> list[Piece]:
        self._left += text
        pieces: list[Piece] = []
        while self._step(pieces):
            pass
        return pieces

    def end(self) -> list[Piece]:
        left, self._left = self._left, ""
        if not left or self._state in ("skipping", "after"):
            return []
        return [(self._state == "inside", left)]

    def _step(self, pieces: list[Piece]) -> bool:
        """Whether there may be more to do."""
        match self._state:
            case "before":
                return self._before()
            case "skipping" | "after":
                return self._skip()
            case "inside":
                return self._inside(pieces)
            case "answer":
                if self._left:
                    pieces.append((False, self._left))
                    self._left = ""
                return False

    def _before(self) -> bool:
        begun = self._left.lstrip()
        if begun.startswith(self._open):
            self._take(len(self._left) - len(begun) + len(self._open))
            self._state = "skipping"
            return True
        if self._open.startswith(begun):
            return False  # nothing yet, or the mark's beginning
        self._state = "answer"
        return True

    def _skip(self) -> bool:
        """White space behind a mark."""
        begun = self._left.lstrip()
        self._take(len(self._left) - len(begun))
        if not begun:
            return False
        self._state = "inside" if self._state == "skipping" else "answer"
        return True

    def _inside(self, pieces: list[Piece]) -> bool:
        at = self._left.find(self._close)
        if at >= 0:
            self._think(self._left[:at].rstrip(), pieces)
            self._take(at + len(self._close))
            self._state = "after"
            return True
        sure = self._left[: len(self._left) - held_back(self._left, self._close)].rstrip()
        self._think(sure, pieces)
        self._take(len(sure))
        return False

    def _think(self, text: str, pieces: list[Piece]) -> None:
        if text:
            pieces.append((True, text))

    def _take(self, count: int) -> None:
        self._read += count
        self._left = self._left[count:]
