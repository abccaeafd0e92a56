"""The store itself: `verify`, and `cache`, which is the same store in the words that earlier users know."""

from __future__ import annotations

import argparse
import sys
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from oprel.cli.common import add_address, settings_of
from oprel.cli.terminal import Terminal, size

if TYPE_CHECKING:
    from oprel.config import Settings
    from oprel.sources.repair import Mended
    from oprel.store import Catalog
    from oprel.store.verification import Finding, Verification

__all__ = ["add_commands"]


def add_commands(commands: Any) -> None:
    verify = commands.add_parser("verify", help="hold every file of the store against its digest")
    verify.add_argument("model", nargs="?", metavar="MODEL", help="only what this one needs")
    verify.add_argument(
        "--repair",
        action="store_true",
        help="fetch again what is damaged or missing, put damaged files aside, remove what nothing needs",
    )
    verify.add_argument("--json", action="store_true", help="as JSON")
    verify.set_defaults(command=_verify)

    cache = commands.add_parser("cache", help="the store, in other words: list, clear, delete")
    cache.set_defaults(command=lambda arguments, terminal: cache.print_help() or 2)
    actions = cache.add_subparsers(title="actions", metavar="ACTION")
    listing = actions.add_parser("list", help="as `oprel list`")
    listing.add_argument("--json", action="store_true", help="as JSON")
    add_address(listing)
    listing.set_defaults(command=_cache_list)
    clear = actions.add_parser("clear", help="remove all models")
    clear.add_argument("--yes", action="store_true", help="without asking")
    add_address(clear)
    clear.set_defaults(command=_cache_clear)
    delete = actions.add_parser("delete", help="as `oprel rm`")
    delete.add_argument("models", nargs=1, metavar="NAME")
    add_address(delete)
    delete.set_defaults(command=_cache_delete)


def _verify(arguments: argparse.Namespace, terminal: Terminal) -> int:
    from oprel.server.compose import make_catalog
    from oprel.store.verification import verify

    settings = settings_of(arguments)
    catalog = make_catalog(settings)
    with terminal.bar() as bar:
        found = verify(catalog, arguments.model, progress=lambda done, total: bar.show("verifying", done, total))
    mended: list[Mended] = []
    garbage = None
    if arguments.repair:
        mended = _repair(catalog, settings, found, terminal)
        garbage = catalog.store.collect_garbage() if arguments.model is None else None
    left = [each for each in mended if not each.how] if arguments.repair else list(found.harmful)
    if arguments.json:
        terminal.json(_as_json(found, mended, garbage))
    else:
        _tell(found, mended, terminal)
        if garbage is not None and garbage.blobs:
            terminal.answer(f"removed: {garbage.blobs} files that nothing needs, {size(garbage.size_bytes)}")
    return 1 if left else 0


def _repair(catalog: Catalog, settings: Settings, found: Verification, terminal: Terminal) -> list[Mended]:
    import asyncio

    from oprel.server.compose import make_puller
    from oprel.sources.repair import Repair

    repair = Repair(catalog, lambda staged: make_puller(settings, staged))

    async def run() -> None:
        with terminal.bar() as bar:
            async with aclosing(repair.run(found.harmful)) as lines:
                async for line in lines:
                    bar.show(line.status, line.completed, line.total)

    asyncio.run(run())
    return repair.results


def _tell(found: Verification, mended: list[Mended], terminal: Terminal) -> None:
    outcome = {each.finding: f"; {each.how}" if each.how else f"; not mended: {each.problem}" for each in mended}
    for finding in found.findings:
        needed = f" (needed by {', '.join(finding.models)})" if finding.models and finding.digest else ""
        terminal.answer(f"{finding.kind}: {finding.sentence}{needed}{outcome.get(finding, '')}")
    bad = len(found.harmful)
    verdict = (
        f"{bad} {'file' if bad == 1 else 'files'} of them not as they should be" if bad else "all as they should be"
    )
    terminal.remark(f"{found.models} models, {found.files} files, {size(found.size_bytes)}: {verdict}")


def _as_json(found: Verification, mended: list[Mended], garbage: Any) -> dict[str, object]:
    outcome = {each.finding: each for each in mended}
    told: dict[str, object] = {
        "models": found.models,
        "files": found.files,
        "size_bytes": found.size_bytes,
        "findings": [_finding_as_json(finding, outcome.get(finding)) for finding in found.findings],
    }
    if garbage is not None:
        told["removed"] = {"files": garbage.blobs, "size_bytes": garbage.size_bytes, "excuse": garbage.excuse}
    return told


def _finding_as_json(finding: Finding, mended: Mended | None) -> dict[str, object]:
    told: dict[str, object] = {
        "kind": finding.kind,
        "path": str(finding.path),
        "sentence": finding.sentence,
        "models": list(finding.models),
        "digest": None if finding.digest is None else str(finding.digest),
    }
    if mended is not None:
        told |= {"mended": mended.how or None, "problem": mended.problem or None}
    return told


def _cache_list(arguments: argparse.Namespace, terminal: Terminal) -> None:
    from oprel.cli.models import list_models

    list_models(arguments, terminal)


def _cache_delete(arguments: argparse.Namespace, terminal: Terminal) -> None:
    from oprel.cli.models import remove_models

    remove_models(arguments, terminal)


def _cache_clear(arguments: argparse.Namespace, terminal: Terminal) -> None:
    """What is in other programs' stores, or on other servers, stays."""
    from oprel.cli.models import remove_models
    from oprel.errors import ConfigError
    from oprel.server.compose import make_catalog

    catalog = make_catalog(settings_of(arguments))
    own = [model for model in catalog.list(described=False) if catalog.owns(model)]
    arguments.models = [model.name for model in own]
    if not own:
        terminal.remark("the store is empty")
        return
    total = sum(model.size_bytes for model in own)
    if not arguments.yes:
        if not sys.stdin.isatty():
            raise ConfigError("nobody can be asked whether all models are to be removed: say --yes")
        terminal.remark(f"remove {len(arguments.models)} models, {size(total)}? [y/N]")
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            terminal.remark("nothing was removed")
            return
    remove_models(arguments, terminal)
