"""One path, two dialects: who asks for `/v1/models` and names a version of Anthropic's API reads Anthropic's form."""

from __future__ import annotations

from litestar.enums import ScopeType
from litestar.types import ASGIApp, Receive, Scope, Send

__all__ = ["ANTHROPIC", "ByVersion", "asks_anthropic", "names_version"]

ANTHROPIC = "/anthropic"

_SHARED = "/v1/models"
_VERSION = b"anthropic-version"


class ByVersion:
    """An ASGI app that sends such requests to the paths below `/anthropic`."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == ScopeType.HTTP and names_version(scope):
            scope["path"] = ANTHROPIC + scope["path"]
        await self._app(scope, receive, send)


def asks_anthropic(path: str) -> bool:
    """Whether what goes wrong with this path is told in Anthropic's form."""
    return path.startswith((f"{ANTHROPIC}/", "/v1/messages/")) or path == "/v1/messages"


def names_version(scope: Scope) -> bool:
    """Whether a path that both dialects have is asked for in Anthropic's."""
    path = scope["path"]
    if path != _SHARED and not path.startswith(f"{_SHARED}/"):
        return False
    return any(name == _VERSION for name, _ in scope["headers"])
