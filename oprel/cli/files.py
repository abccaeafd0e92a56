"""A GGUF file or a folder of the user's as a model: read with the user's own rights, here, never by the server."""

from __future__ import annotations

from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING

from oprel.cli.terminal import Terminal

if TYPE_CHECKING:
    from oprel.config import Settings

__all__ = ["import_file", "is_file_name"]


def is_file_name(text: str) -> bool:
    """A path, where a model's name is expected: it begins like one, or ends in .gguf and is there."""
    return (
        text in (".", "..")
        or text.startswith(("/", "./", "../", "~/"))
        or (text.lower().endswith(".gguf") and Path(text).is_file())
    )


def import_file(text: str, settings: Settings, terminal: Terminal, *, name: str | None = None) -> str:
    """The name of the model that the file or folder is now. No server is needed: two programs may share a store."""
    import asyncio

    from oprel.server.compose import make_puller
    from oprel.sources import name_of_file

    path = Path(text).expanduser().absolute()
    chosen = name or str(name_of_file(path))

    async def follow() -> None:
        with terminal.bar() as bar:
            async with aclosing(make_puller(settings).import_file(path, name=chosen)) as parts:
                async for part in parts:
                    bar.show(part.status, part.completed, part.total)
                    if part.note is not None:
                        bar.note(part.note)

    asyncio.run(follow())
    return chosen
