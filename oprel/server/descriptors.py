"""File descriptors: as many as the system gives, and none of them used up by connections.

When a process has none left, its listening socket may be closed by the event loop (libuv's spare descriptor can be
lost to another thread), and a server that accepts nothing any more looks alive. So it never comes to that.
"""

from __future__ import annotations

from contextlib import suppress

__all__ = ["allowed_connections", "raise_limit"]

# Loop, log, listener, state, models' files, engines' pipes and sockets.
_RESERVED = 32
_LEAST_CONNECTIONS = 8
_ENOUGH = 65_536


def raise_limit() -> int:
    """Lifts this process's limit to what is enough, as far as it may; the limit now."""
    try:
        import resource
    except ImportError:  # not a POSIX system
        return _ENOUGH
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _ENOUGH if hard == resource.RLIM_INFINITY else min(hard, _ENOUGH)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(ValueError, OSError):  # macOS refuses what its kernel has no room for
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    return _ENOUGH if soft == resource.RLIM_INFINITY else soft


def allowed_connections(limit: int) -> int:
    """How many clients may be connected: each may need one more descriptor, to its engine."""
    return max(_LEAST_CONNECTIONS, (limit - _RESERVED) // 2)
