"""Images are known by their header, and refused by it before anything unpacks them."""

from __future__ import annotations

import struct

import pytest

from oprel.dialects.media import checked_audio, checked_image, decoded_base64, image_size
from oprel.errors import InvalidRequestError


def png(width: int, height: int) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII", 13, b"IHDR", width, height) + b"\x08\x06\0\0\0"


def jpeg(width: int, height: int) -> bytes:
    app0 = b"\xff\xe0" + struct.pack(">H", 16) + b"JFIF\0" + bytes(9)
    return b"\xff\xd8" + app0 + b"\xff\xff\xc2" + struct.pack(">HBHH", 17, 8, height, width) + bytes(20)


def gif(width: int, height: int) -> bytes:
    return b"GIF89a" + struct.pack("<HH", width, height) + bytes(4)


def webp(kind: bytes, payload: bytes) -> bytes:
    chunk = kind + struct.pack("<I", len(payload)) + payload
    return b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk + bytes(16)


SIZES = {
    "png": (png(640, 480), "image/png"),
    "jpeg": (jpeg(640, 480), "image/jpeg"),
    "gif": (gif(640, 480), "image/gif"),
    "webp, extended": (
        webp(b"VP8X", b"\0\0\0\0" + (639).to_bytes(3, "little") + (479).to_bytes(3, "little")),
        "image/webp",
    ),
    "webp, lossless": (webp(b"VP8L", b"\x2f" + (639 | 479 << 14).to_bytes(4, "little")), "image/webp"),
    "webp, lossy": (webp(b"VP8 ", b"\0\0\0\x9d\x01\x2a" + struct.pack("<HH", 640, 480)), "image/webp"),
}


@pytest.mark.parametrize(("data", "media_type"), SIZES.values(), ids=SIZES.keys())
def test_an_image_tells_its_type_and_size(data: bytes, media_type: str) -> None:
    assert image_size(data) == (media_type, 640, 480)
    assert checked_image(data, param="i") == media_type


@pytest.mark.parametrize("length", range(30))
@pytest.mark.parametrize("data", [data for data, _ in SIZES.values()], ids=SIZES.keys())
def test_a_cut_header_is_no_failure(data: bytes, length: int) -> None:
    image_size(data[:length])


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (png(60_000, 60_000), "60000 x 60000 pixels"),
        (b"", "is not a PNG"),
        (b"GIF", "is not a PNG"),
        (b"<svg/>", "is not a PNG"),
        (b"\xff\xd8\xff", "is not a PNG"),
        (b"RIFF0000WEBPVP9 " + bytes(20), "is not a PNG"),
        (bytes(20 * 1024 * 1024 + 1), "20971521 bytes"),
    ],
    ids=["bomb", "empty", "cut", "svg", "cut jpeg", "odd webp", "large"],
)
def test_what_is_no_image_or_too_large_is_refused(data: bytes, words: str) -> None:
    with pytest.raises(InvalidRequestError, match=words) as caught:
        checked_image(data, param="i")
    assert caught.value.param == "i"


def test_a_sound_has_a_size_limit() -> None:
    checked_audio(b"x", param="a")
    with pytest.raises(InvalidRequestError):
        checked_audio(bytes(25 * 1024 * 1024 + 1), param="a")


def test_base64_is_decoded_strictly() -> None:
    assert decoded_base64("aGk=", param="d") == b"hi"
    for text in ("aGk", "a Gk=", "é", "aGk=\n"):
        with pytest.raises(InvalidRequestError, match="'d' is not valid base64"):
            decoded_base64(text, param="d")
