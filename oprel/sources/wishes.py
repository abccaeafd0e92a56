"""What somebody who pulls a model asks for beside its name; and single files that are asked for again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from msgspec import Struct

from oprel.store import BlobRef

__all__ = ["PullWish", "Take", "WantedFile"]


class WantedFile(Struct, frozen=True):
    """`name` as its source calls it."""

    name: str
    blob: BlobRef


Take = Callable[[WantedFile, Path], None]
"""Gets a file that was asked for, whole, in a thread; it is gone afterwards unless it was moved or linked."""


class PullWish(Struct, frozen=True):
    """`allow_low_quality`: quantizations of two bits and fewer may be taken. `max_memory_bytes`: what the model may
    take when it is loaded."""

    allow_low_quality: bool = False
    max_memory_bytes: int | None = None
