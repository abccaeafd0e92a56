"""What somebody who pulls a model asks for beside its name."""

from __future__ import annotations

from msgspec import Struct

__all__ = ["PullWish"]


class PullWish(Struct, frozen=True):
    """`allow_low_quality`: quantizations of two bits and fewer may be taken. `max_memory_bytes`: what the model may
    take when it is loaded."""

    allow_low_quality: bool = False
    max_memory_bytes: int | None = None
