"""Server-sent events, split out of a byte stream that may be cut anywhere (WHATWG HTML, section 9.2)."""

from __future__ import annotations

__all__ = ["MAX_EVENT_BYTES", "EventBlocks", "payloads"]

MAX_EVENT_BYTES = 4 * 1024 * 1024


class EventBlocks:
    """Collects bytes and gives whole events in blocks: all that are complete after one read, in one piece.

    A block is kept whole because an engine's events decode several times faster together than one by one.
    """

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> bytes:
        """All whole events so far, line ends as LF, without the last blank line; b"" when none is complete.

        ValueError for an event past MAX_EVENT_BYTES.
        """
        if self._rest:
            data = self._rest + data
        held = b""
        if b"\r" in data:
            if data.endswith(b"\r"):  # its LF may be the next byte
                data, held = data[:-1], b"\r"
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        end = data.rfind(b"\n\n")
        if end < 0:
            self._rest = data + held
            block = b""
        else:
            self._rest = data[end + 2 :] + held
            block = data[:end]
        if len(self._rest) > MAX_EVENT_BYTES:
            raise ValueError(f"an event is longer than {MAX_EVENT_BYTES} bytes")
        return block

    @property
    def rest(self) -> bytes:
        """What has begun and isn't complete."""
        return self._rest


def payloads(block: bytes) -> list[bytes]:
    """The data of each event in a block. Comments, other fields and events without data are skipped."""
    found = []
    for event in block.split(b"\n\n"):
        lines = [line[5:].removeprefix(b" ") for line in event.split(b"\n") if line.startswith(b"data:")]
        if lines:
            found.append(b"\n".join(lines))
    return found
