"""What models stood for before, and what a project pins: `show --versions`, `rollback`, `lock`, `sync`."""

from __future__ import annotations

import argparse
from contextlib import aclosing
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oprel.cli.common import settings_of
from oprel.cli.terminal import Terminal, age, size

if TYPE_CHECKING:
    from oprel.config import Settings
    from oprel.sources.pins import Pins
    from oprel.store.versions import Version

__all__ = ["add_commands", "tell_versions"]


def add_commands(commands: Any) -> None:
    rollback = commands.add_parser("rollback", help="give a name the version that it had before")
    rollback.add_argument("model", metavar="NAME")
    rollback.add_argument("digest", nargs="?", metavar="DIGEST", help="12 digits or more (the version before)")
    rollback.set_defaults(command=_rollback)

    lock = commands.add_parser("lock", help="pin this folder's models by digest, in oprel.lock")
    lock.add_argument("models", nargs="*", metavar="MODEL", help="without any, `models` in this folder's oprel.toml")
    _add_file(lock)
    lock.set_defaults(command=_lock)

    sync = commands.add_parser("sync", help="bring exactly the models that oprel.lock pins")
    sync.add_argument("--check", action="store_true", help="only look; 1 when one is missing or differs")
    sync.add_argument("--json", action="store_true", help="with --check: as JSON")
    _add_file(sync)
    sync.set_defaults(command=_sync)


def tell_versions(name: str, settings: Settings, terminal: Terminal, *, as_json: bool) -> None:
    """Of the store on this machine."""
    from oprel.server.compose import make_catalog

    versions = make_catalog(settings).versions(name)
    if as_json:
        terminal.json([_as_json(version) for version in versions])
        return
    terminal.table(("DIGEST", "STATE", "SIZE", "SINCE", "BY", "SOURCE"), [_row(version) for version in versions])


def _add_file(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--file", type=Path, default=Path("oprel.lock"), metavar="PATH", help="oprel.lock")


def _state(version: Version) -> str:
    if version.is_current:
        return "in use"
    if version.is_kept:
        return "kept"
    return f"not kept: {version.note}" if version.note else "not kept"


def _row(version: Version) -> tuple[str, ...]:
    since = age(datetime.fromtimestamp(version.at, UTC)) if version.at else "-"
    source = version.source + (f"@{version.revision}" if version.revision else "")
    return (version.digest[:12], _state(version), size(version.size_bytes), since, version.action, source or "-")


def _as_json(version: Version) -> dict[str, object]:
    import msgspec

    told: dict[str, object] = msgspec.to_builtins(version)
    return told | {"at": datetime.fromtimestamp(version.at, UTC).isoformat() if version.at else None}


def _rollback(arguments: argparse.Namespace, terminal: Terminal) -> None:
    from oprel.server.compose import make_catalog
    from oprel.store.names import DigestPrefix

    wanted = None if arguments.digest is None else DigestPrefix.parse(arguments.digest)
    version = make_catalog(settings_of(arguments)).rollback(arguments.model, wanted)
    terminal.remark(f"{arguments.model} is sha256:{version.digest[:12]} now")


def _lock(arguments: argparse.Namespace, terminal: Terminal) -> None:
    from oprel.errors import ConfigError
    from oprel.sources.lockfile import write_lock

    settings = settings_of(arguments)
    names = dict.fromkeys(arguments.models or settings.models)
    if not names:
        raise ConfigError('no model to lock: name some, or write models = ["NAME"] in oprel.toml')
    pins = _pins(settings)
    locked = {model.name: model for model in map(pins.lock, names)}
    write_lock(arguments.file, list(locked.values()))
    terminal.remark(f"{arguments.file} pins {', '.join(locked)}")


def _sync(arguments: argparse.Namespace, terminal: Terminal) -> int:
    import asyncio

    from oprel.sources.lockfile import read_lock

    locked = read_lock(arguments.file)
    pins = _pins(settings_of(arguments))
    if arguments.check:
        return _check(pins, locked, arguments, terminal)

    async def bring() -> None:
        with terminal.bar() as bar:
            for model in locked:
                async with aclosing(pins.sync(model)) as lines:
                    async for line in lines:
                        bar.show(f"{model.name}: {line.status}", line.completed, line.total)

    asyncio.run(bring())
    terminal.remark(f"all {len(locked)} models of {arguments.file} are here")
    return 0


def _check(pins: Pins, locked: Any, arguments: argparse.Namespace, terminal: Terminal) -> int:
    states = [pins.state(model) for model in locked]
    if arguments.json:
        terminal.json(
            [{"name": s.model.name, "digest": s.model.digest, "state": s.state, "note": s.note} for s in states]
        )
    else:
        for state in states:
            note = f" ({state.note})" if state.note else ""
            terminal.answer(f"{state.state:<9}{state.model.name} {state.model.digest[:19]}{note}")
    return 0 if all(state.state == "here" for state in states) else 1


def _pins(settings: Settings) -> Pins:
    from oprel.server.compose import make_catalog, make_puller
    from oprel.sources.pins import Pins

    return Pins(make_catalog(settings), lambda catalog: make_puller(settings, catalog))
