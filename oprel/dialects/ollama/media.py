"""Base64 attachments, as Go's decoder takes them, and what kind of file they are."""

from __future__ import annotations

import base64
import binascii
import re

from oprel.dialects.media import MAX_IMAGES, checked_audio, checked_image
from oprel.dialects.ollama.errors import refusal
from oprel.errors import InvalidRequestError
from oprel.schema import AudioPart, ImagePart, Part, TextPart

__all__ = ["attachments", "decoded", "with_text"]

_NOT_BASE64 = re.compile(rb"[^A-Za-z0-9+/]")
_LINE_ENDS = str.maketrans("", "", "\r\n")
_MARK = "[img]"


def decoded(text: str) -> bytes:
    """Standard base64 with padding; line ends are skipped."""
    raw = text.translate(_LINE_ENDS).encode("utf-8", "replace")
    try:
        return base64.b64decode(raw, validate=True)
    except binascii.Error:
        found = _NOT_BASE64.search(raw)
        raise refusal("bad_base64", at=found.start() if found else len(raw) // 4 * 4) from None


def attachments(images: list[str]) -> tuple[ImagePart | AudioPart, ...]:
    """Images and sounds, told apart by their first bytes."""
    if len(images) > MAX_IMAGES:
        raise InvalidRequestError(f"a message has {len(images)} images; at most {MAX_IMAGES} are allowed")
    return tuple(_part(decoded(image), at) for at, image in enumerate(images, start=0))


def _part(data: bytes, at: int) -> ImagePart | AudioPart:
    named = f"images[{at}]"
    if (sound := _sound(data)) is not None:
        checked_audio(data, param=named)
        return AudioPart(data, sound)
    return ImagePart(data, checked_image(data, param=named))


def _sound(data: bytes) -> str | None:
    if data[:4] == b"RIFF" and data[8:12] == b"WAVE":
        return "audio/wav"
    # An MP3 begins with a tag or with a frame of layer III.
    is_frame = len(data) > 1 and data[0] == 0xFF and data[1] & 0xE6 == 0xE2
    return "audio/mpeg" if data.startswith(b"ID3") or is_frame else None


def with_text(text: str, media: tuple[ImagePart | AudioPart, ...]) -> tuple[Part, ...]:
    """Attachments stand before the text, or where the text says `[img]`, in order."""
    if not media or _MARK not in text:
        return (*media, *((TextPart(text),) if text else ()))
    pieces = text.split(_MARK)
    parts: list[Part] = []
    left = list(media)
    for number, piece in enumerate(pieces):
        if piece:
            parts.append(TextPart(piece))
        if number < len(pieces) - 1:
            parts.append(left.pop(0) if left else TextPart(_MARK))
    return (*left, *parts)
