"""The table `[exllama]` of the config file: what both drivers are told beyond every engine's settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from oprel.errors import ConfigError

__all__ = ["CACHE_TYPES", "ExllamaOptions"]

# By the schema's names: what the host calls it, and what it takes of an f16 cache's memory (values, and a 16-bit
# scale for every 32 of them).
CACHE_TYPES: dict[str, tuple[str, float]] = {
    "f16": ("fp16", 1.0),
    "q8_0": ("q8", (8 + 0.5) / 16),
    "q6_0": ("q6", (6 + 0.5) / 16),
    "q4_0": ("q4", (4 + 0.5) / 16),
}


class ExllamaOptions(Struct, frozen=True, forbid_unknown_fields=True):
    """`gpu_split`: GB for each GPU, in their order (empty: as many as are needed, filled one after the other).
    `cache_type`: for requests that say none. `draft_model`: the folder of a small model of the same vocabulary, whose
    guesses the model only checks. `build_dir`: where kernels are compiled to; `build_timeout_s` bounds that."""

    gpu_split: tuple[float, ...] = ()
    cache_type: str | None = None
    draft_model: str | None = None
    draft_tokens: int = 4
    build_dir: str | None = None
    build_timeout_s: float = 1800.0

    @classmethod
    def parse(cls, table: dict[str, Any]) -> ExllamaOptions:
        """Raises ConfigError, which names the option."""
        try:
            found = msgspec.convert(table, cls)
        except msgspec.ValidationError as error:
            raise ConfigError(f"[exllama]: {error}") from None
        found._check()
        return found

    def _check(self) -> None:
        def refuse(name: str, wants: str) -> ConfigError:
            return ConfigError(f"[exllama] {name}: {getattr(self, name)!r} can't be used: give {wants}")

        if any(size < 0 for size in self.gpu_split) or (self.gpu_split and not any(self.gpu_split)):
            raise refuse("gpu_split", "GB for each GPU, such as [20, 24]")
        if self.cache_type is not None and self.cache_type not in CACHE_TYPES:
            raise refuse("cache_type", f"one of {', '.join(CACHE_TYPES)}")
        if self.draft_model is not None and not Path(self.draft_model).is_absolute():
            raise refuse("draft_model", "the absolute path of a model's folder")
        if not 1 <= self.draft_tokens <= 8:
            raise refuse("draft_tokens", "a number from 1 to 8")
        if self.build_dir is not None and not Path(self.build_dir).is_absolute():
            raise refuse("build_dir", "an absolute path")
        if self.build_timeout_s <= 0:
            raise refuse("build_timeout_s", "a number of seconds")
