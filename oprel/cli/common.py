"""What several commands share: the server's address, settings from flags, a client."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from oprel.cli.terminal import Terminal

if TYPE_CHECKING:
    from collections.abc import Callable

    from oprel.config import Settings
    from oprel.sdk.client import Client
    from oprel.store import Catalog

__all__ = [
    "add_address",
    "add_quality",
    "client_of",
    "on_server_or_store",
    "pull_with_bar",
    "reach_server",
    "settings_of",
]

# Flags whose name differs from the setting's.
_RENAMED = {"model": "preload"}


def add_address(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", metavar="HOST", help="the server's host, host:port or URL (127.0.0.1)")
    parser.add_argument("--port", metavar="PORT", help="the server's port (11434)")


def add_quality(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quantization", metavar="Q", help="Q4_K_M, … (auto: the best that fits this machine)")
    parser.add_argument("--allow-low-quality", action="store_true", help="Q2 and below may be taken")


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


def on_server_or_store(
    settings: Settings, served: Callable[[Client], object], stored: Callable[[Catalog], object]
) -> None:
    """By the server where one answers; else on the store itself, unless the server was to be on another machine."""
    from oprel.server.access import is_loopback

    with client_of(settings) as client:
        if client.is_there() or not is_loopback(settings.host):
            served(client)
            return
    from oprel.server.compose import make_catalog

    stored(make_catalog(settings))


def pull_with_bar(
    client: Client,
    model: str,
    terminal: Terminal,
    *,
    insecure: bool = False,
    allow_low_quality: bool = False,
    max_memory_mb: int | None = None,
) -> None:
    parts = client.pull(
        model, insecure=insecure, stream=True, allow_low_quality=allow_low_quality, max_memory_mb=max_memory_mb
    )
    with terminal.bar() as bar:
        for part in parts:
            bar.show(part.status or "", part.completed, part.total)
            if note := (part.oprel or {}).get("note"):
                bar.note(str(note))


def reach_server(settings: Settings, terminal: Terminal) -> str:
    """The URL of the server, started if it isn't there."""
    from oprel.sdk.background import ensure_server

    log = settings.state_dir / f"server-{settings.port}.log"
    return ensure_server(
        settings,
        on_start=lambda: terminal.remark(f"starting the server at {settings.base_url} (its log: {log})"),
    )
