"""A stand-in for exllamav3.generator.filter.llguidance."""

from __future__ import annotations

from fake_engine import SCRIPT

__all__ = ["llguidance_available"]

llguidance_available = bool(SCRIPT["llguidance"])
