"""The headers in which every dialect tells what happened to a request beside its answer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from oprel.schema import Plan, events

__all__ = ["Headers", "Told", "json_headers", "oprel_headers", "warning_header"]

Headers = tuple[tuple[bytes, bytes], ...]

_WARNINGS_LIMIT = 16
_TEXT_LIMIT = 400


class Told(Protocol):
    """What a lease says of the engine that answers."""

    @property
    def plan(self) -> Plan: ...

    @property
    def warnings(self) -> tuple[events.Warning, ...]: ...

    @property
    def load_s(self) -> float: ...

    @property
    def queued_s(self) -> float: ...


def oprel_headers(told: Told, warnings: Iterable[events.Warning] = (), *, first_s: float | None = None) -> Headers:
    """`X-Oprel-Driver`, `X-Oprel-Device`, `Server-Timing`, and one `X-Oprel-Warning` for each of the lease's warnings
    and of `warnings`: the first of those that say the same, sixteen at most. `first_s`: seconds from the lease to the
    first token, for what has tokens."""
    plan = told.plan
    unique = dict.fromkeys((*told.warnings, *warnings))
    return (
        (b"x-oprel-driver", _printable(plan.driver)),
        (b"x-oprel-device", _printable(plan.device)),
        (b"server-timing", _timing(told, first_s)),
        *(warning_header(warning) for warning in list(unique)[:_WARNINGS_LIMIT]),
    )


def _timing(told: Told, first_s: float | None) -> bytes:
    """Milliseconds, as https://www.w3.org/TR/server-timing/ has it."""
    spans = [("load", told.load_s), ("queue", told.queued_s)]
    if first_s is not None:
        spans.append(("first", first_s))
    return ", ".join(f"{name};dur={seconds * 1000:.1f}" for name, seconds in spans).encode()


def warning_header(warning: events.Warning) -> tuple[bytes, bytes]:
    """`X-Oprel-Warning: code; text`."""
    return b"x-oprel-warning", _printable(f"{warning.code}; {warning.text}")


def json_headers(body: bytes) -> Headers:
    return (b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))


def _printable(text: str) -> bytes:
    """What a client sent may come back in a header: control characters (a line end would begin another header) and
    all that isn't ASCII are written as escapes, and long texts are cut."""
    if len(text) > _TEXT_LIMIT:
        text = text[:_TEXT_LIMIT] + "…"
    escaped = text.encode("ascii", "backslashreplace").decode("ascii")
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in escaped).encode("ascii")
