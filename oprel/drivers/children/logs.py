"""The last lines that an engine wrote, however much it writes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

__all__ = ["LogRing"]

_MAX_LINE_BYTES = 2000

# Control characters would let an engine (or a model's metadata that it prints) write to the user's terminal.
_ESCAPES = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0)) if code != 0x09}


class LogRing:
    """Fed with bytes as they come; keeps whole lines, oldest dropped first, within both bounds.

    `on_line` sees every line once, dropped ones too. `total_bytes` grows with all that was ever fed: progress.
    """

    def __init__(
        self,
        *,
        max_lines: int = 400,
        max_bytes: int = 64 * 1024,
        on_line: Callable[[str], None] | None = None,
    ) -> None:
        self.total_bytes = 0
        self.on_line = on_line
        self._lines: deque[str] = deque()
        self._max_lines = max_lines
        self._max_bytes = max_bytes
        self._kept_bytes = 0
        self._partial = b""

    def __repr__(self) -> str:
        return f"<LogRing {len(self._lines)} lines, {self.total_bytes} bytes seen>"

    def feed(self, data: bytes) -> None:
        self.total_bytes += len(data)
        *lines, rest = (self._partial + data).split(b"\n")
        for line in lines:
            self._add(self._without_head(line))
        # A line without an end must not grow for ever.
        self._partial = self._without_head(rest)

    def finish(self) -> None:
        """The stream has ended: a last line without a newline counts."""
        if self._partial:
            self._add(self._partial)
            self._partial = b""

    def tail(self, lines: int | None = None) -> tuple[str, ...]:
        """The last `lines` (all that are kept by default), oldest first."""
        kept = tuple(self._lines)
        return kept if lines is None else kept[-lines:]

    def _without_head(self, line: bytes) -> bytes:
        """Adds a long line in pieces but for its last, the same however it arrived."""
        while len(line) > _MAX_LINE_BYTES:
            self._add(line[:_MAX_LINE_BYTES])
            line = line[_MAX_LINE_BYTES:]
        return line

    def _add(self, raw: bytes) -> None:
        text = raw.decode("utf-8", "replace").rstrip("\r").translate(_ESCAPES)
        if not text:
            return
        self._lines.append(text)
        self._kept_bytes += len(text)
        while len(self._lines) > self._max_lines or self._kept_bytes > self._max_bytes:
            self._kept_bytes -= len(self._lines.popleft())
        if self.on_line is not None:
            self.on_line(text)
