"""Listings, /api/show, /api/delete, and what is routed."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import ollama
import pytest

from oprel.dialects.ollama.routes import ROUTES
from oprel.schema import Message, Model, RemoteModel, TextPart
from oprel.store import GgufMetadata, GgufTensor, ModelName, SkippedArray
from oprel.testing import Script, scripted_model

if TYPE_CHECKING:
    from conftest import Serve

METADATA = GgufMetadata(
    version=3,
    size_bytes=1,
    data_offset=1,
    values={
        "general.name": "Tiny",
        "general.architecture": "llama",
        "tokenizer.chat_template": "{{ x }}",
        "tokenizer.ggml.tokens": SkippedArray("string", 49152),
        "llama.rope.freqs": [1.0, 2.0],
        "llama.none": [],
        "llama.context_length": 8192,
    },
    tensors=(GgufTensor("token_embd.weight", "Q8_0", (576, 2), 0, 1224),),
)


def test_versions(serve: Serve) -> None:
    assert serve().json("/api/version", method="GET") == {"version": "0.33.0", "oprel": "0.0.0+scripted"}


def test_the_root_says_what_runs(serve: Serve) -> None:
    served = serve()
    response = served.ask("/", method="GET", check=False)
    assert (response.text, response.headers["content-type"]) == ("Ollama is running", "text/plain; charset=utf-8")
    for path in ("/", "/api/version", "/api/tags"):
        head = served.client.head(path)
        assert (head.status_code, head.content) == (200, b"")


def test_nothing_is_an_empty_list(serve: Serve) -> None:
    served = serve()
    served.catalog.models.clear()
    assert served.json("/api/tags", method="GET") == {"models": []}
    assert served.json("/api/ps", method="GET") == {"models": []}


def test_tags(serve: Serve) -> None:
    old = scripted_model("old:latest", families=(), aliases=("nick", "old:latest"))
    served = serve(None, old, scripted_model("tiny:latest"))
    newest, *rest = served.json("/api/tags", method="GET")["models"]
    assert [item["name"] for item in rest] == ["old:latest", "nick:latest"]
    assert rest[0]["details"]["families"] is None
    assert rest[0]["digest"] == rest[1]["digest"] == old.digest
    assert list(newest) == ["name", "model", "modified_at", "size", "digest", "details", "capabilities"]
    assert list(newest["details"]) == [
        "parent_model", "format", "family", "families", "parameter_size", "quantization_level", "context_length",
        "embedding_length",
    ]  # fmt: skip
    assert newest["model"] == "tiny:latest"
    assert datetime.fromisoformat(newest["modified_at"]).timestamp() == 1_700_000_000


@pytest.mark.parametrize(("keep_alive", "seconds"), [("10m", 600), (-1, math.inf)])
def test_ps(serve: Serve, keep_alive: object, seconds: float) -> None:
    served = serve(Script(bytes_by_device=(("CUDA0", 300), ("cpu", 100))))
    served.json("/api/generate", {"model": "TINY", "keep_alive": keep_alive})
    (item,) = served.json("/api/ps", method="GET")["models"]
    assert (item["name"], item["size"], item["size_vram"], item["context_length"]) == ("tiny:latest", 400, 300, 4096)
    assert item["details"]["parent_model"] == ""
    assert item["oprel"] == {
        "driver": "scripted", "engine": "scripted", "device": "gpu+cpu", "state": "ready", "slots": 4,
        "slots_in_use": 0, "queued": 0, "warnings": [],
    }  # fmt: skip
    left = datetime.fromisoformat(item["expires_at"]) - datetime.now(UTC)
    if math.isinf(seconds):
        assert left > timedelta(days=290 * 365)
    else:
        assert seconds - 30 < left.total_seconds() <= seconds


def test_show(serve: Serve) -> None:
    model = scripted_model(
        "tiny:latest",
        system='Say "yes".',
        licenses=("MIT", "and more"),
        parameters=(("temperature", 0.25), ("num_ctx", 2_000_000), ("stop", ["<|a|>", "b"])),
        messages=(Message("user", (TextPart("Hi"),)),),
        capabilities=frozenset({"tools", "completion"}),
        parent="base:latest",
        parser="mine",
        requires="0.14.0",
    )
    served = serve(None, model, metadata={"tiny:latest": METADATA})
    shown = served.json("/api/show", {"name": "TINY"})
    assert list(shown) == [
        "license", "modelfile", "parameters", "template", "system", "details", "messages", "model_info", "tensors",
        "capabilities", "modified_at", "requires", "oprel",
    ]  # fmt: skip
    assert shown["license"] == "MIT\nand more"
    assert shown["parameters"].splitlines() == [
        "num_ctx                        2e+06",
        'stop                           "<|a|>"',
        'stop                           "b"',
        "temperature                    0.25",
    ]
    assert shown["capabilities"] == ["completion", "tools"]
    assert shown["details"]["parent_model"] == "base:latest"
    assert shown["messages"] == [{"role": "user", "content": "Hi"}]
    assert shown["model_info"] == {
        "general.architecture": "llama",
        "general.parameter_count": 1152,
        "llama.context_length": 8192,
        "llama.none": [],
        "llama.rope.freqs": None,
        "tokenizer.ggml.tokens": None,
    }
    assert shown["tensors"] == [{"name": "token_embd.weight", "type": "Q8_0", "shape": [576, 2]}]
    lines = shown["modelfile"].splitlines()
    assert lines[:5] == [
        '# Modelfile generated by "ollama show"',
        "# To build a new Modelfile based on this, replace FROM with:",
        "# FROM TINY:latest",
        "",
        f"FROM {model.weights.path}",
    ]
    assert 'SYSTEM Say "yes".' in lines
    assert "PARAMETER temperature 0.25" in lines
    assert "PARAMETER num_ctx 2000000" in lines
    assert "PARAMETER stop <|a|>" in lines
    assert (lines[-1], "PARSER mine" in lines) == ("REQUIRES 0.14.0", True)
    assert "TEMPLATE {{ .Prompt }}" in lines, "the Jinja template is in the weights"
    assert "MESSAGE user Hi" in lines


def test_show_takes_a_system_and_options_for_the_modelfile(serve: Serve) -> None:
    served = serve(None, scripted_model("tiny:latest", chat_template=None), metadata={"tiny:latest": METADATA})
    shown = served.json("/api/show", {"model": "tiny", "system": "mine", "options": {"top_k": 7}})
    assert shown["system"] == "mine"
    assert "PARAMETER top_k 7" in shown["modelfile"]
    assert "parameters" not in shown
    assert shown["template"] == "{{ .Prompt }}"


def test_copilot_is_told_the_name_it_asked_for(serve: Serve) -> None:
    served = serve()
    headers = {"user-agent": "GitHubCopilotChat/1.0"}
    shown = served.client.post("/api/show", json={"model": "Tiny"}, headers=headers).json()
    assert shown["model_info"] == {"general.basename": "Tiny"}


def test_a_model_whose_file_cannot_be_read_is_shown_all_the_same(serve: Serve) -> None:
    shown = serve().json("/api/show", {"model": "tiny"})
    assert (shown["model_info"], "tensors" in shown) == ({}, False)


@pytest.mark.parametrize(
    ("body", "refusal"),
    [
        ({}, (400, "model is required")),
        ({"model": "absent"}, (404, "model 'absent:latest' not found")),
        ({"model": "no good"}, (400, "invalid model name")),
        ({"model": "x:cloud"}, (403, "ollama cloud is disabled: remote model details are unavailable")),
        (b"", (400, "missing request body")),
    ],
)
def test_what_show_refuses(serve: Serve, body: Any, refusal: tuple[int, str]) -> None:
    assert serve().refused("/api/show", body) == refusal


class FakeStore:
    def __init__(self) -> None:
        self.asked: list[str] = []

    def delete(self, name: str) -> bool:
        self.asked.append(name)
        return name == "tiny:latest"


@pytest.mark.parametrize("field", ["model", "name"])
def test_delete(serve: Serve, field: str) -> None:
    served = serve(None, scripted_model("tiny:latest"), scripted_model("elsewhere:latest"))
    store = FakeStore()
    served.catalog.delete = store.delete  # type: ignore[attr-defined]
    response = served.ask("/api/delete", {field: "Tiny"}, method="DELETE")
    assert (response.status_code, response.content) == (200, b"")
    assert store.asked == ["tiny:latest"]
    ask = {"method": "DELETE"}
    assert served.refused("/api/delete", {}, **ask) == (400, "model is required")
    assert served.refused("/api/delete", {"model": "a b"}, **ask) == (400, 'name "a b" is invalid')
    assert served.refused("/api/delete", {"model": "absent"}, **ask) == (404, "model 'absent' not found")
    assert served.refused("/api/delete", {"model": "elsewhere"}, **ask)[0] == 400


class FakeCopies:
    def __init__(self) -> None:
        self.made: list[tuple[str, str]] = []

    def copy(self, source: Model, destination: ModelName) -> None:
        self.made.append((source.name, str(destination)))


def test_copy(serve: Serve) -> None:
    served = serve(None, scripted_model("tiny:latest", aliases=("nick:1",)))
    store = FakeCopies()
    served.catalog.copy = store.copy  # type: ignore[attr-defined]
    response = served.ask("/api/copy", {"source": "Nick:1", "destination": "me/Mine"})
    assert (response.status_code, response.content) == (200, b"")
    assert store.made == [("tiny:latest", "me/Mine:latest")]


COPIES: dict[str, tuple[dict[str, str], tuple[int, str]]] = {
    "a bad source": ({"source": "a b", "destination": "c d"}, (400, 'source "a b" is invalid')),
    "no source": ({"destination": "b"}, (400, 'source "" is invalid')),
    "a bad destination, before the source is looked for": (
        {"source": "absent", "destination": 'x"y'},
        (400, 'destination "x\\"y" is invalid'),
    ),
    "an absent source": ({"source": "Absent", "destination": "b"}, (404, 'model "Absent" not found')),
    "a digest": (
        {"source": f"tiny@sha256:{'a' * 64}", "destination": "b"},
        (400, f'source "tiny@sha256:{"a" * 64}" is invalid'),
    ),
    "a traversal": ({"source": "tiny", "destination": "../../x"}, (400, 'destination "../../x" is invalid')),
}


@pytest.mark.parametrize(("body", "refused"), COPIES.values(), ids=COPIES.keys())
def test_what_cant_be_copied(serve: Serve, body: dict[str, str], refused: tuple[int, str]) -> None:
    served = serve()
    store = FakeCopies()
    served.catalog.copy = store.copy  # type: ignore[attr-defined]
    assert served.refused("/api/copy", body) == refused
    assert store.made == []


def test_a_remote_model_is_not_copied(serve: Serve) -> None:
    served = serve(None, scripted_model("tiny:latest", remote=RemoteModel("far", "tiny")))
    status, text = served.refused("/api/copy", {"source": "tiny", "destination": "b"})
    assert (status, "another server" in text) == (400, True)


def test_a_damaged_model_is_listed_and_harms_no_client(serve: Serve) -> None:
    """Every field has its type, the digest enough digits to be cut, and only the key of Oprel's own says why."""
    sentence = "Model 'bad:latest' is damaged: it is empty; pull or import it again."
    broken = scripted_model(
        "bad:latest", digest="", format="", files=(), size_bytes=0, architecture="", families=(), parameter_size="",
        quantization="", context_tokens=None, embedding_length=None, capabilities=frozenset(), damage=sentence,
    )  # fmt: skip
    served = serve(None, scripted_model("good:latest"), broken)
    bad, good = served.json("/api/tags", method="GET")["models"]
    assert bad["oprel"] == {"damage": sentence}
    assert (bad["size"], bad["digest"], bad["details"]["families"]) == (0, "0" * 64, None)
    assert "oprel" not in good
    with ollama.Client(host=served.url) as client:
        listed = client.list().models
    assert [model.model for model in listed] == ["bad:latest", "good:latest"]


VERSION = f"tiny:latest@sha256:{'a' * 64}"
NAMING: dict[str, dict[str, Any]] = {
    "generate": {"prompt": "Hi", "stream": False},
    "chat": {"messages": [{"role": "user", "content": "Hi"}], "stream": False},
    "show": {},
}


@pytest.mark.parametrize("path", NAMING)
def test_a_version_in_a_name_is_for_oprels_own_client_only(serve: Serve, path: str) -> None:
    served = serve(None, scripted_model("tiny:latest"))
    find = served.catalog.find
    versions: list[str] = []  # the server's opening may still look into the models, by their plain names

    def find_version(name: str, *, patterns: bool = True) -> Model:
        plain, at, _ = name.partition("@")
        if at:
            versions.append(name)
        return find(plain)

    served.catalog.find = find_version
    body = {"model": VERSION, **NAMING[path]}
    assert served.refused(f"/api/{path}", body) == (400, "invalid model name")
    assert versions == []
    own = served.client.post(f"/api/{path}", json=body, headers={"user-agent": "oprel/1.0"})
    assert own.status_code == 200
    assert set(versions) == {VERSION}


@pytest.mark.parametrize(("path", "method"), [("embed", "POST"), ("pull", "POST"), ("delete", "DELETE")])
def test_a_version_is_no_model_name_elsewhere(serve: Serve, path: str, method: str) -> None:
    text = f'name "{VERSION}" is invalid' if path == "delete" else "invalid model name"
    assert serve().refused(f"/api/{path}", {"model": VERSION, "input": "Hi"}, method=method) == (400, text)


@pytest.mark.parametrize("path", ["/api/nothing", "/api/chat/more", "/api"])
def test_an_unknown_path_is_plain_404(serve: Serve, path: str) -> None:
    response = serve().ask(path, {}, check=False)
    assert response.status_code == 404
    if path != "/api":
        assert (response.text, response.headers["content-type"]) == ("404 page not found", "text/plain")


@pytest.mark.parametrize("known", ROUTES, ids=lambda known: known.path)
def test_another_method_is_plain_405_and_told_which_are_allowed(serve: Serve, known: Any) -> None:
    served = serve()
    for method in {"GET", "POST", "PUT", "PATCH", "DELETE"} - set(known.methods):
        response = served.client.request(method, known.path)
        assert (response.status_code, response.text) == (405, "405 method not allowed")
        assert response.headers["content-type"] == "text/plain"
        assert response.headers["allow"] == ", ".join(known.methods)
