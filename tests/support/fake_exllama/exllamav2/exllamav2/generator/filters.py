"""A stand-in for exllamav2.generator.filters."""

from __future__ import annotations

from typing import Any

__all__ = ["ExLlamaV2Filter"]


class ExLlamaV2Filter:
    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer
