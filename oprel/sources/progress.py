"""What a pull tells while it runs, in Ollama's words."""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct

__all__ = ["Completed", "PullProgress", "Report"]


class PullProgress(Struct, frozen=True):
    """One line: `total` and `completed` in bytes; `digest` is `sha256:<hex>` of what is being fetched. `note` is for
    people: what was chosen, and why."""

    status: str
    digest: str | None = None
    total: int | None = None
    completed: int | None = None
    note: str | None = None


Completed = Callable[[int, int | None], None]
"""Bytes done of one file, and bytes in all where that is known."""

Report = Callable[[PullProgress], None]
"""Takes a line; called on the event loop's thread, or on a worker's where it says so."""
