"""When an engine that keeps failing is left alone: a pure rule over the times of its failures.

Three failures in a minute close the door for a minute; then one try is let through, and one more failure closes it
again. A request that ends well ends the probation.
"""

from __future__ import annotations

from oprel.errors import BusyError
from oprel.scheduler.state import Crashes

__all__ = ["CRASH_LIMIT", "CRASH_WINDOW_S", "OPEN_S", "crashed", "refusal"]

CRASH_LIMIT = 3
CRASH_WINDOW_S = 60.0
OPEN_S = 60.0


def crashed(before: Crashes | None, *, reason: str, now: float) -> Crashes:
    before = before or Crashes()
    times = (*(time for time in before.times if now - time < CRASH_WINDOW_S), now)
    is_too_much = before.on_probation or len(times) >= CRASH_LIMIT
    return Crashes(
        times=times,
        open_until=now + OPEN_S if is_too_much else None,
        on_probation=is_too_much,
        reason=reason,
    )


def refusal(crashes: Crashes | None, *, label: str, now: float) -> BusyError | None:
    """The answer to who asks while the door is closed."""
    if crashes is None or crashes.open_until is None or now >= crashes.open_until:
        return None
    wait_s = crashes.open_until - now
    return BusyError(
        f"the engine for {label!r} keeps failing and is tried again in {wait_s:.0f} s; "
        f"the last failure: {crashes.reason}",
        retry_after_s=wait_s,
    )
