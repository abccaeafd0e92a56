"""`specs/ollama.yaml`: it is sound, and it doesn't contradict the published document."""

from __future__ import annotations

from pathlib import Path

from jsonschema import Draft202012Validator
from support.upstream_specs import Operation, differences, listed, published

from oprel.dialects.ollama.options import DEFAULTS, OPTIONS
from oprel.dialects.ollama.routes import RAW_ROUTES, ROUTES
from oprel.testing import specs

POSTS = ("show", "generate", "chat", "embed", "pull", "create")
OPERATIONS = (
    Operation("GET", "/api/tags", "/api/tags"),
    Operation("GET", "/api/ps", "/api/ps"),
    Operation("GET", "/api/version", "/api/version"),
    Operation("DELETE", "/api/delete", "/api/delete"),
    Operation("POST", "/api/copy", "/api/copy"),
    *(Operation("POST", f"/api/{name}", f"/api/{name}") for name in POSTS),
    *(
        Operation("POST", f"/api/{name}", f"/api/{name}", media="application/x-ndjson")
        for name in ("generate", "chat", "pull", "create")
    ),
)


def test_every_schema_is_a_schema() -> None:
    for schema in specs.load("ollama")["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)


def test_every_route_is_in_the_document() -> None:
    paths = specs.load("ollama")["paths"]
    described = {
        (path, method.upper()) for path, methods in paths.items() for method in methods if method != "parameters"
    }
    assert described == {(known.path, method) for known in (*ROUTES, *RAW_ROUTES) for method in known.methods}


def test_every_option_is_described_with_its_default() -> None:
    described = specs.load("ollama")["components"]["schemas"]["Options"]["properties"]
    assert set(described) == {name for name, option in OPTIONS.items() if option.goes_to is not None}
    assert {name: described[name]["default"] for name in DEFAULTS} == DEFAULTS


def test_every_option_and_route_is_in_the_page() -> None:
    page = (specs.specs_dir().parent / "docs" / "dialects" / "ollama.md").read_text("utf-8")
    assert [name for name in OPTIONS if f"`{name}`" not in page] == []
    assert [known.path for known in (*ROUTES, *RAW_ROUTES) if f"{known.path}`" not in page] == []


def test_it_does_not_contradict_the_published_document() -> None:
    expected = listed(Path(__file__).with_name("upstream_differences.toml"))
    found = differences(specs.load("ollama"), published("ollama.yaml"), OPERATIONS)
    assert sorted(found) == sorted(expected)
