"""The OpenAPI documents in `specs/`, and whether an answer keeps its document.

specs.validate("openai", "/v1/models", "GET", 200, answer)
specs.validate_event("openai", "/v1/chat/completions", "POST", event)
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

from oprel.server.documents import base_paths, load, specs_dir

__all__ = ["SpecError", "knows", "load", "operation", "specs_dir", "validate", "validate_event", "validate_request"]

_JSON = "application/json"
_PARAMETER = re.compile(r"\{[^}]*\}")
_STREAMS = ("text/event-stream", "application/x-ndjson")

Json = Any


class SpecError(AssertionError):
    """An answer, or a request, isn't what the document says."""


def validate(document: str, path: str, method: str, status: int, body: Json) -> None:
    """`path` as it was asked, with or without the base path of the document's server. Raises SpecError for a body that
    isn't as described, and for a path, method or status that the document doesn't know."""
    pointer, responses = _responses(document, path, method)
    key = next((key for key in (str(status), f"{status // 100}XX", "default") if key in responses), None)
    if key is None:
        raise SpecError(f"{document}.yaml: {method} {path} has no status {status}")
    pointer, response = _dereferenced(document, f"{pointer}/{key}", responses[key])
    content = response.get("content", {})
    if not content and body in (None, b"", ""):
        return
    if _JSON not in content:
        raise SpecError(f"{document}.yaml: {method} {path}, {status}: no JSON is described")
    _check(document, f"{pointer}/content/{_escaped(_JSON)}/schema", body, f"{method} {path}, {status}")


def validate_event(document: str, path: str, method: str, event: Json) -> None:
    """One decoded event (or line) of a streamed answer of status 200."""
    pointer, responses = _responses(document, path, method)
    content = responses.get("200", {}).get("content", {})
    media = next((media for media in _STREAMS if media in content), None)
    if media is None:
        raise SpecError(f"{document}.yaml: {method} {path} has no streamed answer")
    _check(document, f"{pointer}/200/content/{_escaped(media)}/schema", event, f"{method} {path}, streamed")


def validate_request(document: str, path: str, method: str, body: Json) -> None:
    pointer, _ = operation(document, path, method)
    _check(document, f"{pointer}/requestBody/content/{_escaped(_JSON)}/schema", body, f"the request of {method} {path}")


def knows(document: str, path: str) -> bool:
    """Whether the document has that path, whatever the method. Below a document's base path only whole paths count; a
    path may have a base of its own."""
    loaded = load(document)
    asked = path.partition("?")[0]
    return any(
        asked.startswith(f"{base}/") and _pattern(template).fullmatch(asked.removeprefix(base)) is not None
        for template, item in loaded["paths"].items()
        for base in base_paths(loaded, item)
    )


def operation(document: str, path: str, method: str) -> tuple[str, dict[str, Any]]:
    """The operation's JSON pointer and itself."""
    loaded = load(document)
    template = _template(loaded, path)
    found = loaded["paths"].get(template, {}).get(method.lower()) if template else None
    if template is None or found is None:
        raise SpecError(f"{document}.yaml doesn't know {method} {path}")
    return f"#/paths/{_escaped(template)}/{method.lower()}", found


def _responses(document: str, path: str, method: str) -> tuple[str, dict[str, Any]]:
    pointer, found = operation(document, path, method)
    return f"{pointer}/responses", found["responses"]


def _template(loaded: dict[str, Any], path: str) -> str | None:
    """The one that says most of the path: a parameter may hold slashes."""
    (base, *_) = base_paths(loaded)
    relative = path.removeprefix(base) if base and path.startswith(f"{base}/") else path
    relative = relative.partition("?")[0]
    fitting = [template for template in loaded["paths"] if _pattern(template).fullmatch(relative)]
    return max(fitting, key=lambda template: len(_PARAMETER.sub("", template)), default=None)


@cache
def _pattern(template: str) -> re.Pattern[str]:
    pieces = _PARAMETER.split(template)
    return re.compile(".+".join(re.escape(piece) for piece in pieces))


def _dereferenced(document: str, pointer: str, value: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    while "$ref" in value:
        pointer = value["$ref"]
        found: Any = load(document)
        for step in pointer.removeprefix("#/").split("/"):
            found = found[step.replace("~1", "/").replace("~0", "~")]
        value = found
    return pointer, value


def _escaped(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")


@cache
def _validator(document: str, pointer: str) -> Draft202012Validator:
    uri = f"urn:oprel:{document}"
    resource: Resource[Any] = Resource.from_contents(load(document), default_specification=DRAFT202012)
    registry: Registry[Any] = Registry().with_resource(uri, resource)
    return Draft202012Validator({"$ref": f"{uri}{pointer}"}, registry=registry)


def _check(document: str, pointer: str, body: Json, what: str) -> None:
    error = best_match(_validator(document, pointer).iter_errors(body))
    if error is not None:
        where = error.json_path if error.json_path != "$" else "the whole"
        raise SpecError(f"{document}.yaml, {what}: {where}: {error.message}")
