"""What a person types. `--version` is answered before anything else is imported."""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    if arguments in (["--version"], ["version"]):
        from oprel.version import __version__

        print(f"oprel {__version__}")
        return 0
    from oprel.cli.program import run

    return run(arguments)
