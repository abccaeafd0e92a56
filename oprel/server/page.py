"""The API as a page to read, made of the documents alone: no scripts, nothing fetched from anywhere."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from html import escape
from typing import Any

from oprel.server.documents import Document, documents, load, merged

__all__ = ["api_page", "rendered"]

_DEPTH = 5
_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222;background:#fff}
h2{margin-top:3rem;border-bottom:1px solid #ccc}
code,pre{font:14px/1.4 ui-monospace,monospace}
details{border:1px solid #ddd;border-radius:6px;margin:.5rem 0;padding:.4rem .8rem}
summary{cursor:pointer}
.method{display:inline-block;min-width:4.5rem;font-weight:600;text-transform:uppercase}
table{border-collapse:collapse;margin:.5rem 0}
td,th{border-bottom:1px solid #eee;padding:.2rem .8rem .2rem 0;text-align:left;vertical-align:top}
.about{white-space:pre-wrap}
@media(prefers-color-scheme:dark){body{color:#ddd;background:#181818}details{border-color:#444}
td,th{border-color:#333}h2{border-color:#444}a{color:#8bf}}
"""


@cache
def api_page() -> bytes:
    """Blocking, the first time."""
    return rendered(merged({name: load(name) for name in documents()})).encode()


def rendered(document: Document) -> str:
    """HTML of an OpenAPI document with tags."""
    title = f"{document['info']['title']} {document['info']['version']}"
    return "".join(
        (
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width,initial-scale=1">',
            f"<title>{escape(title)}: the API</title><style>{_STYLE}</style></head><body>",
            f"<h1>{escape(title)}</h1><p>{escape(document['info']['summary'])} ",
            'The same as data: <a href="/openapi.json">/openapi.json</a>.</p>',
            *(part for tag in document["tags"] for part in _section(document, tag)),
            "</body></html>",
        )
    )


def _section(document: Document, tag: Document) -> Iterator[str]:
    yield f'<h2 id="{escape(tag["name"])}">{escape(tag["name"])}</h2><p class="about">{escape(tag["description"])}</p>'
    for path, item in document["paths"].items():
        for method, operation in item.items():
            if isinstance(operation, dict) and tag["name"] in operation.get("tags", ()):
                yield from _operation(document, path, method, operation)


def _operation(document: Document, path: str, method: str, operation: Document) -> Iterator[str]:
    yield f'<details><summary><span class="method">{escape(method)}</span> <code>{escape(path)}</code> '
    yield f"{escape(operation.get('summary', ''))}</summary>"
    if about := operation.get("description"):
        yield f'<p class="about">{escape(about)}</p>'
    if body := operation.get("requestBody"):
        yield "<h4>Request</h4>"
        yield from _contents(document, body)
    for status, response in operation["responses"].items():
        told = _followed(document, response)
        yield f"<h4>{escape(str(status))}</h4><p>{escape(told.get('description', ''))}</p>"
        yield from _contents(document, told)
    yield "</details>"


def _contents(document: Document, holder: Document) -> Iterator[str]:
    for media, content in _followed(document, holder).get("content", {}).items():
        yield f"<p><code>{escape(media)}</code></p>"
        if rows := list(_rows(document, content.get("schema", {}), "", 0)):
            yield f"<table><tr><th>field</th><th>type</th><th></th></tr>{''.join(rows)}</table>"


def _rows(document: Document, schema: Any, path: str, depth: int) -> Iterator[str]:
    """A line for each field, those of nested objects with their path."""
    schema = _followed(document, schema)
    if depth > _DEPTH or not isinstance(schema, dict):
        return
    for key in ("allOf", "anyOf", "oneOf"):
        for part in schema.get(key, ()):
            yield from _rows(document, part, path, depth + 1)
    if "items" in schema:
        yield from _rows(document, schema["items"], f"{path}[]", depth + 1)
    required = schema.get("required", ())
    for name, inner in schema.get("properties", {}).items():
        told = _followed(document, inner)
        where = f"{path}.{name}" if path else name
        about = told.get("description", "") if isinstance(told, dict) else ""
        mark = "" if name not in required else " *"
        yield f"<tr><td><code>{escape(where)}</code>{mark}</td><td>{escape(_type(document, told))}</td>"
        yield f"<td>{escape(about)}</td></tr>"
        yield from _rows(document, told, where, depth + 1)


def _type(document: Document, schema: Any) -> str:
    if not isinstance(schema, dict):
        return ""
    if "const" in schema:
        return repr(schema["const"])
    if "enum" in schema:
        return " | ".join(repr(value) for value in schema["enum"])
    for key in ("anyOf", "oneOf"):
        if key in schema:
            kinds = (_type(document, _followed(document, part)) for part in schema[key])
            return " | ".join(dict.fromkeys(kind for kind in kinds if kind))
    kind = schema.get("type", "object" if "properties" in schema else "")
    return " | ".join(kind) if isinstance(kind, list) else str(kind)


def _followed(document: Document, value: Any) -> Any:
    while isinstance(value, dict) and isinstance(value.get("$ref"), str):
        found: Any = document
        for step in value["$ref"].removeprefix("#/").split("/"):
            found = found[step.replace("~1", "/").replace("~0", "~")]
        value = found
    return value
