"""Times as Go writes them: durations ("1h30m"), `keep_alive`, and timestamps."""

from __future__ import annotations

import math
import re
import time
from datetime import datetime

from oprel.dialects.ollama.errors import refusal
from oprel.dialects.ollama.gojson import go_quoted

__all__ = ["FOREVER_S", "created_at", "keep_alive", "local_time", "parse_duration"]

# Go's longest duration, about 292 years: what "for ever" is shown as.
FOREVER_S = (2**63 - 1) / 1e9

_UNITS_S = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_UNITS_S |= {"\u00b5s": 1e-6, "\u03bcs": 1e-6}  # Go takes both signs for micro
_LONGEST = 1000  # Go has no limit; each step copies the rest
_STEP = re.compile(r"([0-9]*)(\.([0-9]*))?([^0-9.]*)")


def parse_duration(text: str) -> float:
    """Seconds; as Go's `time.ParseDuration`, refusals included."""
    rest = text[1:] if text[:1] in ("+", "-") else text
    sign = -1.0 if text.startswith("-") else 1.0
    if rest == "0":
        return 0.0
    if not rest or len(rest) > _LONGEST:
        raise _invalid(text)
    seconds = 0.0
    while rest:
        found = _STEP.match(rest)
        if found is None or not (found[1] or found[3]):
            raise _invalid(text)
        if not found[4]:
            raise refusal("duration", problem=f"missing unit in duration {go_quoted(text)}")
        if found[4] not in _UNITS_S:
            raise refusal("duration", problem=f"unknown unit {go_quoted(found[4])} in duration {go_quoted(text)}")
        seconds += float(f"{found[1] or 0}.{found[3] or 0}") * _UNITS_S[found[4]]
        rest = rest[found.end() :]
    if seconds > FOREVER_S:
        raise _invalid(text)
    return sign * seconds


def _invalid(text: str) -> Exception:
    return refusal("duration", problem=f"invalid duration {go_quoted(text[:_LONGEST])}")


def keep_alive(value: object) -> float | None:
    """A request's `keep_alive` in seconds: None when not given, inf for ever, 0 to unload when the request ends."""
    match value:
        case None:
            return None
        case bool():
            raise refusal("keep_alive_type", type="bool")
        case int() | float():
            seconds = float(min(value, 1e300))
        case str():
            seconds = parse_duration(value)
        case list():
            raise refusal("keep_alive_type", type="[]interface {}")
        case _:
            raise refusal("keep_alive_type", type="map[string]interface {}")
    return math.inf if seconds < 0 or seconds > FOREVER_S else seconds


class _Second:
    """The last second that was formatted: a stream writes many lines in one."""

    number = -1
    text = ""


_last = _Second()


def created_at(now_ns: int | None = None) -> str:
    """UTC, RFC 3339, nanoseconds without trailing zeros, "Z"."""
    second, rest = divmod(time.time_ns() if now_ns is None else now_ns, 1_000_000_000)
    if second != _last.number:
        _last.text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        _last.number = second
    if not rest:
        return _last.text + "Z"
    return f"{_last.text}.{rest:09d}".rstrip("0") + "Z"


def local_time(unix_s: float) -> str:
    """As `created_at`, with the offset of this machine's zone."""
    second, micro = divmod(round(unix_s * 1_000_000), 1_000_000)
    moment = datetime.fromtimestamp(second).astimezone()
    fraction = f".{micro:06d}".rstrip("0") if micro else ""
    offset = moment.strftime("%z")
    zone = "Z" if offset == "+0000" else f"{offset[:3]}:{offset[3:5]}"
    return moment.strftime("%Y-%m-%dT%H:%M:%S") + fraction + zone
