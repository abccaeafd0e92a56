"""What several commands share: the server's address, settings from flags, a client."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from oprel.cli.terminal import Terminal

if TYPE_CHECKING:
    from oprel.config import Settings
    from oprel.sdk.client import Client

__all__ = ["add_address", "client_of", "pull_with_bar", "reach_server", "settings_of"]

# Flags whose name differs from the setting's.
_RENAMED = {"model": "preload"}


def add_address(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", metavar="HOST", help="the server's host, host:port or URL (127.0.0.1)")
    parser.add_argument("--port", metavar="PORT", help="the server's port (11434)")


def settings_of(arguments: argparse.Namespace, *names: str) -> Settings:
    """Settings, with the flags among `names` that were given before all else."""
    from oprel.config import load_settings

    flags: dict[str, Any] = {
        _RENAMED.get(name, name): getattr(arguments, name, None) for name in ("host", "port", "verbose", *names)
    }
    flags["verbose"] = flags["verbose"] or None
    return load_settings(flags)


def client_of(settings: Settings, base_url: str | None = None) -> Client:
    from oprel.sdk.client import Client

    return Client(base_url or settings.base_url, api_key=settings.api_keys[0] if settings.api_keys else None)


def pull_with_bar(client: Client, model: str, terminal: Terminal, *, insecure: bool = False) -> None:
    with terminal.bar() as bar:
        for part in client.pull(model, insecure=insecure, stream=True):
            bar.show(part.status or "", part.completed, part.total)


def reach_server(settings: Settings, terminal: Terminal) -> str:
    """The URL of the server, started if it isn't there."""
    from oprel.sdk.background import ensure_server

    log = settings.state_dir / f"server-{settings.port}.log"
    return ensure_server(
        settings,
        on_start=lambda: terminal.remark(f"starting the server at {settings.base_url} (its log: {log})"),
    )
