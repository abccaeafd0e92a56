"""Text whose characters arrive in pieces: halves of a surrogate pair, or bytes of a code point, in separate tokens."""

from __future__ import annotations

import codecs
import json
import re
from typing import Any

__all__ = ["TextRepair", "lenient_json", "without_surrogates"]

_HIGH = re.compile(r"[\ud800-\udbff]\Z")
_LONE = re.compile(r"[\ud800-\udc7f\udd00-\udfff]")  # not U+DC80 to U+DCFF: those stand for raw bytes
_ANY = re.compile(r"[\ud800-\udfff]")


def lenient_json(payload: bytes) -> Any:
    """JSON whose strings may hold half characters: raw bytes that aren't UTF-8 become U+DC80 to U+DCFF ("surrogate
    escapes"), escaped lone surrogates stay as they are. ValueError for anything else that isn't JSON."""
    try:
        return json.loads(payload.decode("utf-8", "surrogateescape"))
    except RecursionError:
        raise ValueError("nested too deeply") from None


def without_surrogates(text: str) -> str:
    return _ANY.sub("\ufffd", text)


class TextRepair:
    """Joins pieces of one text into whole code points. What never becomes one is U+FFFD."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._high = ""

    def feed(self, piece: str) -> str:
        """The whole code points known so far; a half at the end is held back."""
        text = self._high + piece
        self._high = ""
        # A high and a low surrogate that now stand side by side become one code point.
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass") if text else ""
        if match := _HIGH.search(text):
            self._high = match[0]
            text = text[:-1]
        return self._decoder.decode(_LONE.sub("\ufffd", text).encode("utf-8", "surrogateescape"))

    def flush(self) -> str:
        """What is left at the end of the text."""
        left = self._decoder.decode(b"", final=True)
        left += "\ufffd" if self._high else ""
        self._high = ""
        return left
