"""How commands speak: answers on stdout, everything else on stderr, and a bar where somebody watches."""

from __future__ import annotations

import json
import shutil
import sys
import time
import traceback
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

__all__ = ["Bar", "Terminal", "age", "size"]

_LINE_EVERY_S = 5.0
_DRAW_EVERY_S = 0.1
_BAR_WIDTH = 24


class Terminal:
    """`quiet`: no remarks and no bars; failures are always told."""

    def __init__(self, *, quiet: bool = False, verbose: bool = False) -> None:
        self.quiet = quiet
        self.verbose = verbose

    def answer(self, text: str) -> None:
        print(text, flush=True)

    def piece(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    def json(self, value: Any) -> None:
        print(json.dumps(value, indent=2, default=str, ensure_ascii=False))

    def remark(self, text: str) -> None:
        if not self.quiet:
            print(text, file=sys.stderr, flush=True)

    def fail(self, error: BaseException) -> None:
        if self.verbose:
            traceback.print_exception(error)
            for line in getattr(error, "log_tail", ()):
                print(f"  | {line}", file=sys.stderr)
        print(f"oprel: {error}", file=sys.stderr, flush=True)

    def end_line(self) -> None:
        if sys.stderr.isatty():
            print(file=sys.stderr)

    def table(self, headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        lines = [list(headings), *(list(row) for row in rows)]
        widths = [max(len(line[column]) for line in lines) for column in range(len(headings))]
        for line in lines:
            cells = [cell.ljust(width) for cell, width in zip(line, widths, strict=True)]
            print("   ".join(cells).rstrip())

    def bar(self) -> Bar:
        return Bar(quiet=self.quiet)


class Bar:
    """Progress on stderr: a bar where it is a terminal, else a line now and then. Use it in a `with`."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._is_terminal = sys.stderr.isatty()
        self._task = ""
        self._began = time.monotonic()
        self._first = 0
        self._said_at = 0.0
        self._is_drawn = False

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *failed: object) -> None:
        self._finish_line()

    def show(self, task: str, completed: int | None = None, total: int | None = None) -> None:
        """Bytes; without a total, only the task's name is told."""
        if self._quiet:
            return
        is_new = task != self._task
        if is_new:
            self._finish_line()
            self._task, self._began, self._first = task, time.monotonic(), completed or 0
        is_whole = total is not None and completed == total
        now = time.monotonic()
        every = _DRAW_EVERY_S if self._is_terminal else _LINE_EVERY_S
        if not (is_new or is_whole) and now - self._said_at < every:
            return
        self._said_at = now
        self._say(f"{task}{self._amount(completed or 0, total)}" if total else task)

    def note(self, text: str) -> None:
        """A line that stays, below what was shown."""
        if not self._quiet:
            self._finish_line()
            print(text, file=sys.stderr, flush=True)

    def _say(self, text: str) -> None:
        if self._is_terminal:
            width = shutil.get_terminal_size().columns - 1
            sys.stderr.write(f"\r\x1b[K{text[:width]}")
            self._is_drawn = True
        else:
            sys.stderr.write(f"{text}\n")
        sys.stderr.flush()

    def _amount(self, completed: int, total: int) -> str:
        share = min(completed / total, 1.0)
        speed = (completed - self._first) / max(time.monotonic() - self._began, 0.001)
        numbers = f" {share:4.0%}  {size(completed)} of {size(total)}  {size(int(speed))}/s"
        if not self._is_terminal:
            return numbers
        filled = round(share * _BAR_WIDTH)
        return f" [{'=' * filled}{' ' * (_BAR_WIDTH - filled)}]{numbers}"

    def _finish_line(self) -> None:
        if self._is_drawn:
            sys.stderr.write("\n")
            sys.stderr.flush()
            self._is_drawn = False


def size(count: int | None) -> str:
    """Bytes for people: 98 MB."""
    if count is None:
        return "-"
    amount = float(count)
    for unit in ("B", "kB", "MB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}"
        amount /= 1000
    return f"{amount:.1f} GB"


def age(moment: datetime | None) -> str:
    """How long ago, or how far ahead, in the largest unit that fits."""
    if moment is None:
        return "-"
    seconds = (datetime.now(UTC) - moment.astimezone(UTC)).total_seconds()
    words = _span(abs(seconds))
    return f"{words} ago" if seconds >= 0 else f"in {words}"


def _span(seconds: float) -> str:
    for unit, length in (("year", 31_536_000), ("month", 2_592_000), ("day", 86_400), ("hour", 3600), ("minute", 60)):
        if seconds >= length:
            count = int(seconds // length)
            return f"{count} {unit}{'s' if count > 1 else ''}"
    return f"{int(seconds)} second{'s' if int(seconds) != 1 else ''}"
