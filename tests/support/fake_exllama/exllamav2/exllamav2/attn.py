"""A stand-in for exllamav2.attn: whether flash-attn is there."""

from __future__ import annotations

from fake_engine import SCRIPT

__all__ = ["assert_paged_attn"]


def assert_paged_attn() -> None:
    assert not SCRIPT["unpaged"], "Paged attention required Flash Attention 2.5.7 or later"
