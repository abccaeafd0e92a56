"""POST /api/create and /api/blobs over a real store: statuses in order, errors to the letter, what is made."""

from __future__ import annotations

import hashlib
import json
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from support.ollama_store import OllamaStore
from support.servers import wait_until
from support.store_checks import assert_valid_store
from support.tiny_gguf import CHAT_VALUES, EMBED_VALUES, gguf_bytes, write_tiny_gguf
from support.tree_folders import write_folder

from oprel.errors import ModelNotFoundError
from oprel.sources import PullProgress
from oprel.store import Catalog, Store, Trees
from oprel.store.manifests import parse_manifest
from oprel.store.modelfile import Modelfile

if TYPE_CHECKING:
    from conftest import Serve, Served

ADAPTER_VALUES = {
    "general.architecture": "llama",
    "general.type": "adapter",
    "adapter.type": "lora",
    "adapter.lora.alpha": 16.0,
}
PROJECTOR_VALUES = {"general.architecture": "clip", "clip.has_vision_encoder": True, "general.type": "mmproj"}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "models", state_dir=tmp_path / "state")
    store.import_gguf(write_tiny_gguf(tmp_path / "base.gguf"), "base", licenses=["MIT"])
    return store


@pytest.fixture
def served(serve: Serve, store: Store, tmp_path: Path) -> Served:
    return serve(catalog=Catalog(store))


def upload(served: Served, data: bytes) -> str:
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    response = served.client.post(f"/api/blobs/{digest}", content=data)
    assert response.status_code in (200, 201), response.text
    return digest


def manifest_of(store: Store, name: str) -> Any:
    path = store.models_dir / "manifests" / "registry.ollama.ai" / "library" / name / "latest"
    data = path.read_bytes()
    assert data.endswith(b"}\n")
    return json.loads(data)


def layers(store: Store, name: str) -> dict[str, bytes]:
    """The texts of a model's layers, by kind."""
    return {
        layer.kind: layer.blob.digest.blob_path(store.models_dir).read_bytes()
        for layer in parse_manifest(json.dumps(manifest_of(store, name)).encode()).layers
    }


def config_of(store: Store, name: str) -> Any:
    digest = manifest_of(store, name)["config"]["digest"].replace(":", "-")
    data = (store.models_dir / "blobs" / digest).read_bytes()
    assert data.endswith(b"}\n")
    return json.loads(data)


# -- blobs


def test_a_blob_is_uploaded_asked_for_and_there_the_second_time(served: Served, store: Store) -> None:
    data = b"x" * 3_000_000
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    assert served.ask(f"/api/blobs/{digest}", b"", method="HEAD").status_code == 404
    created = served.client.post(f"/api/blobs/{digest}", content=data)
    assert (created.status_code, created.content) == (201, b"")
    assert served.ask(f"/api/blobs/{digest}", b"", method="HEAD").status_code == 200
    assert served.ask(f"/api/blobs/{digest.replace(':', '-')}", b"", method="HEAD").status_code == 200
    assert served.client.post(f"/api/blobs/{digest}", content=data).status_code == 200
    assert (store.models_dir / "blobs" / digest.replace(":", "-")).read_bytes() == data
    assert_valid_store(store.models_dir)


def test_a_chunked_body_is_taken_too(served: Served, store: Store) -> None:
    pieces = [bytes([number]) * 70_000 for number in range(40)]
    digest = f"sha256:{hashlib.sha256(b''.join(pieces)).hexdigest()}"
    response = served.client.post(
        f"/api/blobs/{digest}", content=iter(pieces), headers={"content-type": "application/json"}
    )
    assert response.status_code == 201
    assert assert_valid_store(store.models_dir) == 1


@pytest.mark.parametrize(
    "digest", ["sha256:abc", "sha256:" + "AB" * 32, "sha512:" + "ab" * 32, "ab" * 32, "sha256:" + "ab" * 33, "..", "x"]
)
def test_what_is_no_digest_is_refused(served: Served, digest: str) -> None:
    path = f"/api/blobs/{digest.replace('.', '%2e')}"
    response = served.client.post(path, content=b"x")
    assert (response.status_code, response.json()) == (400, {"error": "invalid digest format"})
    head = served.client.head(path)
    assert (head.status_code, head.content) == (400, b"")


def test_what_has_another_digest_is_not_kept(served: Served, store: Store) -> None:
    before = sorted((store.models_dir / "blobs").iterdir())
    wanted, got = "sha256:" + "ab" * 32, f"sha256:{hashlib.sha256(b'other').hexdigest()}"
    response = served.client.post(f"/api/blobs/{wanted}", content=b"other")
    assert response.status_code == 400
    assert response.json() == {"error": f'digest mismatch, expected "{wanted}", got "{got}"'}
    assert sorted((store.models_dir / "blobs").iterdir()) == before
    assert list((store.state_dir / "partial").iterdir()) == []


def test_a_client_that_leaves_in_the_middle_leaves_nothing(served: Served, store: Store) -> None:
    before = sorted((store.models_dir / "blobs").iterdir())
    host, port = served.url.removeprefix("http://").split(":")
    for framing in (b"content-length: 9000000", b"transfer-encoding: chunked"):
        with socket.create_connection((host, int(port)), timeout=20) as line:
            head = b"POST /api/blobs/sha256:%b HTTP/1.1\r\nhost: localhost\r\n%b\r\n\r\n"
            line.sendall(head % (b"ab" * 32, framing))
            line.sendall(b"200000\r\n" * (b"chunked" in framing) + b"x" * 0x200000)
            wait_until(lambda: list((store.state_dir / "partial").iterdir()), what="the upload to have begun")
        wait_until(lambda: not list((store.state_dir / "partial").iterdir()), what="the partial file to be gone")
    assert sorted((store.models_dir / "blobs").iterdir()) == before


def test_two_uploads_of_one_file_at_a_time_both_end_well(served: Served, store: Store) -> None:
    pieces = [bytes([number]) * 500_000 for number in range(20)]
    digest = f"sha256:{hashlib.sha256(b''.join(pieces)).hexdigest()}"

    def send(number: int) -> int:
        return httpx.post(f"{served.url}/api/blobs/{digest}", content=iter(pieces), timeout=30).status_code

    with ThreadPoolExecutor(4) as threads:
        assert set(threads.map(send, range(4))) <= {200, 201}
    assert_valid_store(store.models_dir)
    assert list((store.state_dir / "partial").iterdir()) == []


def test_who_asks_first_whether_to_send_is_told_not_to(served: Served) -> None:
    digest = upload(served, b"here")
    host, port = served.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as line:
        head = "POST /api/blobs/%s HTTP/1.1\r\nhost: localhost\r\ncontent-length: 4\r\nexpect: 100-continue\r\n\r\n"
        line.sendall((head % digest).encode())
        assert line.recv(1000).startswith(b"HTTP/1.1 200")


def test_no_room_on_the_disk_is_said_before_anything_is_sent(served: Served, store: Store) -> None:
    store.disk.free_bytes = lambda path: 40 << 20  # type: ignore[method-assign]
    response = served.client.post(f"/api/blobs/{NOWHERE}", content=b"x" * (10 << 20))
    assert response.status_code == 507
    assert "MB are needed" in response.json()["error"]


def test_other_methods_and_paths_are_told_apart(served: Served) -> None:
    digest = "sha256:" + "ab" * 32
    response = served.client.get(f"/api/blobs/{digest}")
    assert (response.status_code, response.text) == (405, "405 method not allowed")
    assert response.headers["allow"] == "HEAD, POST"
    assert served.client.post(f"/api/blobs/{digest}/more", content=b"").status_code == 404
    assert served.client.get("/api/create").headers["allow"] == "POST"


# -- statuses


def test_a_model_of_files_tells_its_steps_in_order(served: Served, store: Store) -> None:
    data = gguf_bytes({**CHAT_VALUES, "general.name": "mine"})
    digest = upload(served, data)
    lines = served.lines(
        "/api/create",
        {"model": "mine", "files": {"mine.gguf": digest}, "system": "Be brief.", "parameters": {"top_k": 3}},
    )
    told = [line["status"] for line in lines]
    system = f"sha256:{hashlib.sha256(b'Be brief.').hexdigest()}"
    params = "sha256:" + hashlib.sha256(b'{"top_k":3}\n').hexdigest()
    assert told == [
        "parsing GGUF",
        f"using existing layer {digest}",
        f"creating new layer {system}",
        f"creating new layer {params}",
        "writing manifest",
        "success",
    ]
    assert manifest_of(store, "mine")["layers"] == [
        {"mediaType": "application/vnd.ollama.image.model", "digest": digest, "size": len(data), "from": "mine.gguf"},
        {"mediaType": "application/vnd.ollama.image.system", "digest": system, "size": 9},
        {"mediaType": "application/vnd.ollama.image.params", "digest": params, "size": 12},
    ]
    assert config_of(store, "mine") == {
        "model_format": "gguf",
        "model_family": "llama",
        "model_families": ["llama"],
        "model_type": "192",
        "file_type": "Q4_1",
        "architecture": "amd64",
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [digest, system, params]},
    }


def test_a_model_of_another_uses_its_layers_and_a_second_run_makes_nothing_new(served: Served, store: Store) -> None:
    asked = {"model": "child", "from": "base", "system": "S", "license": ["Mine", "Theirs"], "stream": True}
    first = [line["status"] for line in served.lines("/api/create", asked)]
    assert [status.split(" layer ")[0] for status in first] == [
        *("using existing", "using existing", "creating new", "creating new", "creating new"),
        *("writing manifest", "success"),
    ]  # fmt: skip
    again = [line["status"] for line in served.lines("/api/create", asked)]
    assert again == [status.replace("creating new", "using existing") for status in first]
    made = manifest_of(store, "child")
    assert made["layers"][0]["from"] == "base:latest"
    assert [layer["mediaType"].rpartition(".")[2] for layer in made["layers"]] == [
        "model", "license", "system", "license", "license"
    ]  # fmt: skip
    shown = served.json("/api/show", {"model": "child"})
    assert shown["details"]["parent_model"] == "base:latest"
    assert shown["license"] == "MIT\nMine\nTheirs"
    assert_valid_store(store.models_dir)


def test_without_a_stream_only_the_last_word_comes(served: Served) -> None:
    response = served.ask("/api/create", {"model": "m", "from": "base", "stream": False})
    assert response.content == b'{"status":"success"}'
    assert response.headers["content-type"] == "application/json"


def test_a_base_that_is_missing_is_pulled_first(served: Served, store: Store) -> None:
    served.puller.steps = [PullProgress("pulling manifest"), PullProgress("success")]
    served.puller.failure = ModelNotFoundError("no", model="nowhere")
    lines = served.lines("/api/create", {"model": "m", "from": "nowhere"})
    assert lines == [
        {"status": "pulling manifest"}, {"status": "success"}, {"error": "pull model manifest: file does not exist"}
    ]  # fmt: skip
    assert served.puller.asked == [("nowhere", False)]


def test_a_pulled_base_is_used_after_its_early_success(served: Served, store: Store, tmp_path: Path) -> None:
    async def pull(name: str, *, insecure: bool = False) -> Any:
        yield PullProgress("pulling manifest")
        store.import_gguf(write_tiny_gguf(tmp_path / "pulled.gguf", salt="pulled"), name)
        yield PullProgress("success")

    served.puller.pull = pull
    told = [line["status"] for line in served.lines("/api/create", {"model": "m", "from": "pulled"})]
    assert told[:2] == ["pulling manifest", "success"]
    assert told[2].startswith("using existing layer sha256:")
    assert told[-2:] == ["writing manifest", "success"]


# -- what is inherited, merged, replaced


def test_parameters_merge_and_texts_are_replaced_only_by_texts(served: Served, store: Store) -> None:
    served.json(
        "/api/create",
        {
            "model": "one", "from": "base", "stream": False, "system": "First.",
            "parameters": {"top_k": 3, "temperature": 0.5, "stop": ["a"]},
            "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}],
        },
    )  # fmt: skip
    served.json(
        "/api/create",
        {"model": "two", "from": "one", "stream": False, "system": "", "parameters": {"top_k": 7, "stop": "b"}},
    )
    made = layers(store, "two")
    assert made["params"] == b'{"stop":["b"],"temperature":0.5,"top_k":7}\n'
    assert made["system"] == b"First."
    assert made["messages"] == b'[{"role":"user","content":"Hi"},{"role":"assistant","content":"Yo"}]\n'
    served.json(
        "/api/create",
        {"model": "three", "from": "two", "stream": False, "messages": [{"role": "user", "content": "Ho"}]},
    )
    assert layers(store, "three")["messages"] == b'[{"role":"user","content":"Ho"}]\n'


def test_an_old_config_keeps_what_it_said(serve: Serve, store: Store, tmp_path: Path) -> None:
    """A base in a store of Ollama's that is only read: its layers are linked into our own."""
    other = OllamaStore(tmp_path / "ollama")
    config = {
        "model_format": "gguf", "model_family": "llama", "model_families": ["llama"], "model_type": "1B",
        "file_type": "Q4_1", "renderer": "qwen3-coder", "parser": "qwen3-coder", "requires": "0.12.1",
        "capabilities": ["tools"], "unknown": 1,
    }  # fmt: skip
    other.add(
        "theirs", [("model", gguf_bytes({**CHAT_VALUES, "general.name": "t"})), ("system", b"Old.")], config=config
    )
    served = serve(catalog=Catalog(store, extra_dirs=[other.root]))
    lines = served.lines("/api/create", {"model": "m", "from": "theirs", "parser": "qwen3-coder"})
    told = [line["status"].split(" sha256")[0] for line in lines if line["status"] != "copying"]
    assert told == ["creating new layer", "creating new layer", "writing manifest", "success"]
    made = config_of(store, "m")
    assert (made["renderer"], made["parser"], made["requires"]) == ("qwen3-coder", "qwen3-coder", "0.12.1")
    assert made["capabilities"] == ["tools"]
    assert "unknown" not in made
    assert_valid_store(store.models_dir)


def test_info_overrides_the_config(served: Served, store: Store) -> None:
    info = {
        "capabilities": ["completion", "tools"], "model_family": "mine", "base_name": "b", "parameter_size": "7B",
        "quantization_level": "Q9", "context_length": 4096, "embedding_length": 64.0, "other": 1,
    }  # fmt: skip
    served.json("/api/create", {"model": "m", "from": "base", "info": info, "stream": False})
    made = config_of(store, "m")
    assert (made["model_family"], made["model_families"], made["model_type"]) == ("mine", ["mine"], "7B")
    assert (made["file_type"], made["base_name"], made["capabilities"]) == ("Q9", "b", ["completion", "tools"])
    assert (made["context_length"], made["embedding_length"]) == (4096, 64)


def test_projectors_and_adapters_are_layers_of_their_kinds(served: Served, store: Store) -> None:
    adapter = upload(served, gguf_bytes(ADAPTER_VALUES))
    projector = upload(served, gguf_bytes(PROJECTOR_VALUES))
    weights = upload(served, gguf_bytes({**CHAT_VALUES, "general.name": "w"}))
    served.json(
        "/api/create",
        {
            "model": "m", "files": {"a/w.gguf": weights, "mmproj.gguf": projector},
            "adapters": {"lora.gguf": adapter}, "stream": False,
        },
    )  # fmt: skip
    made = manifest_of(store, "m")
    kinds = [layer["mediaType"].rpartition(".")[2] for layer in made["layers"]]
    assert kinds == ["model", "projector", "adapter"]
    assert config_of(store, "m")["model_families"] == ["llama", "clip"]
    model = Catalog(store).find("m")
    assert model.damage is None
    assert {file.role for file in model.files} == {"weights", "projector", "adapter"}


# -- refusals


NOWHERE = "sha256:" + "ab" * 32
_TYPES = "supported types are F32, F16, Q4_K_S, Q4_K_M, Q8_0"
_NEITHER = "neither 'from' or 'files' was specified"
_RELATIVE = "file path must be relative"
_BASE = {"model": "m", "from": "base"}


@pytest.mark.parametrize(
    ("asked", "status", "error"),
    [
        ({"from": "base"}, 400, "invalid model name"),
        ({"model": "a b", "from": "base"}, 400, "invalid model name"),
        ({"model": "../x", "from": "base"}, 400, "invalid model name"),
        ({"model": "m"}, 400, _NEITHER),
        ({"model": "m", "modelfile": "FROM /etc/passwd", "path": "/etc/passwd"}, 400, _NEITHER),
        ({"model": "m", "from": "/etc/passwd"}, 400, "invalid model name"),
        ({"model": "m", "files": {"/etc/passwd": NOWHERE}}, 400, _RELATIVE),
        ({"model": "m", "files": {"../x": NOWHERE}}, 400, _RELATIVE),
        ({"model": "m", "files": {"a//b": NOWHERE}}, 400, _RELATIVE),
        ({"model": "m", "files": {"a\\b": NOWHERE}}, 400, _RELATIVE),
        ({"model": "m", "files": {"c:x": NOWHERE}}, 400, _RELATIVE),
        ({**_BASE, "adapters": {"/x": NOWHERE}}, 400, _RELATIVE),
        ({"model": "m", "files": {"x.gguf": "/etc/passwd"}}, 400, "invalid digest format"),
        ({"model": "m", "files": {"x.gguf": "sha256:zz"}}, 400, "invalid digest format"),
        (
            {"model": "m", "files": {"x.gguf": NOWHERE}},
            500,
            f"open {NOWHERE.replace(':', '-')}: no such file or directory",
        ),
        ({**_BASE, "quantize": "q5_0"}, 500, f"unsupported quantization type Q5_0 - {_TYPES}"),
        ({**_BASE, "quantize": "q8_0"}, 500, "quantization is only supported for F16, BF16 and F32 models"),
        ({**_BASE, "draft_quantize": "q8_0"}, 400, "--draft-quantize requires a DRAFT model"),
        (
            {**_BASE, "draft_files": {"d": NOWHERE}},
            400,
            "draft models are not supported: leave out DRAFT ('draft_files')",
        ),
        (
            {**_BASE, "remote_host": "http://x"},
            400,
            "remote_host is not supported: models on other servers are named in config.toml",
        ),
        ({**_BASE, "info": {"base_name": 1}}, 400, 'info field "base_name" must be a string'),
        ({**_BASE, "info": {"context_length": "x"}}, 400, 'info field "context_length" must be a number'),
        ({**_BASE, "info": {"context_length": -1}}, 400, 'info field "context_length" must be a non-negative integer'),
        ({**_BASE, "parameters": {"nonsense": 1}}, 400, "unknown parameter 'nonsense'"),
        ({**_BASE, "parameters": {"num_ctx": "big"}}, 400, 'option "num_ctx" must be of type integer'),
        ({**_BASE, "parameters": {"temperature": -1}}, 400, 'option "temperature" must be from 0 to 100, not -1'),
        ({**_BASE, "parameters": {"stop": [1]}}, 400, 'option "stop" must be of an array of strings'),
        (
            {**_BASE, "messages": [{"role": "tool", "content": "x"}]},
            400,
            'message role must be one of "system", "user", or "assistant"',
        ),
        ({**_BASE, "template": "{{ .Prompt"}, 400, "template error: template: :1: unclosed action"),
        (
            {**_BASE, "template": "{% for m in messages %}{{ m['content'] }}{% endfor %}"},
            400,
            "template error: template: :1: bad character U+005B '['",
        ),
        ({**_BASE, "license": 1}, 400, "license must be a string or a list of strings"),
        ({**_BASE, "requires": "new"}, 400, "requires must be a valid semver (e.g. 0.14.0)"),
        (
            {**_BASE, "requires": "99.0.0"},
            400,
            "this model requires Ollama 99.0.0, and what is kept here is the interface of 0.33.0",
        ),
        (
            {**_BASE, "renderer": "none-such"},
            400,
            "renderer 'none-such' can't be honoured: engines use the model's own chat template, or TEMPLATE; "
            "leave out RENDERER",
        ),
    ],
)
def test_what_cannot_be_done_is_said_with_its_status(
    served: Served, store: Store, asked: dict[str, Any], status: int, error: str
) -> None:
    asked = {"stream": False, **asked}
    assert served.refused("/api/create", asked) == (status, error)
    assert assert_valid_store(store.models_dir) == 1


@pytest.mark.parametrize(
    ("data", "name", "error"),
    [
        (b"not a model", "x.gguf", "supplied file was not in GGUF format"),
        (b"not a model", "x", "unknown type"),
        (gguf_bytes()[:-40], "x.gguf", "cut short"),
        (gguf_bytes({**CHAT_VALUES, "split.count": 3}), "x.gguf", "one of 3 parts"),
        (gguf_bytes({"general.architecture": "llama"}, ()), "x.gguf", "no architecture or no tensors"),
        (gguf_bytes({"general.type": "imatrix"}), "x.gguf", "no model, projector or adapter"),
        (gguf_bytes(ADAPTER_VALUES), "x.gguf", "no weights"),
    ],
)
def test_a_file_that_is_no_model_is_refused_after_the_first_line(
    served: Served, data: bytes, name: str, error: str
) -> None:
    digest = upload(served, data)
    first, last = served.lines("/api/create", {"model": "m", "files": {name: digest}})
    assert first == {"status": "parsing GGUF"}
    assert error in last["error"]
    assert served.refused("/api/create", {"model": "m", "files": {name: digest}, "stream": False})[0] == 400


def test_adapters_that_do_not_fit_are_refused(served: Served) -> None:
    other = upload(served, gguf_bytes({**ADAPTER_VALUES, "general.architecture": "gemma"}))
    model = upload(served, gguf_bytes())

    def refused(adapters: dict[str, str]) -> str:
        return served.refused("/api/create", {"model": "m", "from": "base", "adapters": adapters, "stream": False})[1]

    assert refused({"a": other}) == "the adapter was made for 'gemma', and this model is of the kind 'llama'"
    assert refused({"a": other, "b": model}) == "only one adapter is currently supported"
    assert refused({"a.gguf": model}) == "'a.gguf' is a GGUF file, but not an adapter"
    assert "convert_lora_to_gguf" in refused({"adapter_model.safetensors": other})


def test_an_embedding_model_has_no_place_for_texts(served: Served) -> None:
    digest = upload(served, gguf_bytes(EMBED_VALUES))
    asked = {"model": "m", "files": {"e.gguf": digest}, "system": "x", "stream": False}
    status, error = served.refused("/api/create", asked)
    assert status == 400
    assert "embedding model" in error


def test_existing_and_missing_paths_of_the_server_get_the_same_answer(served: Served) -> None:
    answers = [
        served.ask("/api/create", {"model": "m", **fields, "stream": False})
        for path in ("/etc/passwd", "/nope")
        for fields in ({"from": path}, {"files": {path: NOWHERE}}, {"files": {"x": path}}, {"path": path})
    ]
    first, second = answers[:4], answers[4:]
    assert [(a.status_code, a.content) for a in first] == [(b.status_code, b.content) for b in second]
    assert b"passwd" not in b"".join(answer.content for answer in answers)


# -- safetensors


def test_files_in_safetensors_become_a_folder(serve: Serve, store: Store, tmp_path: Path) -> None:
    trees = Trees(tmp_path / "trees", state_dir=store.state_dir)
    served = serve(catalog=Catalog(store, shelves=[trees]))
    folder = write_folder(tmp_path / "folder")
    files = {path.name: upload(served, path.read_bytes()) for path in sorted(folder.iterdir())}
    asked = {"model": "tree", "files": files, "system": "S", "parameters": {"top_k": 3, "stop": ["x"]}, "license": "L"}
    lines = [line["status"] for line in served.lines("/api/create", asked)]
    assert lines[: len(files)] == [f"using existing layer {digest}" for digest in files.values()]
    assert lines[-2:] == ["writing manifest", "success"]
    made = served.catalog.find("tree")
    assert (made.format, made.system, made.licenses, made.damage) == ("safetensors", "S", ("L",), None)
    assert dict(made.parameters)["stop"] == ("x",)
    second = {"model": "second", "from": "tree", "messages": [{"role": "user", "content": "Hi"}], "stream": False}
    served.json("/api/create", {**second, "parameters": {"top_k": 4}})
    made = served.catalog.find("second")
    assert (made.system, [m.text for m in made.messages], dict(made.parameters)["top_k"]) == ("S", ["Hi"], 4)
    shown = served.json("/api/show", {"model": "second"})
    assert (shown["system"], shown["license"]) == ("S", "L")
    assert trees.verify("second") is None
    assert served.refused("/api/create", {**second, "template": "{{ .Prompt }}"}) == (
        400,
        "'template' can't be honoured for a model in safetensors",
    )
    assert served.refused("/api/create", {**second, "model": "base"})[0] == 400
    names = [path.name for path in (tmp_path / "trees").iterdir()]
    assert all(name == "manifests" or len(name) == 64 for name in names), names


@pytest.mark.parametrize(
    ("files", "error"),
    [
        ({"model.safetensors": b"no"}, "the model isn't a model's folder: it has no config.json."),
        ({"model.safetensors": b"no", "config.json": b"{}"}, "safetensors"),
        ({"model.safetensors": b"no", "config.json": b"{}", "model.py": b"x"}, "a program"),
        ({"model.safetensors": b"no", "config.json": b"{}", "a/b/c/d/e/f.json": b"x"}, "isn't the name of"),
    ],
)
def test_files_that_make_no_folder_are_refused(
    serve: Serve, store: Store, tmp_path: Path, files: dict[str, bytes], error: str
) -> None:
    trees = Trees(tmp_path / "trees", state_dir=store.state_dir)
    served = serve(catalog=Catalog(store, shelves=[trees]))
    asked = {"model": "tree", "files": {name: upload(served, data) for name, data in files.items()}, "stream": False}
    status, said = served.refused("/api/create", asked)
    assert (status, error in said) == (400, True), said
    assert trees.list() == ()


# -- what was made answers as it says


def test_a_created_model_answers_with_its_system_messages_and_parameters(served: Served) -> None:
    served.json(
        "/api/create",
        {
            "model": "m", "from": "base", "stream": False, "system": "Be brief.",
            "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}],
            "parameters": {"temperature": 0.25, "num_ctx": 512, "stop": ["END"], "seed": 7, "num_predict": 5},
        },
    )  # fmt: skip
    expected = [("system", "Be brief."), ("user", "Hi"), ("assistant", "Yo"), ("user", "Go")]
    served.json("/api/chat", {"model": "m", "messages": [{"role": "user", "content": "Go"}], "stream": False})
    assert [(message.role, message.text) for message in served.request.messages] == expected
    sampling = served.request.sampling
    assert (sampling.temperature, sampling.stop, sampling.seed, sampling.max_tokens) == (0.25, ("END",), 7, 5)
    assert served.engine.plan.options.context_tokens == 512
    response = served.client.post(
        "/v1/chat/completions", json={"model": "m", "messages": [{"role": "user", "content": "Go"}]}
    )
    assert response.status_code == 200, response.text
    assert [(message.role, message.text) for message in served.request.messages] == expected
    assert (served.request.sampling.temperature, served.request.sampling.stop) == (1.0, ("END",))


def test_a_template_is_used_or_it_is_told_that_it_is_not(served: Served) -> None:
    tools = gguf_bytes({**CHAT_VALUES, "tokenizer.chat_template": "{% if tools %}{{ tools }}{% endif %}"})
    files = {"tools.gguf": upload(served, tools)}
    plain, able = "{{ .System }}>{{ .Prompt }}", "{{ .Tools }}{{ range .Messages }}{{ .Content }}{{ end }}"
    for template, of, form in (
        (plain, {"from": "base"}, "go"),
        (plain, {"files": files}, "jinja"),
        (able, {"files": files}, "go"),
    ):
        lines = [line["status"] for line in served.lines("/api/create", {"model": "m", "template": template, **of})]
        told = [line for line in lines if line.startswith("using the chat template of the weights")]
        assert len(told) == (form == "jinja")
        assert served.json("/api/show", {"model": "m"})["oprel"]["template"] == form


def test_a_template_that_fails_at_the_first_question_is_refused(served: Served) -> None:
    status, error = served.refused("/api/create", {**_BASE, "template": "{{ index .Messages 9 }}"})
    assert status == 400
    assert error.startswith("template error: ")


def test_what_show_tells_makes_the_same_model_again(served: Served, store: Store) -> None:
    asked: dict[str, Any] = {
        "system": 'Say "yes"\nor no', "license": ["MIT\n  terms\n", 'a "b"'],
        "parameters": {"temperature": 0.1, "num_ctx": 2_000_000, "stop": ["<|x|>", ' "', "a\nb"], "use_mmap": False},
        "messages": [{"role": "user", "content": " Hi\t"}, {"role": "assistant", "content": ""}],
        "requires": "0.14.0",
    }  # fmt: skip
    weights = upload(served, gguf_bytes({**CHAT_VALUES, "general.name": "w"}))
    files = {"model": "m", "files": {f"{weights.replace(':', '-')}": weights}, "stream": False}
    served.json("/api/create", {**files, **asked})
    shown = Modelfile.parse(served.json("/api/show", {"model": "m"})["modelfile"])
    path = Path(shown.sources[0])
    assert path == store.models_dir / "blobs" / weights.replace(":", "-")
    again = {
        "system": shown.system, "license": list(shown.licenses), "parameters": shown.parameters,
        "messages": [{"role": role, "content": text} for role, text in shown.messages], "requires": shown.requires,
    }  # fmt: skip
    assert again == asked
    served.json("/api/create", {**files, **again, "model": "n"})
    assert manifest_of(store, "n") == manifest_of(store, "m")
