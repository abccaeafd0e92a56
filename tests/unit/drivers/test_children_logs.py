"""The ring of an engine's last lines."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from oprel.drivers.children import LogRing


def test_lines_are_whole_however_they_arrive() -> None:
    ring = LogRing()
    for piece in (b"on", b"e\ntw", b"o\r\n", "dr\u00e9".encode()[:3], "dr\u00e9".encode()[3:]):
        ring.feed(piece)
    ring.finish()
    assert ring.tail() == ("one", "two", "dré")


def test_control_characters_are_escaped() -> None:
    ring = LogRing()
    ring.feed(b"\x1b[2Jgone\x00\x7f\tkept\n\xff\n")
    assert ring.tail() == ("\\x1b[2Jgone\\x00\\x7f\tkept", "\ufffd")


def test_the_oldest_lines_go_first_and_every_line_is_seen() -> None:
    seen: list[str] = []
    ring = LogRing(max_lines=3, on_line=seen.append)
    ring.feed(b"".join(b"%d\n" % number for number in range(10)))
    assert ring.tail() == ("7", "8", "9")
    assert ring.tail(2) == ("8", "9")
    assert len(seen) == 10
    assert ring.total_bytes == 20


@given(st.lists(st.binary(max_size=9000), max_size=12))
def test_bounds_hold_whatever_comes(pieces: list[bytes]) -> None:
    ring = LogRing(max_lines=5, max_bytes=3000)
    for piece in pieces:
        ring.feed(piece)
        assert len(ring.tail()) <= 5
        assert sum(map(len, ring.tail())) <= 3000
        assert len(ring._partial) <= 2000


def test_a_long_line_ends_the_same_however_it_arrives() -> None:
    whole, pieces = LogRing(), LogRing()
    line = b"y" * 9899 + b"done\n"
    whole.feed(line)
    for start in range(0, len(line), 700):
        pieces.feed(line[start : start + 700])
    assert whole.tail() == pieces.tail()
    assert whole.tail()[-1].endswith("done")
