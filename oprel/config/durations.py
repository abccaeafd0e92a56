"""Lengths of time, as Go writes them and Ollama's users do."""

from __future__ import annotations

import math
import re

__all__ = ["parse_duration"]

_DURATION_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION_PART = re.compile(r"(\d+\.?\d*|\.\d+)(ns|us|µs|μs|ms|s|m|h)")


def parse_duration(value: object) -> float:
    """Seconds from a number (seconds) or a Go duration (`5m`, `1h30m`, `300ms`); any negative one is for ever."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        seconds = float(value)
    else:
        seconds = _duration_text(str(value).strip())
    if math.isnan(seconds):
        raise ValueError("not a number")
    return math.inf if seconds < 0 else seconds


def _duration_text(text: str) -> float:
    if re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)", text):
        return float(text)
    sign, body = (-1.0, text[1:]) if text.startswith("-") else (1.0, text.removeprefix("+"))
    parts = _DURATION_PART.findall(body)
    if not parts or "".join(number + unit for number, unit in parts) != body:
        raise ValueError("not a duration")
    return sign * sum(float(number) * _DURATION_UNITS[unit] for number, unit in parts)
