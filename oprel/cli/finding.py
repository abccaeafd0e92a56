"""What can be had: `list-models` and `search`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from oprel.cli.common import settings_of
from oprel.cli.terminal import Terminal, size

if TYPE_CHECKING:
    from oprel.sources.hub import SearchHit
    from oprel.store import Alias, Catalog

__all__ = ["add_commands"]

_LIMIT = 20
_MAX_LIMIT = 100


def add_commands(commands: Any) -> None:
    listing = commands.add_parser("list-models", help="the aliases, what each points to, whether it is here")
    listing.add_argument("--json", action="store_true", help="as JSON")
    listing.set_defaults(command=_list_models)

    search = commands.add_parser("search", help="aliases and the hub, by name")
    search.add_argument("query", metavar="QUERY")
    search.add_argument("--limit", type=int, default=_LIMIT, metavar="N", help=f"of the hub's at most ({_LIMIT})")
    search.add_argument("--json", action="store_true", help="as JSON")
    search.set_defaults(command=_search)


def _list_models(arguments: argparse.Namespace, terminal: Terminal) -> None:
    rows = _aliases(arguments, "")
    if arguments.json:
        terminal.json(rows)
        return
    _show_aliases(rows, terminal)


def _search(arguments: argparse.Namespace, terminal: Terminal) -> None:
    """What the aliases have is shown even where the hub can't be reached."""
    import asyncio

    from oprel.errors import ConfigError, SourceError

    if not 1 <= arguments.limit <= _MAX_LIMIT:
        raise ConfigError(f"--limit must be from 1 to {_MAX_LIMIT}, not {arguments.limit}")
    rows = _aliases(arguments, arguments.query)
    failure: SourceError | None = None
    hits: tuple[SearchHit, ...] = ()
    try:
        hits = asyncio.run(_ask_hub(arguments))
    except SourceError as error:
        failure = error
    if arguments.json and failure is None:
        terminal.json({"aliases": rows, "hub": [_plain(hit) for hit in hits]})
    elif not arguments.json:
        if rows:
            _show_aliases(rows, terminal)
        if hits:
            if rows:
                terminal.answer("")
            terminal.table(
                ("ON THE HUB", "DOWNLOADS", "LIKES"),
                [(f"hf.co/{hit.id}", str(hit.downloads), str(hit.likes)) for hit in hits],
            )
        if not rows and not hits and failure is None:
            terminal.remark(f"nothing is called like {arguments.query!r}")
    if failure is not None:
        raise failure


async def _ask_hub(arguments: argparse.Namespace) -> tuple[SearchHit, ...]:
    from oprel.server.compose import make_catalog
    from oprel.sources.hub import Hub

    return await Hub(make_catalog(settings_of(arguments))).search(arguments.query, limit=arguments.limit)


def _aliases(arguments: argparse.Namespace, query: str) -> list[dict[str, Any]]:
    from oprel.server.compose import make_catalog

    catalog = make_catalog(settings_of(arguments))
    words = query.lower().split()
    found = sorted(catalog.aliases, key=lambda alias: alias.name.key)
    return [_row(alias, catalog) for alias in found if all(word in _text(alias) for word in words)]


def _text(alias: Alias) -> str:
    return f"{alias.shown} {alias.source} {alias.description}".lower()


def _row(alias: Alias, catalog: Catalog) -> dict[str, Any]:
    model = catalog.installed(alias.source, alias.digest)
    return {
        "alias": alias.shown.removesuffix(":latest"),
        "source": str(alias.source),
        "description": alias.description,
        "here": model is not None,
        "model": None if model is None else model.name,
        "size": None if model is None else model.size_bytes,
    }


def _show_aliases(rows: list[dict[str, Any]], terminal: Terminal) -> None:
    terminal.table(
        ("ALIAS", "POINTS TO", "HERE"),
        [(row["alias"], row["source"], size(row["size"]) if row["here"] else "-") for row in rows],
    )


def _plain(hit: SearchHit) -> dict[str, Any]:
    return {"id": hit.id, "downloads": hit.downloads, "likes": hit.likes, "formats": list(hit.formats)}
