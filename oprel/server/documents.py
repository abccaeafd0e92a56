"""The OpenAPI documents of `specs/`, one by one and as the one that `/openapi.json` serves.

What is served is what answers are checked against: there is no second description.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from oprel.version import __version__

__all__ = ["base_paths", "documents", "load", "merged", "openapi_json", "specs_dir"]

Document = dict[str, Any]

_METHODS = ("get", "head", "post", "put", "patch", "delete", "options")
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where it was built


def specs_dir() -> Path:
    """In an installed package they are inside it, in a checkout beside it."""
    package = Path(__file__).parents[1]
    inside = package / "specs"
    return inside if inside.is_dir() else package.parent / "specs"


@cache
def load(document: str) -> Document:
    """`document`: its name without `.yaml` ("openai"). Raises ValueError, OSError. Blocking."""
    loaded = yaml.load((specs_dir() / f"{document}.yaml").read_text("utf-8"), Loader=_LOADER)  # noqa: S506
    if not isinstance(loaded, dict):
        raise ValueError(f"{document}.yaml is not an OpenAPI document")
    return loaded


def documents() -> tuple[str, ...]:
    """Their names, ours last."""
    names = sorted(path.stem for path in specs_dir().glob("*.yaml"))
    return tuple(sorted(names, key=lambda name: name == "oprel"))


def base_paths(document: Document, item: Document | None = None) -> tuple[str, ...]:
    """What stands before a path in a URL: by the servers of the path's own `item`, or else of the whole document."""
    servers = (item or {}).get("servers") or document.get("servers") or [{"url": ""}]
    return tuple(urlsplit(server["url"]).path.rstrip("/") for server in servers)


@cache
def openapi_json() -> bytes:
    """All documents as one. Blocking, the first time."""
    whole = merged({name: load(name) for name in documents()})
    return json.dumps(whole, ensure_ascii=False, separators=(",", ":"), default=str).encode()


def merged(parts: Mapping[str, Document]) -> Document:
    """One document with the paths of all, each below its own (first) base path and with its name as a tag; a component
    `X` of the document `d` is called `d.X`, as are operations."""
    whole: Document = {
        "openapi": "3.1.0",
        "info": {
            "title": "Oprel",
            "version": __version__,
            "summary": "All that this server answers.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "tags": [_tag(name, part) for name, part in parts.items()],
        "paths": {},
        "components": {},
    }
    for name, part in parts.items():
        for path, item in part["paths"].items():
            shared = whole["paths"].setdefault(base_paths(part, item)[0] + path, {})
            shared.update(_operations(name, part, _renamed(name, item)))
            shared.pop("servers", None)
        for kind, components in part.get("components", {}).items():
            kept = whole["components"].setdefault(kind, {})
            kept.update({f"{name}.{key}": _renamed(name, value) for key, value in components.items()})
    return whole


def _tag(name: str, part: Document) -> Document:
    info = part["info"]
    told = [text for key in ("summary", "description") if (text := info.get(key))]
    return {"name": name, "description": "\n\n".join(told)}


def _operations(name: str, part: Document, item: Document) -> Document:
    """With the tag, and the security that the document has for all of its operations."""
    for method in _METHODS:
        if (operation := item.get(method)) is not None:
            operation["tags"] = [name]
            if "operationId" in operation:
                operation["operationId"] = f"{name}.{operation['operationId']}"
            security = operation.get("security", part.get("security", []))
            operation["security"] = [{f"{name}.{key}": scopes for key, scopes in each.items()} for each in security]
    return item


def _renamed(name: str, value: Any) -> Any:
    """A copy whose references lead to the components' names in the whole."""
    if isinstance(value, dict):
        return {key: _reference(name, each) if key == "$ref" else _renamed(name, each) for key, each in value.items()}
    if isinstance(value, list):
        return [_renamed(name, each) for each in value]
    return value


def _reference(name: str, target: Any) -> Any:
    if not isinstance(target, str):  # a property that happens to be called so
        return _renamed(name, target)
    steps: Iterable[str] = target.split("/")
    match list(steps):
        case ["#", "components", kind, key]:
            return f"#/components/{kind}/{name}.{key}"
    raise ValueError(f"{name}.yaml: {target!r} leads elsewhere than to a component")
