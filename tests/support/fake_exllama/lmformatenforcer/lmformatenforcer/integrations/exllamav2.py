"""A stand-in for lmformatenforcer.integrations.exllamav2."""

from __future__ import annotations

from typing import Any

__all__ = ["build_token_enforcer_tokenizer_data"]


def build_token_enforcer_tokenizer_data(tokenizer: Any, use_bitmask: bool = False) -> object:
    return object()
