"""Slots and context: as much of both as memory holds, in the order in which they are given up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["DEFAULT_SLOTS", "GOOD_CONTEXT_TOKENS", "MAX_CONTEXT_TOKENS", "Shape", "Wish", "best_shape"]

MAX_CONTEXT_TOKENS = 32_768
GOOD_CONTEXT_TOKENS = 8_192
_LEAST_CONTEXT_TOKENS = 512
DEFAULT_SLOTS = 4
_SLOTS = (DEFAULT_SLOTS, 2, 1)
# llama.cpp rounds a slot's context up to this.
_STEP = 256


@dataclass(frozen=True, slots=True)
class Shape:
    """`context_tokens` is for each slot."""

    slots: int
    context_tokens: int

    @property
    def tokens(self) -> int:
        return self.slots * self.context_tokens


@dataclass(frozen=True, slots=True)
class Wish:
    """What to aim at: `most_tokens` for each slot; `is_context_fixed` and `slots` are what the user insists on."""

    most_tokens: int
    slots: int | None = None
    is_context_fixed: bool = False

    @property
    def slot_counts(self) -> tuple[int, ...]:
        return _SLOTS if self.slots is None else (self.slots,)

    @property
    def good_tokens(self) -> int:
        """What a slot should have before there is a second one."""
        return self.most_tokens if self.is_context_fixed else min(GOOD_CONTEXT_TOKENS, self.most_tokens)

    @property
    def least(self) -> Shape:
        """The smallest that would still do."""
        tokens = self.most_tokens if self.is_context_fixed else min(self.most_tokens, _LEAST_CONTEXT_TOKENS)
        return Shape(self.slot_counts[-1], tokens)


def best_shape(wish: Wish, fits: Callable[[Shape], bool]) -> Shape | None:
    """The most slots that leave each a good context, else one slot with what there is; None: not even the least
    fits. `fits` must not be true of a shape when it is false of a smaller one."""
    for slots in wish.slot_counts:
        tokens = _most_tokens(wish, slots, fits)
        if tokens is not None and tokens >= wish.good_tokens:
            return Shape(slots, tokens)
    last = wish.slot_counts[-1]
    tokens = _most_tokens(wish, last, fits)
    return Shape(last, tokens) if tokens is not None else None


def _most_tokens(wish: Wish, slots: int, fits: Callable[[Shape], bool]) -> int | None:
    if fits(Shape(slots, wish.most_tokens)):
        return wish.most_tokens
    least = wish.least.context_tokens
    if wish.is_context_fixed or not fits(Shape(slots, least)):
        return None
    # Bisection over steps: `low` fits, `high` doesn't.
    low, high = least // _STEP, -(-wish.most_tokens // _STEP)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(Shape(slots, middle * _STEP)) else (low, middle)
    return max(least, low * _STEP)
