"""Images and sounds that clients send along, checked by their headers before an engine decodes them."""

from __future__ import annotations

import base64
import binascii

from oprel.errors import InvalidRequestError

__all__ = ["MAX_IMAGES", "checked_audio", "checked_image", "decoded_base64", "image_size"]

MAX_IMAGES = 16

_MAX_IMAGE_BYTES = 20 * 1024 * 1024
_MAX_IMAGE_PIXELS = 40_000_000
_MAX_AUDIO_BYTES = 25 * 1024 * 1024

# JPEG's start-of-frame markers: all of 0xC0 to 0xCF but those for tables and arithmetic conditioning.
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


def decoded_base64(text: str, *, param: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidRequestError(f"'{param}' is not valid base64: {error}", param=param) from error


def checked_image(data: bytes, *, param: str) -> str:
    """The media type, by what is in the file. At most 20 MiB and 40 megapixels: a small file may unpack to a size
    that no machine has."""
    if len(data) > _MAX_IMAGE_BYTES:
        raise InvalidRequestError(
            f"'{param}' is an image of {len(data)} bytes; at most {_MAX_IMAGE_BYTES} are allowed", param=param
        )
    found = image_size(data)
    if found is None:
        raise InvalidRequestError(f"'{param}' is not a PNG, JPEG, WebP or GIF image", param=param)
    media_type, width, height = found
    if width * height > _MAX_IMAGE_PIXELS:
        raise InvalidRequestError(
            f"'{param}' is an image of {width} x {height} pixels; at most {_MAX_IMAGE_PIXELS} pixels are allowed",
            param=param,
        )
    return media_type


def checked_audio(data: bytes, *, param: str) -> None:
    if len(data) > _MAX_AUDIO_BYTES:
        raise InvalidRequestError(
            f"'{param}' is a sound of {len(data)} bytes; at most {_MAX_AUDIO_BYTES} are allowed", param=param
        )


def image_size(data: bytes) -> tuple[str, int, int] | None:
    """(media type, width, height) from the header alone; None for what is no such image."""
    if data.startswith(b"\x89PNG\r\n\x1a\n") and len(data) >= 24:
        return "image/png", int.from_bytes(data[16:20]), int.from_bytes(data[20:24])
    if data.startswith((b"GIF87a", b"GIF89a")) and len(data) >= 10:
        return "image/gif", int.from_bytes(data[6:8], "little"), int.from_bytes(data[8:10], "little")
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return _webp(data)
    return _jpeg(data) if data.startswith(b"\xff\xd8\xff") else None


def _webp(data: bytes) -> tuple[str, int, int] | None:
    """The three forms of WebP: extended, lossless, lossy (RFC 9649, sections 2.5 to 2.7)."""
    if len(data) < 30:
        return None
    kind = data[12:16]
    if kind == b"VP8X":
        return "image/webp", 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return "image/webp", 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 ":
        width, height = int.from_bytes(data[26:28], "little"), int.from_bytes(data[28:30], "little")
        return "image/webp", width & 0x3FFF, height & 0x3FFF
    return None


def _jpeg(data: bytes) -> tuple[str, int, int] | None:
    """Goes from segment to segment up to the frame header (ITU T.81, B.2.2)."""
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker in _JPEG_FRAMES:
            return "image/jpeg", int.from_bytes(data[at + 7 : at + 9]), int.from_bytes(data[at + 5 : at + 7])
        at += 1 if marker == 0xFF else 2 + max(2, int.from_bytes(data[at + 2 : at + 4]))
    return None
